// A grid of a static page, with a legend of its cells' looks: the columns before the first token that differs are folded, and
// a button shows them.

import { folded, foldOf } from "./folding.js";
import { grid } from "./grid.js";
import { markSamples } from "./marks.js";
import { ESTIMATED, EXACT, NOT_RUN } from "./matrix.js";
import { make } from "./page.js";
import { theme } from "./theme.js";

/** spec, data: as of grid; spec.alike: how many columns from the first are 0 because the prompts are alike there. */
export function foldedGrid(el, spec, data) {
  const span = foldOf(spec.columns.length, spec.alike ?? 0);
  const marks = [EXACT, ESTIMATED, NOT_RUN].filter((mark) => data.marks?.includes(mark));
  // A grid of exact numbers alone needs no words for them. Samples change with the theme, as the grid does.
  const legend = make("div", { class: "gs-legend", hidden: marks.every((mark) => mark === EXACT) });
  const placed = () => legend.replaceChildren(...markSamples(spec.scale, theme().dark, marks));
  let fold = folded(spec, span);
  const made = grid(el, fold.spec, fold.data(data), {}, { placed });
  made.bar.before(legend);
  if (!span) return made;
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
