// What the looks of a grid's cells mean, for its legend: exact, estimate, not run.

import { ESTIMATED, EXACT, NOT_RUN, paleOf } from "./matrix.js";
import { make } from "./page.js";
import { colourAt, css } from "./scale.js";

// Where on the scale the colour of the samples lies: one that is seen in both themes.
const SAMPLE = 0.85;
const WORDS_OF = { [EXACT]: "exact", [ESTIMATED]: "estimate", [NOT_RUN]: "not run" };

/** A sample with its words for each of these marks, in the colours of the theme. */
export function markSamples(scale, dark, marks = [EXACT, ESTIMATED, NOT_RUN]) {
  const full = colourAt(SAMPLE, scale, dark);
  const looks = {
    [EXACT]: css(full),
    [ESTIMATED]: css(paleOf(full, scale, dark)),
    [NOT_RUN]: "repeating-linear-gradient(135deg,transparent 0 3px,var(--gs-faint) 3px 4px)",
  };
  return marks.map((mark) => {
    const middle = mark === ESTIMATED ? [make("i", { style: `background:${css(full)}` })] : [];
    return make("span", {}, make("i", { class: "gs-swatch", style: `background:${looks[mark]}` }, ...middle), WORDS_OF[mark]);
  });
}
