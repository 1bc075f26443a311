// Draws a static view: unpacks its arrays and hands them to the component that shows them.

import { unpacked } from "../packed.js";

/** Call draw(el, spec, data) with a view's unpacked arrays. An error is shown in place of the picture. */
export async function mountWith(draw, el, spec, arrays) {
  try {
    return draw(el, { ...spec, framed: true }, await unpacked(arrays));
  } catch (error) {
    el.append(`This picture could not be drawn: ${error.message}. Use a browser of 2023 or later.`);
    throw error;
  }
}
