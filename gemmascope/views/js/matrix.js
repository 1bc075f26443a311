// A labelled matrix on a canvas: its layout, its drawing, and the cell at a point.

import { barTicks, colour, colourAt, css, format, inkOn, fractionAt, mixed } from "./scale.js";
import { charactersOf, fitted, legible, legibleLine } from "./tokens.js";

export const NOT_RUN = 0, ESTIMATED = 1, EXACT = 2, UNDER_WAY = 3;
export const FONT = "12px system-ui, sans-serif";
const SMALL = "11.5px system-ui, sans-serif";
// An estimate is pale, this far on the way to the colour of no effect, with its own colour in the middle, over this share of
// the cell's width and height. Cells of fewer pixels than ROOM have no room for a middle, and those of fewer than FRAMED none for
// a frame around it.
const PALE = 0.65, CORE = 0.42, ROOM = 9, FRAMED = 14;
// Column labels that do not fit are rotated by TURN, and are at most LONGEST pixels long.
const TURN = Math.PI / 3.6, LONGEST = 126;
// Browsers do not draw canvases wider than WIDEST everywhere. A square matrix higher than HIGHEST cannot be seen at once, so
// it is no wider than necessary.
const WIDEST = 12000, HIGHEST = 760, LARGEST = 1600;

// The most pixels of a cell with a text; longer ones are cut.
const WIDEST_TEXT = 76;

/** The width of the longest text of a grid's cells. */
function textWidth(texts, measure) {
  const all = new Set(texts.flat());
  return Math.max(0, ...Array.from(all, (text) => measure(legible(text))));
}

/** A label as it is drawn: a token with its spaces visible, and a mark for global layers. */
export function labelOf(label) {
  return (label.token ? legible(label.label) : legibleLine(label.label)) + (label.kind === "global" ? " ◆" : "");
}

/**
 * What is drawn along an axis: [{label, text, at, of}], at: the index that it is drawn at, of: over how many. Tokens that are
 * the bytes of one character have that character once, over all of them.
 */
export function namesOf(labels) {
  const characters = charactersOf(labels.map(({ label }) => label));
  const one = (label, i) => ({ label, text: labelOf(label), at: i, of: 1 });
  return labels.flatMap((label, i) => {
    if (!characters[i]) return [one(label, i)];
    const { text, nth, of } = characters[i];
    return nth ? [] : [{ label, text: legible(text), at: i, of }];
  });
}

/**
 * The layout, in CSS pixels, for a page of this width; the matrix may be wider. measure: the width of a text. most, least: the
 * width of a cell. tall: its height, at most. bare: whether the columns' labels are left to the page.
 */
export function layoutOf(spec, width, measure, { most = 34, least = spec.texts ? 40 : 6, tall = 22, bare = false } = {}) {
  const rows = spec.rows.length;
  const columns = spec.columns.length;
  const axis = spec.row_axis ? 18 : 0;
  const longestRow = Math.max(20, ...namesOf(spec.rows).map(({ text, label }) => measure(text) + (label.special ? 8 : 0)));
  const left = Math.ceil(Math.min(longestRow, Math.max(90, width * 0.3))) + 14 + axis;
  const right = spec.scale.hidden ? 8 : spec.unit ? 96 : 78;
  const needed = spec.texts ? Math.min(WIDEST_TEXT, textWidth(spec.texts, measure) + 6) : 0;
  const narrowest = Math.min(Math.max(least, needed), (spec.square ? LARGEST : WIDEST) / columns);
  const widest = spec.texts ? WIDEST_TEXT : spec.square ? Math.max(narrowest, Math.min(most, HIGHEST / rows)) : most;
  const cw = Math.min(widest, Math.max(narrowest, (width - left - right) / columns));
  const ch = spec.square ? cw : Math.min(most, spec.texts ? 24 : tall);
  const longest = Math.max(10, ...namesOf(spec.columns).map(({ text, label }) => measure(text) + (label.special ? 8 : 0)));
  const slanted = longest > cw - 4;
  const foot = bare ? 2 : (slanted ? Math.min(LONGEST, longest) * Math.sin(TURN) + 18 : 20) + (spec.column_axis ? 18 : 0);
  return {
    left, top: 6, cw, ch, rows, columns, slanted, bare, up: Boolean(spec.up),
    width: left + cw * columns + right, height: 6 + ch * rows + foot, bottom: 6 + ch * rows,
    right: left + cw * columns, room: left - axis - 12,
  };
}

