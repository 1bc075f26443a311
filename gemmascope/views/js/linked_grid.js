// A grid with framed cells, and lines along the row and the column that the pointer, or another part of the view, is at.
//
// linkedGrid(el, spec, data, on, options): as grid, and
//   spec.outlined           cells to be framed, [[row, column]]
//   on.hover(row, column)   when the pointer comes to a cell; (null, null) when it leaves
//   cross(row, column)      lines that another part asks for; null for none. The pointer's own go first.

import { grid } from "./grid.js";
import { cellCorner, frame } from "./matrix.js";

/** Draw lines along a row and a column, either null. */
function crosshair(ctx, layout, colours, { row, column }) {
  const [width, height] = [layout.right - layout.left, layout.bottom - layout.top];
  ctx.save();
  ctx.fillStyle = colours.accent;
  const band = (x, y, w, h, tick) => {
    ctx.globalAlpha = 0.1;
    ctx.fillRect(x, y, w, h);
    ctx.globalAlpha = 1;
    for (const part of [[x, y, w, 1], [x, y + h - 1, w, 1], [x, y, 1, h], [x + w - 1, y, 1, h], tick]) if (Math.min(w, h) > 4 || part === tick) ctx.fillRect(...part);
  };
  if (row !== null && row >= 0 && row < layout.rows) {
    const [x, y] = cellCorner(layout, row, 0);
    band(x, y, width, layout.ch, [layout.left - 5, y, 3, layout.ch]);
  }
  if (column !== null && column >= 0 && column < layout.columns) {
    const [x] = cellCorner(layout, 0, column);
    band(x, layout.top, layout.cw, height, [x, layout.bottom + 1, layout.cw, 3]);
  }
  ctx.restore();
}

export function linkedGrid(el, spec, data, on = {}, options = {}) {
  let hovered = null; // the cell under the pointer, [row, column]
  let crossed = null; // the lines that another part asks for
  const over = (ctx, layout, colours, { outlined = [] }) => {
    for (const [r, c] of outlined) frame(ctx, layout, [r, r], [c, c], colours.lead, []);
    const cross = hovered ? { row: hovered[0], column: hovered[1] } : crossed;
    if (cross) crosshair(ctx, layout, colours, cross);
  };
  const point = (cell) => {
    if (cell?.join() === hovered?.join()) return;
    hovered = cell;
    drawn.redraw();
    on.hover?.(...(cell ?? [null, null]));
  };
  const drawn = grid(el, spec, data, { ...on, point }, { ...options, over });
  return {
    ...drawn,
    cross(row, column) {
      if (crossed?.row === row && crossed?.column === column) return;
      crossed = row === null && column === null ? null : { row, column };
      drawn.redraw();
    },
  };
}
