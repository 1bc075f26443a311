// What is taken away from the patching lab: a picture with its title and the prompts, and files that the browser saves.

import { draw, FONT, layoutOf } from "../matrix.js";
import { sized } from "../page.js";
import { LIGHT } from "../theme.js";
import { fitted, legibleLine } from "../tokens.js";

const PICTURE_WIDTH = 1200, TEXT_LINE = 20, MARGIN = 16;

/** The grid as a picture that stands by itself: the title, lines of text, the grid with all its labels. A canvas. */
export function picture(spec, data, lines) {
  const page = document.createElement("canvas");
  const ctx = page.getContext("2d");
  ctx.font = FONT;
  const measure = (text) => ctx.measureText(text).width;
  const whole = { ...spec, scale: { ...spec.scale, hidden: false } };
  const layout = layoutOf(whole, PICTURE_WIDTH - 2 * MARGIN, measure, { most: 44, tall: 34 });
  const cells = document.createElement("canvas");
  draw(sized(cells, layout.width, layout.height), layout, whole, data, LIGHT);
  const top = MARGIN + 28 + TEXT_LINE * lines.length + 8;
  const width = Math.max(layout.width + 2 * MARGIN, 640);
  const out = sized(page, width, top + layout.height + MARGIN);
  out.fillStyle = LIGHT.ground;
  out.fillRect(0, 0, width, top + layout.height + MARGIN);
  out.fillStyle = LIGHT.ink;
  out.textBaseline = "top";
  out.font = `600 18px system-ui, sans-serif`;
  out.fillText(fitted(legibleLine(spec.title), width - 2 * MARGIN, (text) => out.measureText(text).width), MARGIN, MARGIN);
  out.font = FONT;
  lines.forEach((line, i) => out.fillText(fitted(legibleLine(line), width - 2 * MARGIN, (text) => out.measureText(text).width), MARGIN, MARGIN + 28 + i * TEXT_LINE));
  out.drawImage(cells, MARGIN, top, layout.width, layout.height);
  return page;
}

/** Ask for a file and give its text. */
export function askForText(accept, then) {
  const input = document.createElement("input");
  Object.assign(input, { type: "file", accept });
  input.addEventListener("change", async () => input.files.length && then(input.files[0].name, await input.files[0].text()));
  input.click();
}
