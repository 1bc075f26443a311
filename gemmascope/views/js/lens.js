// The lens view: a grid of layers by positions with the top token in every cell, and a choice of what the colour shows.
//
// spec: a grid's, with tokens: [those that occur], top: how many each cell has, follows: the answer's text or null,
//   colours: [{name, unit, scale, decimals?, array: its name in data}]
// data: the arrays of colours, and ids (indices into tokens) and probs, each [layer, position, top]

import { grid } from "./grid.js";
import { make } from "./page.js";
import { format } from "./scale.js";
import { legible } from "./tokens.js";

/** Each cell's token, and its tooltip: the most likely tokens, and the answer's probability and rank. */
export function cellsOf(spec, data) {
  const columns = spec.columns.length;
  const at = (row, column) => row * columns + column;
  const texts = spec.rows.map((_, r) => spec.columns.map((_, c) => spec.tokens[data.ids[at(r, c) * spec.top]]));
  const hover = (row, column) => {
    const i = at(row, column);
    const lines = Array.from({ length: spec.top }, (_, k) => `${legible(spec.tokens[data.ids[i * spec.top + k]])}  ${format(data.probs[i * spec.top + k], false, 4)}`);
    if (spec.follows !== null) lines.push(`answer ${legible(spec.follows)}: ${format(data.prob[i], false, 4)}, rank ${data.rank[i]}`);
    return lines;
  };
  return { texts, hover };
}

export function lens(el, spec, data) {
  const cells = cellsOf(spec, data);
  const specFor = (colour) => ({ ...spec, ...cells, ...colour, measure: colour.name });
  const values = (colour) => data[colour.array];
  const lensGrid = grid(el, specFor(spec.colours[0]), { values: values(spec.colours[0]) });
  const pick = make("select", { "aria-label": "what the colour says", onchange: () => {
    const next = spec.colours[pick.selectedIndex];
    lensGrid.update({ spec: specFor(next), values: values(next) });
  } });
  for (const { name } of spec.colours) pick.append(make("option", {}, `colour: ${name}`));
  lensGrid.bar.prepend(pick);
  return lensGrid;
}
