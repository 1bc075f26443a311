// The selection in a grid and how keys and the pointer change it, without any drawing.

/** The first state: one cell, no range. */
export function initialState() {
  return { row: 0, column: 0, from: null };
}

/** The selected range, {rows: [first, last], columns: [first, last]}; null if there is none. */
export function brushedCells(state) {
  if (state.from === null) return null;
  const sorted = (a, b) => (a < b ? [a, b] : [b, a]);
  return { rows: sorted(state.from.row, state.row), columns: sorted(state.from.column, state.column) };
}

const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

/**
 * The state after a key, or null if the key does nothing. up: whether rows are drawn from the bottom upwards.
 * With shift, arrow keys extend a range from the present cell.
 */
export function stateAfterKey(state, name, { rows, columns, shift = false, ctrl = false, up = false }) {
  if (name === "Escape") return { ...state, from: null };
  let row = state.row;
  let column = state.column;
  if (name in STEPS) {
    row += up ? -STEPS[name][0] : STEPS[name][0];
    column += STEPS[name][1];
  } else if (name === "Home") [row, column] = [ctrl ? 0 : row, 0];
  else if (name === "End") [row, column] = [ctrl ? rows - 1 : row, columns - 1];
  else if (name === "PageUp") row = up ? rows - 1 : 0;
  else if (name === "PageDown") row = up ? 0 : rows - 1;
  else return null;
  const from = shift ? state.from ?? { row: state.row, column: state.column } : null;
  return { row: within(row, rows), column: within(column, columns), from };
}

/** The state after the pointer was pressed on a cell, or dragged to one. */
export function stateAfterPointer(state, row, column, dragged) {
  const from = dragged ? state.from ?? { row: state.row, column: state.column } : null;
  return { row, column, from };
}

function within(n, size) {
  return Math.min(size - 1, Math.max(0, n));
}
