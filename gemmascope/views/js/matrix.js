// A labelled matrix on a canvas: where its cells are, what is drawn in them, which of them a point is in.

import { colour, colourAt, css, format, inkOn, place, ticksOf } from "./scale.js";
import { fitted, legible, spelled } from "./tokens.js";

export const NOT_RUN = 0, ESTIMATED = 1, EXACT = 2, UNDER_WAY = 3;
export const FONT = "12px system-ui, sans-serif";
const SMALL = "11.5px system-ui, sans-serif";
// Labels of columns that do not fit are turned by so much, and are at most so long.
const TURN = Math.PI / 3.6, LONGEST = 126;
// A canvas that is wider than this is not drawn everywhere; a square one that is higher than this is not seen at once, and
// is no wider than it must be.
const WIDEST = 12000, HIGHEST = 760, LARGEST = 1600;

/** A label as it is drawn: a token with its spaces visible, anything else as it is; global layers have a mark. */
export function labelOf(label) {
  return (label.token ? legible(label.label) : spelled(label.label)) + (label.kind === "global" ? " ◆" : "");
}

/** Where everything is, in CSS pixels, for a page of this width; the matrix may be wider. measure: a text to its width. */
export function layoutOf(spec, width, measure, { most = 34, least = spec.texts ? 40 : 6 } = {}) {
  const rows = spec.rows.length;
  const columns = spec.columns.length;
  const axis = spec.row_axis ? 18 : 0;
  const longestRow = Math.max(20, ...spec.rows.map((r) => measure(labelOf(r)) + (r.special ? 8 : 0)));
  const left = Math.ceil(Math.min(longestRow, Math.max(90, width * 0.3))) + 14 + axis;
  const right = spec.scale.hidden ? 8 : spec.unit ? 96 : 78;
  const narrowest = Math.min(least, (spec.square ? LARGEST : WIDEST) / columns);
  const widest = spec.texts ? 76 : spec.square ? Math.max(narrowest, Math.min(most, HIGHEST / rows)) : most;
  const cw = Math.min(widest, Math.max(narrowest, (width - left - right) / columns));
  const ch = spec.square ? cw : Math.min(most, spec.texts ? 24 : 22);
  const longest = Math.max(10, ...spec.columns.map((c) => measure(labelOf(c)) + (c.special ? 8 : 0)));
  const slanted = longest > cw - 4;
  const foot = (slanted ? Math.min(LONGEST, longest) * Math.sin(TURN) + 18 : 20) + (spec.column_axis ? 18 : 0);
  return {
    left, top: 6, cw, ch, rows, columns, slanted, up: Boolean(spec.up),
    width: left + cw * columns + right, height: 6 + ch * rows + foot, bottom: 6 + ch * rows,
    right: left + cw * columns, room: left - axis - 12,
  };
}

/** The corner of a cell: [x, y]. */
export function corner(at, row, column) {
  const y = at.up ? at.rows - 1 - row : row;
  return [at.left + column * at.cw, at.top + y * at.ch];
}

/** The cell that a point is in, [row, column]; null outside. */
export function hit(at, x, y) {
  const column = Math.floor((x - at.left) / at.cw);
  const line = Math.floor((y - at.top) / at.ch);
  if (column < 0 || column >= at.columns || line < 0 || line >= at.rows) return null;
  return [at.up ? at.rows - 1 - line : line, column];
}

/** Draw all of it but what is selected. data: {values, marks?}. */
export function draw(ctx, at, spec, data, colours) {
  ctx.clearRect(0, 0, at.width, at.height);
  ctx.fillStyle = colours.ground;
  ctx.fillRect(0, 0, at.width, at.height);
  for (let r = 0; r < at.rows; r++) for (let c = 0; c < at.columns; c++) cell(ctx, at, spec, data, colours, r, c);
  edges(ctx, at, spec, colours);
  labels(ctx, at, spec, colours);
  if (!spec.scale.hidden) bar(ctx, at, spec, colours);
}

