// Draws static views: turns a spec and packed arrays from a page into the component that shows them.

import { unpacked } from "./arrays.js";
import { attention, layersOf } from "./attention.js";
import { grid } from "./grid.js";
import { lens } from "./lens.js";
import { lines } from "./lines.js";
import { plan } from "./plan.js";

const VIEWS = {
  grid: (el, spec, data) => grid(el, spec, { marks: null, ...data }),
  lens: (el, spec, data) => lens(el, spec, data),
  lines: (el, spec, data) => lines(el, spec, data.values),
  plan: (el, spec) => plan(el, spec),
  attention: (el, spec, data) => attention(el, spec, layersOf(spec, data, "first"), spec.other ? layersOf(spec, data, "second") : null),
};

/** Draw a view in an element. An error is shown in place of the picture. */
export async function mount(el, spec, arrays) {
  try {
    return VIEWS[spec.view](el, { ...spec, framed: true }, await unpacked(arrays));
  } catch (error) {
    el.append(`This picture could not be drawn: ${error.message}. Use a browser of 2023 or later.`);
    throw error;
  }
}
