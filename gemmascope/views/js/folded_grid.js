// A grid of a static page: the columns before the first token that differs are folded, and a button shows them.

import { folded, foldOf } from "./folding.js";
import { grid } from "./grid.js";
import { make } from "./page.js";

/** spec, data: as of grid; spec.alike: how many columns from the first are 0 because the prompts are alike there. */
export function foldedGrid(el, spec, data) {
  const span = foldOf(spec.columns.length, spec.alike ?? 0);
  if (!span) return grid(el, spec, data);
  let fold = folded(spec, span);
  const made = grid(el, fold.spec, fold.data(data));
  const toggle = make("button", { type: "button", "aria-pressed": "false", onclick: unfold }, `Show all ${spec.columns.length} columns`);
  made.bar.append(toggle);
  function unfold() {
    const isFolded = toggle.getAttribute("aria-pressed") === "false";
    fold = folded(spec, isFolded ? null : span);
    toggle.setAttribute("aria-pressed", String(isFolded));
    made.update({ spec: fold.spec, ...fold.data(data) });
  }
  return made;
}
