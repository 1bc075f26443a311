// A labelled matrix on a canvas: where its cells are, what is drawn in them, which of them a point is in.

import { colour, css, format, inkOn, ticks } from "./scale.js";
import { cut, shown } from "./tokens.js";

export const NOT_RUN = 0, ESTIMATED = 1, EXACT = 2, UNDER_WAY = 3;
const FONT = "12px system-ui, sans-serif";
const MONO = "12px ui-monospace, monospace";

/** A label as it is drawn: a token with its spaces visible, a special one in a frame, anything else as it is. */
export function labelOf(label) {
  const text = label.token ? shown(label.label) : label.label;
  return (label.special ? `[${text}]` : text) + (label.kind === "global" ? " ◆" : "");
}

/** Where everything is, in CSS pixels, for a canvas of this width. measure: a text to its width. */
export function layoutOf(spec, width, measure, { most = 34, least = 6 } = {}) {
  const rows = spec.rows.length;
  const columns = spec.columns.length;
  const left = Math.min(150, 14 + Math.max(20, ...spec.rows.map((r) => measure(labelOf(r))))) + (spec.row_axis ? 18 : 0);
  const right = spec.scale.hidden ? 8 : 78;
  const free = Math.max(columns * least, width - left - right);
  const wide = spec.texts ? 74 : most;
  const cw = Math.min(wide, free / columns);
  const ch = Math.min(spec.texts ? 24 : most, Math.max(least, spec.square ? cw : 22));
  const longest = Math.max(10, ...spec.columns.map((c) => measure(labelOf(c))));
  const slanted = longest > cw - 4;
  const bottom = (slanted ? Math.min(110, longest * 0.75 + 14) : 20) + (spec.column_axis ? 18 : 0);
  return {
    left, top: 6, cw, ch, rows, columns, slanted, up: Boolean(spec.up),
    width: left + cw * columns + right, height: 6 + ch * rows + bottom, bottom: 6 + ch * rows,
    right: left + cw * columns,
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

/** Draw all of it. data: {values, marks?}; state: {selected, brush, hover}. */
export function draw(ctx, at, spec, data, colours, state = {}) {
  ctx.clearRect(0, 0, at.width, at.height);
  ctx.fillStyle = colours.ground;
  ctx.fillRect(0, 0, at.width, at.height);
  for (let r = 0; r < at.rows; r++) for (let c = 0; c < at.columns; c++) cell(ctx, at, spec, data, colours, r, c);
  edges(ctx, at, spec, colours);
  labels(ctx, at, spec, colours);
  if (!spec.scale.hidden) bar(ctx, at, spec, colours);
  if (state.brush) frame(ctx, at, state.brush.rows, state.brush.columns, colours.accent, [5, 3]);
  if (state.selected) frame(ctx, at, [state.selected.row, state.selected.row], [state.selected.column, state.selected.column], colours.mark, []);
}

function cell(ctx, at, spec, data, colours, r, c) {
  const [x, y] = corner(at, r, c);
  const i = r * at.columns + c;
  const value = data.values[i];
  const mark = data.marks ? data.marks[i] : EXACT;
  const gap = at.cw > 9 && at.ch > 9 ? 1 : 0;
  const [w, h] = [at.cw - gap, at.ch - gap];
  if (spec.outside?.(r, c)) return;
  const rgb = mark === NOT_RUN ? null : colour(value, spec.scale, colours.dark);
  if (rgb === null) {
    hatch(ctx, x, y, w, h, colours.hatch);
  } else {
    ctx.fillStyle = css(rgb);
    ctx.fillRect(x, y, w, h);
  }
  if (mark === ESTIMATED && rgb) corner_mark(ctx, x, y, Math.min(w, h), inkOn(rgb));
  if (mark === UNDER_WAY) dots(ctx, x, y, w, h, rgb ? inkOn(rgb) : colours.ink);
  if (spec.texts && at.cw > 18) {
    ctx.font = MONO;
    ctx.fillStyle = rgb ? inkOn(rgb) : colours.ink;
    ctx.textAlign = "center";
    ctx.textBaseline = "middle";
    ctx.fillText(cut(shown(spec.texts[r][c]), Math.floor((w - 4) / 7.3)), x + w / 2, y + h / 2 + 0.5);
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

function corner_mark(ctx, x, y, size, ink) {
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
  const rowsShown = every(at.ch, 13);
  spec.rows.forEach((label, r) => {
    if (r % rowsShown) return;
    ctx.textAlign = "right";
    ctx.fillStyle = colours.ink;
    const [x, y] = corner(at, r, 0);
    ctx.fillText(cut(labelOf(label), 20), x - 6, y + at.ch / 2);
  });
  const columnsShown = every(at.cw, at.slanted ? 13 : 1);
  spec.columns.forEach((label, c) => {
    if (c % columnsShown) return;
    ctx.save();
    ctx.fillStyle = colours.ink;
    ctx.translate(at.left + (c + 0.5) * at.cw, at.bottom + 8);
    if (at.slanted) ctx.rotate(-Math.PI / 3.6);
    ctx.textAlign = at.slanted ? "right" : "center";
    ctx.fillText(cut(labelOf(label), 20), 0, at.slanted ? 2 : 4);
    ctx.restore();
  });
  ctx.fillStyle = colours.faint;
  ctx.textAlign = "center";
  if (spec.column_axis) ctx.fillText(spec.column_axis, (at.left + at.right) / 2, at.height - 9);
  if (spec.row_axis) {
    ctx.save();
    ctx.translate(10, (at.top + at.bottom) / 2);
    ctx.rotate(-Math.PI / 2);
    ctx.fillText(spec.row_axis, 0, 0);
    ctx.restore();
  }
}

function every(size, least) {
  return Math.max(1, Math.ceil(least / size));
}

function bar(ctx, at, spec, colours) {
  const x = at.right + 14;
  const height = Math.min(180, Math.max(40, at.bottom - at.top));
  const { low, high } = spec.scale;
  for (let i = 0; i < height; i++) {
    ctx.fillStyle = css(colour(high - ((high - low) * i) / height, spec.scale, colours.dark));
    ctx.fillRect(x, at.top + i, 12, 1.5);
  }
  ctx.strokeStyle = colours.line;
  ctx.strokeRect(x, at.top, 12, height);
  ctx.font = FONT;
  ctx.fillStyle = colours.ink;
  ctx.textAlign = "left";
  ctx.textBaseline = "middle";
  for (const tick of ticks(low, high, Math.max(2, Math.floor(height / 34)))) {
    ctx.fillText(format(tick, low < 0), x + 16, at.top + (height * (high - tick)) / (high - low || 1));
  }
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
