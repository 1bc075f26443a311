// What becomes of a prompt: the likeliest next tokens before and after a change, and the text before and after.

import { make } from "./page.js";
import { format, percent } from "./scale.js";
import { cut, legible, readable, spelled } from "./tokens.js";

const BARS = `
.gs-texts{display:grid;gap:8px;grid-template-columns:repeat(auto-fit,minmax(min(100%,300px),1fr));margin:6px 0}
.gs-text{border:1px solid var(--gs-line);border-radius:4px;padding:4px 8px;min-height:3.2em;white-space:pre-wrap;overflow-wrap:anywhere}
.gs-text b{display:block;font-size:12px}
.gs-remark{margin:4px 0;padding:2px 6px;border-left:4px solid var(--gs-warn)}
`;

/** The part of a lab's page that shows them: {element, update(state)}. */
export function answers() {
  const table = make("table", { "aria-label": "likeliest next tokens before and after" });
  const before = make("span", { dir: "auto" });
  const after = make("span", { dir: "auto", "aria-live": "polite" });
  const texts = make("div", { class: "gs-texts" });
  texts.append(make("div", { class: "gs-text" }, make("b", {}, "text before"), before), make("div", { class: "gs-text" }, make("b", {}, "text after"), after));
  const element = make("div", {}, make("style", {}, BARS), texts, table);
  const line = (cells, tag) => make("tr", {}, ...cells.map((cell) => make(tag, {}, cell)));
  const row = (one) => {
    const change = one.after - one.before;
    const sign = Math.abs(change) < 5e-4 ? "=" : change > 0 ? "▲" : "▼";
    return line([cut(legible(one.token), 24), percent(one.before), percent(one.after), `${sign} ${format(100 * change, true, 1)}`], "td");
  };
  const written = (text, whole) => (text === null ? "…" : spelled(text) + (whole ? "" : " …"));
  return {
    element,
    update(state) {
      table.replaceChildren(line(["next token", "before", "after", "change, in %"], "th"), ...state.top.map(row));
      table.hidden = !state.top.length;
      before.textContent = written(state.text_before, state.written.before);
      after.textContent = written(state.text_after, state.written.after);
    },
  };
}

/** A remark that tells an error: {element, update(error)}. */
export function trouble() {
  const element = make("div", { class: "gs-remark gs-error", role: "alert", hidden: true });
  return {
    element,
    update(error) {
      element.hidden = !error;
      element.replaceChildren(make("b", {}, "⛔ error "), readable(error ?? ""));
    },
  };
}