/** The top left corner of a cell: [x, y]. */
export function cellCorner(layout, row, column) {
  const y = layout.up ? layout.rows - 1 - row : row;
  return [layout.left + column * layout.cw, layout.top + y * layout.ch];
}

/** The cell at a point, [row, column]; null outside. */
export function cellAtPoint(layout, x, y) {
  const column = Math.floor((x - layout.left) / layout.cw);
  const line = Math.floor((y - layout.top) / layout.ch);
  if (column < 0 || column >= layout.columns || line < 0 || line >= layout.rows) return null;
  return [layout.up ? layout.rows - 1 - line : line, column];
}

/** Draw everything but the selection. data: {values, marks?}. */
export function draw(ctx, layout, spec, data, colours) {
  ctx.clearRect(0, 0, layout.width, layout.height);
  ctx.fillStyle = colours.ground;
  ctx.fillRect(0, 0, layout.width, layout.height);
  for (let r = 0; r < layout.rows; r++) for (let c = 0; c < layout.columns; c++) cell(ctx, layout, spec, data, colours, r, c);
  edges(ctx, layout, spec, colours);
  labels(ctx, layout, spec, colours);
  if (!spec.scale.hidden) bar(ctx, layout, spec, colours);
}

/** Draw the selection: {brush, selected}, and the column that is lit. */
export function drawState(ctx, layout, colours, { brush, selected, lit = null }) {
  if (lit !== null) frame(ctx, layout, [0, layout.rows - 1], [lit, lit], colours.faint, [2, 3]);
  if (brush) frame(ctx, layout, brush.rows, brush.columns, colours.accent, [5, 3]);
  if (selected) frame(ctx, layout, [selected.row, selected.row], [selected.column, selected.column], colours.mark, []);
}

function cell(ctx, layout, spec, data, colours, r, c) {
  if (spec.outside?.(r, c)) return;
  const [x, y] = cellCorner(layout, r, c);
  const i = r * layout.columns + c;
  const value = data.values[i];
  const mark = data.marks ? data.marks[i] : EXACT;
  const gap = layout.cw > 9 && layout.ch > 9 ? 1 : 0;
  const [w, h] = [layout.cw - gap, layout.ch - gap];
  const own = mark === NOT_RUN ? null : colour(value, spec.scale, colours.dark);
  const rgb = own && mark !== EXACT ? paleOf(own, spec.scale, colours.dark) : own;
  if (rgb === null) {
    hatch(ctx, x, y, w, h, colours);
  } else {
    ctx.fillStyle = css(rgb);
    ctx.fillRect(x, y, w, h);
  }
  if (mark === ESTIMATED && own && Math.min(w, h) >= ROOM) core(ctx, x, y, w, h, own, colours);
  if (mark === UNDER_WAY) dots(ctx, x, y, w, h, rgb ? inkOn(rgb) : colours.ink);
  if (spec.texts && layout.cw > 18) {
    ctx.font = SMALL;
    ctx.fillStyle = rgb ? inkOn(rgb) : colours.ink;
    ctx.textAlign = "center";
    ctx.textBaseline = "middle";
    ctx.globalAlpha = spec.faded?.(r, c) ? 0.45 : 1;
    ctx.fillText(fitted(legible(spec.texts[r][c]), w - 3, (text) => ctx.measureText(text).width), x + w / 2, y + h / 2 + 0.5);
    ctx.globalAlpha = 1;
  }
}

