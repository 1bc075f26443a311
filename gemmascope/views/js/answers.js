// What a change does to a prompt: the likeliest next tokens before and after it, and the text before and after.

import { make } from "./page.js";
import { format, percent } from "./scale.js";
import { cut, legible, legibleLine } from "./tokens.js";

const ANSWERS_STYLE = `
.gs-texts{display:grid;gap:8px;grid-template-columns:repeat(auto-fit,minmax(min(100%,300px),1fr));margin:6px 0}
.gs-text{border:1px solid var(--gs-line);border-radius:4px;padding:4px 8px;min-height:3.2em;white-space:pre-wrap;overflow-wrap:anywhere}
.gs-text b{display:block;font-size:12px}
`;

/** The part of a lab's page that shows them: {element, update(state)}. */
export function answers() {
  const table = make("table", { "aria-label": "likeliest next tokens before and after" });
  const before = make("span", { dir: "auto" });
  const after = make("span", { dir: "auto", "aria-live": "polite" });
  const texts = make("div", { class: "gs-texts" });
  texts.append(make("div", { class: "gs-text" }, make("b", {}, "text before"), before), make("div", { class: "gs-text" }, make("b", {}, "text after"), after));
  const element = make("div", {}, make("style", {}, ANSWERS_STYLE), texts, table);
  const textSoFar = (text, isComplete) => (text === null ? "…" : legibleLine(text) + (isComplete ? "" : " …"));
  return {
    element,
    update(state) {
      table.replaceChildren(...changeRows(state.top));
      table.hidden = !state.top.length;
      before.textContent = textSoFar(state.text_before, state.written.before);
      after.textContent = textSoFar(state.text_after, state.written.after);
    },
  };
}

/** The rows of a table of next tokens, [{token, before, after}], with probabilities before and after a change. */
export function changeRows(top) {
  const line = (cells, tag) => make("tr", {}, ...cells.map((cell) => make(tag, {}, cell)));
  const row = ({ token, before, after }) => {
    const change = 100 * (after - before);
    // Nothing where nothing moved that these digits could show: rows of "=" and "+0.0" hide the ones that did.
    const says = Math.abs(change) < 0.05 ? "" : `${change > 0 ? "▲" : "▼"} ${format(change, true, 1)}`;
    return line([cut(legible(token), 24), percent(before), percent(after), says], "td");
  };
  return [line(["next token", "before", "after", "change, in points"], "th"), ...top.map(row)];
}
