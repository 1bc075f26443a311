// The lens view: a grid of layers by positions with the top token in every cell; what the colour says is chosen.
//
// spec: a grid's, with texts and hover; colours: {name: {unit, scale}}; data: {name: values}.

import { grid } from "./grid.js";
import { make } from "./page.js";

export function lens(el, spec, data) {
  const names = Object.keys(spec.colours);
  const of = (name) => ({ ...spec, ...spec.colours[name] });
  const shown = grid(el, of(names[0]), { values: data[names[0]] });
  const pick = make("select", { "aria-label": "what the colour says", onchange: () => shown.update({ spec: of(pick.value), values: data[pick.value] }) });
  for (const name of names) pick.append(make("option", { value: name }, `colour: ${name}`));
  shown.bar.prepend(pick);
  return shown;
}