/** The pale colour of a cell whose number is an estimate. */
export function paleOf(rgb, scale, dark) {
  return mixed(rgb, colourAt(scale.kind === "diverging" ? 0.5 : 0, scale, dark), PALE);
}

/** The middle of an estimate: the number's colour on the scale, framed, so that it is seen where that is next to nothing. */
function core(ctx, x, y, w, h, rgb, colours) {
  const [a, b] = [Math.round(w * CORE), Math.round(h * CORE)];
  const [left, top] = [x + Math.round((w - a) / 2), y + Math.round((h - b) / 2)];
  ctx.fillStyle = css(rgb);
  ctx.fillRect(left, top, a, b);
  if (Math.min(w, h) < FRAMED) return;
  ctx.strokeStyle = colours.hatch;
  ctx.lineWidth = 1;
  ctx.strokeRect(left + 0.5, top + 0.5, a - 1, b - 1);
}

/** A cell without a number: a light tint with faint lines, so that it is neither a zero nor a number. */
function hatch(ctx, x, y, w, h, colours) {
  ctx.fillStyle = colours.tint;
  ctx.fillRect(x, y, w, h);
  ctx.save();
  ctx.beginPath();
  ctx.rect(x, y, w, h);
  ctx.clip();
  ctx.strokeStyle = colours.hatch;
  ctx.lineWidth = 1;
  ctx.beginPath();
  for (let d = -h; d < w; d += 6) {
    ctx.moveTo(x + d, y + h);
    ctx.lineTo(x + d + h, y);
  }
  ctx.stroke();
  ctx.restore();
}

function dots(ctx, x, y, w, h, ink) {
  ctx.fillStyle = ink;
  for (const part of [0.3, 0.5, 0.7]) {
    ctx.beginPath();
    ctx.arc(x + w * part, y + h / 2, Math.max(1, Math.min(w, h) * 0.07), 0, 7);
    ctx.fill();
  }
}

/** The edge of a local layer's window of spec.window positions, as stairs in a matrix of queries by keys, or in a part of one
 *  that begins at spec.from, [query, key]. */
function edges(ctx, layout, spec, colours) {
  const [firstQuery, firstKey] = spec.from ?? [0, 0];
  if (!spec.window || spec.window >= firstQuery + layout.rows) return;
  ctx.strokeStyle = colours.accent;
  ctx.lineWidth = 1.5;
  ctx.beginPath();
  let begun = false;
  for (let r = 0; r < layout.rows; r++) {
    const key = firstQuery + r - spec.window + 1 - firstKey; // the first that this query sees
    if (key < 1) continue;
    const column = Math.min(key, layout.columns);
    const [x, y] = cellCorner(layout, r, column);
    if (!begun) ctx.moveTo(r ? x - layout.cw : x, y);
    begun = true;
    ctx.lineTo(x, y);
    if (key > layout.columns) break;
    ctx.lineTo(x, y + layout.ch);
  }
  ctx.stroke();
}