/** Draw what is selected: state {brush, selected}. */
export function drawState(ctx, at, colours, { brush, selected }) {
  if (brush) frame(ctx, at, brush.rows, brush.columns, colours.accent, [5, 3]);
  if (selected) frame(ctx, at, [selected.row, selected.row], [selected.column, selected.column], colours.mark, []);
}

function cell(ctx, at, spec, data, colours, r, c) {
  if (spec.outside?.(r, c)) return;
  const [x, y] = corner(at, r, c);
  const i = r * at.columns + c;
  const value = data.values[i];
  const mark = data.marks ? data.marks[i] : EXACT;
  const gap = at.cw > 9 && at.ch > 9 ? 1 : 0;
  const [w, h] = [at.cw - gap, at.ch - gap];
  const rgb = mark === NOT_RUN ? null : colour(value, spec.scale, colours.dark);
  if (rgb === null) {
    hatch(ctx, x, y, w, h, colours.hatch);
  } else {
    ctx.fillStyle = css(rgb);
    ctx.fillRect(x, y, w, h);
  }
  if (mark === ESTIMATED && rgb) cornerMark(ctx, x, y, Math.min(w, h), inkOn(rgb));
  if (mark === UNDER_WAY) dots(ctx, x, y, w, h, rgb ? inkOn(rgb) : colours.ink);
  if (spec.texts && at.cw > 18) {
    ctx.font = SMALL;
    ctx.fillStyle = rgb ? inkOn(rgb) : colours.ink;
    ctx.textAlign = "center";
    ctx.textBaseline = "middle";
    ctx.fillText(fitted(legible(spec.texts[r][c]), w - 3, (text) => ctx.measureText(text).width), x + w / 2, y + h / 2 + 0.5);
  }
}

function hatch(ctx, x, y, w, h, ink) {
  ctx.save();
  ctx.beginPath();
  ctx.rect(x, y, w, h);
  ctx.clip();
  ctx.strokeStyle = ink;
  ctx.lineWidth = 0.7;
  ctx.beginPath();
  for (let d = -h; d < w; d += 6) {
    ctx.moveTo(x + d, y + h);
    ctx.lineTo(x + d + h, y);
  }
  ctx.stroke();
  ctx.restore();
}

function cornerMark(ctx, x, y, size, ink) {
  const s = Math.max(4, size * 0.34);
  ctx.fillStyle = ink;
  ctx.beginPath();
  ctx.moveTo(x, y);
  ctx.lineTo(x + s, y);
  ctx.lineTo(x, y + s);
  ctx.fill();
}

function dots(ctx, x, y, w, h, ink) {
  ctx.fillStyle = ink;
  for (const part of [0.3, 0.5, 0.7]) {
    ctx.beginPath();
    ctx.arc(x + w * part, y + h / 2, Math.max(1, Math.min(w, h) * 0.07), 0, 7);
    ctx.fill();
  }
}

/** The edge of a local layer's window, as a stair: spec.window positions, in a matrix of queries by keys. */
function edges(ctx, at, spec, colours) {
  if (!spec.window || spec.window >= at.columns) return;
  ctx.strokeStyle = colours.accent;
  ctx.lineWidth = 1.5;
  ctx.beginPath();
  for (let q = spec.window; q < at.rows; q++) {
    const [x, y] = corner(at, q, q - spec.window + 1);
    if (q === spec.window) ctx.moveTo(at.left, y);
    ctx.lineTo(x, y);
    ctx.lineTo(x, y + at.ch);
  }
  ctx.stroke();
}

