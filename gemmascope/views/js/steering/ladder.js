// The text at five strengths, one rung each, with the words that are not in the unsteered text coloured.

import { make } from "../page.js";
import { format, percent, rounded } from "../scale.js";
import { legibleLine } from "../tokens.js";

export const LADDER_STYLE = `
.gs-ladder{display:grid;gap:0;margin:0;padding:0}
.gs .gs-rung{display:grid;grid-template-columns:56px minmax(0,1fr) max-content;gap:0 16px;align-items:baseline;width:100%;text-align:left;min-height:44px;padding:4px 8px;border-radius:0;border:0;border-bottom:1px solid var(--gs-line)}
.gs .gs-rung[aria-current=true]{background:var(--gs-pane);box-shadow:inset 3px 0 var(--gs-accent)}
.gs-rung>b{font-weight:600;text-align:right}
.gs-rung>span{min-height:36px;overflow-wrap:anywhere;white-space:pre-wrap;line-height:18px}
.gs-rung>small{color:var(--gs-faint);text-align:right;min-width:112px}
.gs-rung.gs-collapsed>b,.gs-rung.gs-collapsed>small{color:var(--gs-warn)}
.gs-rung mark{background:var(--gs-highlight);color:inherit;border-radius:2px}
`;

/** Stretches of text, [[text, whether it is another]], as elements; "…" while there is none. */
export function stretched(stretches, isWritten = true) {
  if (!stretches) return ["…"];
  const parts = stretches.map(([text, isOther]) => (isOther ? make("mark", {}, legibleLine(text)) : legibleLine(text)));
  return isWritten ? parts : [...parts, " …"];
}

/** What is followed at a rung, in words: a share as a percentage, a difference of logits to three digits, nothing as 0. */
export function rungText(metric, isShare, all) {
  if (metric === null) return "";
  if (isShare) return percent(metric);
  const value = Number(rounded(metric, { low: Math.min(...all), high: Math.max(...all) }).toPrecision(3));
  const most = Math.max(...all.map(Math.abs));
  return Math.abs(value) < 0.001 * most ? "0" : format(value, true);
}

/** chosen(strength): a rung was clicked. Returns {element, update(state)}. */
export function textLadder(chosen) {
  const element = make("div", { class: "gs-ladder", role: "group", "aria-label": "the text at five strengths; marked words are not in the unsteered text" });
  let rungs = [];
  function update(state) {
    if (rungs.length !== state.rungs.length) {
      rungs = state.rungs.map((_, i) => {
        const parts = [make("b"), make("span", { dir: "auto" }), make("small")];
        return { button: make("button", { type: "button", class: "gs-rung", onclick: () => chosen(rungs[i].strength) }, ...parts), parts };
      });
      element.replaceChildren(...[...rungs].reverse().map((one) => one.button));
    }
    const all = [...state.curve.metric, ...state.rungs.map((rung) => rung.metric)].filter((value) => value !== null);
    state.rungs.forEach(({ strength, text, metric, collapsed }, i) => {
      const { button, parts } = rungs[i];
      rungs[i].strength = strength;
      button.classList.toggle("gs-collapsed", collapsed);
      button.setAttribute("aria-current", String(strength === state.strength));
      button.disabled = strength === null;
      parts[0].textContent = strength === null ? "…" : strength === 0 ? "0" : format(strength, true);
      parts[1].replaceChildren(...stretched(text, state.ladder_written));
      parts[2].textContent = `${rungText(metric, state.is_share, all)}${collapsed ? " · collapsed" : ""}`;
    });
  }
  return { element, update };
}