function labels(ctx, layout, spec, colours) {
  ctx.font = FONT;
  ctx.textBaseline = "middle";
  const measure = (text) => ctx.measureText(text).width;
  const rowsShown = every(layout.ch, 13);
  for (const name of namesOf(spec.rows)) {
    if (name.at % rowsShown && name.of === 1) continue;
    const [x, y] = cellCorner(layout, name.at, 0);
    const last = cellCorner(layout, name.at + name.of - 1, 0)[1];
    nameAt(ctx, name, { x: x - 6, y: (y + last + layout.ch) / 2, align: "right", room: layout.room, thick: layout.ch * rowsShown }, measure, colours);
    if (name.of > 1) underlined(ctx, colours, [x - 4, Math.min(y, last) + 1, 1, Math.abs(last - y) + layout.ch - 2]);
  }
  upright(ctx, spec.row_axis ?? "", 10, (layout.top + layout.bottom) / 2, colours.faint);
  if (layout.bare) return;
  const columnsShown = every(layout.cw, layout.slanted ? 13 : 1);
  for (const name of namesOf(spec.columns)) {
    if (name.at % columnsShown && name.of === 1) continue;
    const x = layout.left + (name.at + name.of / 2) * layout.cw;
    if (name.of > 1) underlined(ctx, colours, [layout.left + name.at * layout.cw + 1, layout.bottom + 2, name.of * layout.cw - 2, 1]);
    ctx.save();
    ctx.translate(x, layout.bottom + 8);
    if (layout.slanted) ctx.rotate(-TURN);
    // Rotated, the first labels would reach beyond the left edge of the canvas.
    const room = layout.slanted ? Math.min(LONGEST, (x - 4) / Math.cos(TURN)) : layout.cw * name.of;
    const where = layout.slanted ? { x: 0, y: 2, align: "right", thick: layout.cw * columnsShown * Math.sin(TURN) } : { x: 0, y: 4, align: "center", thick: 16 };
    nameAt(ctx, name, { ...where, room }, measure, colours);
    ctx.restore();
  }
  ctx.fillStyle = colours.faint;
  ctx.textAlign = "center";
  if (spec.column_axis) ctx.fillText(spec.column_axis, (layout.left + layout.right) / 2, layout.height - 9);
}

/** A line along the tokens of one character. */
function underlined(ctx, colours, box) {
  ctx.fillStyle = colours.faint;
  ctx.fillRect(...box);
}

/** A name at a point; a special token in a frame, which fits into `thick` pixels. */
function nameAt(ctx, { label, text: whole }, { x, y, align, room, thick }, measure, colours) {
  const text = fitted(whole, label.special ? room - 8 : room, measure);
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

function upright(ctx, text, x, y, ink) {
  ctx.save();
  ctx.fillStyle = ink;
  ctx.textAlign = "center";
  ctx.translate(x, y);
  ctx.rotate(-Math.PI / 2);
  ctx.fillText(text, 0, 0);
  ctx.restore();
}

function every(size, least) {
  return Math.max(1, Math.ceil(least / size));
}

function bar(ctx, layout, spec, colours) {
  const x = layout.right + 14;
  const height = Math.min(180, Math.max(40, layout.bottom - layout.top));
  for (let i = 0; i < height; i++) {
    ctx.fillStyle = css(colourAt(1 - i / height, spec.scale, colours.dark));
    ctx.fillRect(x, layout.top + i, 12, 1.5);
  }
  ctx.strokeStyle = colours.line;
  ctx.lineWidth = 1;
  ctx.strokeRect(x, layout.top, 12, height);
  ctx.font = FONT;
  ctx.fillStyle = colours.ink;
  ctx.textAlign = "left";
  ctx.textBaseline = "middle";
  for (const tick of barTicks(spec.scale, height)) {
    const y = layout.top + height * (1 - fractionAt(tick, spec.scale));
    ctx.fillText(format(tick, spec.scale.low < 0), x + 16, Math.min(layout.top + height - 5, Math.max(layout.top + 6, y)));
  }
  if (!spec.unit) return;
  ctx.fillStyle = colours.faint;
  ctx.textAlign = "center";
  const text = fitted(spec.unit, layout.height - 8, (t) => ctx.measureText(t).width);
  const half = ctx.measureText(text).width / 2;
  upright(ctx, text, layout.right + 86, Math.min(Math.max(layout.top + height / 2, half + 2), layout.height - half - 2), colours.faint);
}

/** A frame around cells, rows and columns each [first, last]. */
export function frame(ctx, layout, rows, columns, ink, dash) {
  const a = cellCorner(layout, layout.up ? rows[1] : rows[0], columns[0]);
  const b = cellCorner(layout, layout.up ? rows[0] : rows[1], columns[1]);
  ctx.save();
  ctx.setLineDash(dash);
  ctx.lineWidth = 2;
  ctx.strokeStyle = ink;
  ctx.strokeRect(a[0], a[1], b[0] + layout.cw - a[0] - 1, b[1] + layout.ch - a[1] - 1);
  ctx.restore();
}