function labels(ctx, at, spec, colours) {
  ctx.font = FONT;
  ctx.textBaseline = "middle";
  const measure = (text) => ctx.measureText(text).width;
  const rowsShown = every(at.ch, 13);
  spec.rows.forEach((label, r) => {
    if (r % rowsShown) return;
    const [x, y] = corner(at, r, 0);
    nameAt(ctx, label, { x: x - 6, y: y + at.ch / 2, align: "right", room: at.room, thick: at.ch * rowsShown }, measure, colours);
  });
  const columnsShown = every(at.cw, at.slanted ? 13 : 1);
  spec.columns.forEach((label, c) => {
    if (c % columnsShown) return;
    const x = at.left + (c + 0.5) * at.cw;
    ctx.save();
    ctx.translate(x, at.bottom + 8);
    if (at.slanted) ctx.rotate(-TURN);
    // Turned, the first labels reach to the left of their column, where the canvas ends.
    const room = at.slanted ? Math.min(LONGEST, (x - 4) / Math.cos(TURN)) : at.cw;
    const where = at.slanted ? { x: 0, y: 2, align: "right", thick: at.cw * columnsShown * Math.sin(TURN) } : { x: 0, y: 4, align: "center", thick: 16 };
    nameAt(ctx, label, { ...where, room }, measure, colours);
    ctx.restore();
  });
  ctx.fillStyle = colours.faint;
  ctx.textAlign = "center";
  if (spec.column_axis) ctx.fillText(spec.column_axis, (at.left + at.right) / 2, at.height - 9);
  if (spec.row_axis) upright(ctx, spec.row_axis, 10, (at.top + at.bottom) / 2);
}

/** A label at a point; a special token in a frame of its own, no thicker than there is room for. */
function nameAt(ctx, label, { x, y, align, room, thick }, measure, colours) {
  const text = fitted(labelOf(label), label.special ? room - 8 : room, measure);
  ctx.fillStyle = colours.ink;
  ctx.textAlign = align;
  ctx.fillText(text, label.special && align === "right" ? x - 4 : x, y);
  if (!label.special) return;
  const width = measure(text) + 7;
  const height = Math.min(16, Math.max(11, thick));
  ctx.strokeStyle = colours.faint;
  ctx.lineWidth = 1;
  ctx.strokeRect(align === "right" ? x - width : x - width / 2, y - height / 2 - 0.5, width, height);
}

function upright(ctx, text, x, y) {
  ctx.save();
  ctx.translate(x, y);
  ctx.rotate(-Math.PI / 2);
  ctx.fillText(text, 0, 0);
  ctx.restore();
}

function every(size, least) {
  return Math.max(1, Math.ceil(least / size));
}

function bar(ctx, at, spec, colours) {
  const x = at.right + 14;
  const height = Math.min(180, Math.max(40, at.bottom - at.top));
  for (let i = 0; i < height; i++) {
    ctx.fillStyle = css(colourAt(1 - i / height, spec.scale, colours.dark));
    ctx.fillRect(x, at.top + i, 12, 1.5);
  }
  ctx.strokeStyle = colours.line;
  ctx.lineWidth = 1;
  ctx.strokeRect(x, at.top, 12, height);
  ctx.font = FONT;
  ctx.fillStyle = colours.ink;
  ctx.textAlign = "left";
  ctx.textBaseline = "middle";
  for (const tick of ticksOf(spec.scale, Math.max(2, Math.floor(height / 34)))) {
    ctx.fillText(format(tick, spec.scale.low < 0), x + 16, Math.max(at.top + 4, at.top + height * (1 - place(tick, spec.scale))));
  }
  if (!spec.unit) return;
  ctx.fillStyle = colours.faint;
  ctx.textAlign = "center";
  const text = fitted(spec.unit, at.height - 8, (t) => ctx.measureText(t).width);
  const half = ctx.measureText(text).width / 2;
  upright(ctx, text, at.right + 86, Math.min(Math.max(at.top + height / 2, half + 2), at.height - half - 2));
}

function frame(ctx, at, rows, columns, ink, dash) {
  const a = corner(at, at.up ? rows[1] : rows[0], columns[0]);
  const b = corner(at, at.up ? rows[0] : rows[1], columns[1]);
  ctx.save();
  ctx.setLineDash(dash);
  ctx.lineWidth = 2;
  ctx.strokeStyle = ink;
  ctx.strokeRect(a[0], a[1], b[0] + at.cw - a[0] - 1, b[1] + at.ch - a[1] - 1);
  ctx.restore();
}
