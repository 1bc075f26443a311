// Static views: a spec and packed arrays, as a page holds them, become the component that draws them.

import { unpack } from "./arrays.js";
import { attention } from "./attention.js";
import { grid } from "./grid.js";
import { lens } from "./lens.js";
import { lines } from "./lines.js";

async function unpacked(arrays) {
  const names = Object.keys(arrays);
  const all = await Promise.all(names.map((name) => unpack(arrays[name])));
  return Object.fromEntries(names.map((name, i) => [name, all[i]]));
}

const VIEWS = {
  grid: (el, spec, data) => grid(el, spec, { marks: null, ...data }),
  lens: (el, spec, data) => lens(el, spec, data),
  lines: (el, spec, data) => lines(el, spec, data.values),
  attention: (el, spec, data, on) => {
    const of = (name) => spec.layers.map((layer) => data[`${name}${layer.index}`]);
    return attention(el, spec, of("first"), spec.other ? of("second") : null, on.chosen);
  },
};

/** Draw a view in an element. on: what a component tells of itself. What goes wrong is said in the picture's place. */
export async function mount(el, spec, arrays, on = {}) {
  try {
    return VIEWS[spec.view](el, spec, await unpacked(arrays), on);
  } catch (error) {
    el.append(`This picture could not be drawn: ${error.message}. Use a browser of 2023 or later.`);
    throw error;
  }
}
