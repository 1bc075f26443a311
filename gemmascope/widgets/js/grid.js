// The grid: a labelled matrix that is looked at, pointed at, walked through with keys, and read as a table.
//
// grid(el, spec, data, on) draws it in el and returns
//   update({spec?, values?, marks?})   other labels, numbers or marks, without losing the selection
//   select(row, column)                select a cell, as a click does, but tell nobody
//   selection()                        {row, column, brush: {rows, columns} | null}
//   canvas, destroy()
// spec: see packing.py; data: {values, marks?} flat, row by row. on: what is called, each optional:
//   select(row, column), brush(rows, columns), clear(), activate(row, column) for Enter or a double click.

import { draw, hit, labelOf, layoutOf, corner, ESTIMATED, NOT_RUN, UNDER_WAY } from "./matrix.js";
import { make, paint, rootIn, sized, tooltip, whenSeen } from "./page.js";
import { format } from "./scale.js";
import { brushed, key, pointed, start } from "./select.js";
import { onTheme, theme } from "./theme.js";
import { shown } from "./tokens.js";

const WORDS = { [NOT_RUN]: "not run", [ESTIMATED]: "estimate", [UNDER_WAY]: "under way" };

/** What a cell says: its row and column in words, its number, whether that is an estimate. */
export function says(spec, data, row, column) {
  const i = row * spec.columns.length + column;
  const mark = data.marks ? data.marks[i] : 2;
  const [r, c] = [spec.rows[row], spec.columns[column]];
  const name = (axis, label) => `${axis} ${label.hint ?? labelOf(label)}`.trim();
  const value = mark === NOT_RUN ? "not run" : format(data.values[i], spec.scale.low < 0);
  const unit = spec.unit && value !== "not run" ? ` ${spec.unit}` : "";
  const lines = [`${name(spec.row_axis ?? "", r)}, ${name(spec.column_axis ?? "", c)}`, value + unit];
  if (WORDS[mark] && value !== "not run") lines.push(WORDS[mark]);
  if (spec.texts) lines.push(shown(spec.texts[row][column]));
  if (spec.hover) lines.push(...spec.hover[row][column]);
  return lines.join("\n");
}

export function grid(el, spec, data, on = {}, options = {}) {
  const root = rootIn(el, spec);
  const canvas = make("canvas", { tabindex: "0", role: "application", "aria-roledescription": "heat map", "data-lm-suppress-shortcuts": "true" });
  const live = make("div", { class: "gs-live", "aria-live": "polite" });
  const table = make("div", { class: "gs-scroll", hidden: true });
  const toggle = make("button", { type: "button", "aria-pressed": "false", onclick: () => showTable(table.hidden) }, "Show as table");
  const bar = make("div", { class: "gs-bar" }, toggle);
  root.append(canvas, bar, table, live);
  const tip = tooltip(root);
  let colours, at, ctx;
  let state = start();
  let picked = false;
  let dragging = false;

  function redraw() {
    colours = theme();
    paint(root, colours);
    const width = Math.max(260, root.clientWidth || el.clientWidth || 800);
    const measure = (text) => measured(canvas, text);
    at = layoutOf(spec, width, measure, options);
    ctx = sized(canvas, at.width, at.height);
    canvas.setAttribute("aria-label", `${spec.title ?? "grid"}: ${at.rows} by ${at.columns} cells. Arrow keys move, shift brushes, Enter chooses, Escape clears`);
    again();
    el.dataset.gemmascopeReady = "1";
  }
  function again() {
    draw(ctx, at, spec, data, colours, { selected: picked ? state : null, brush: brushed(state) });
  }
  function tell(text) {
    live.textContent = text;
  }
  function go(next, quiet = false) {
    state = next;
    picked = true;
    again();
    const brush = brushed(state);
    if (brush) tell(`${brush.rows[1] - brush.rows[0] + 1} by ${brush.columns[1] - brush.columns[0] + 1} cells`);
    else tell(says(spec, data, state.row, state.column));
    if (quiet) return;
    if (brush) on.brush?.(brush.rows, brush.columns);
    else on.select?.(state.row, state.column);
  }
  function pointOf(event) {
    const box = canvas.getBoundingClientRect();
    const scale = at.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  }
  function showTable(yes) {
    table.hidden = !yes;
    toggle.setAttribute("aria-pressed", String(yes));
    if (yes) table.replaceChildren(tableOf(spec, data));
  }

  canvas.addEventListener("pointerdown", (event) => {
    const cell = hit(at, ...pointOf(event));
    canvas.focus({ preventScroll: true });
    if (!cell) return;
    dragging = true;
    canvas.setPointerCapture(event.pointerId);
    state = pointed(state, ...cell, event.shiftKey);
    picked = true;
    again();
  });
  canvas.addEventListener("pointermove", (event) => {
    const cell = hit(at, ...pointOf(event));
    if (dragging && cell && (cell[0] !== state.row || cell[1] !== state.column)) {
      state = pointed(state, ...cell, true);
      again();
    }
    if (!cell || spec.outside?.(...cell)) return tip.hide();
    const box = root.getBoundingClientRect();
    tip.show(says(spec, data, ...cell), event.clientX - box.left, event.clientY - box.top, colours);
  });
  canvas.addEventListener("pointerup", () => {
    if (!dragging) return;
    dragging = false;
    go(state);
  });
  canvas.addEventListener("pointerleave", () => tip.hide());
  canvas.addEventListener("dblclick", () => on.activate?.(state.row, state.column));
  canvas.addEventListener("keydown", (event) => {
    if (event.key === "Enter") {
      event.preventDefault();
      return on.activate?.(state.row, state.column);
    }
    const next = key(state, event.key, { rows: at.rows, columns: at.columns, shift: event.shiftKey, ctrl: event.ctrlKey, up: at.up });
    if (!next) return;
    event.preventDefault();
    event.stopPropagation();
    if (event.key === "Escape") {
      state = next;
      picked = false;
      tip.hide();
      again();
      tell("nothing selected");
      return on.clear?.();
    }
    go(picked ? next : { ...state, from: null });
    const [x, y] = corner(at, state.row, state.column);
    tip.show(says(spec, data, state.row, state.column), canvas.offsetLeft + x + at.cw, canvas.offsetTop + y, colours);
  });
  canvas.addEventListener("blur", () => tip.hide());

  const stop = whenSeen(root, onTheme, redraw);
  redraw();
  return {
    canvas,
    root,
    bar,
    update(changes) {
      const shape = `${spec.rows.length},${spec.columns.length}`;
      if (changes.spec) spec = changes.spec;
      data = { ...data, ...(changes.values ? { values: changes.values } : {}), ...("marks" in changes ? { marks: changes.marks } : {}) };
      if (`${spec.rows.length},${spec.columns.length}` !== shape) {
        state = start();
        picked = false;
      }
      if (changes.spec) redraw();
      else again();
      if (!table.hidden) showTable(true);
    },
    select(row, column) {
      go({ row, column, from: null }, true);
    },
    selection: () => ({ row: state.row, column: state.column, picked, brush: brushed(state) }),
    cellAt: (row, column) => {
      const [x, y] = corner(at, row, column);
      return { x, y, width: at.cw, height: at.ch };
    },
    destroy: stop,
  };
}

let ruler = null;
function measured(canvas, text) {
  ruler = ruler ?? canvas.ownerDocument.createElement("canvas").getContext("2d");
  ruler.font = "12px system-ui, sans-serif";
  return ruler.measureText(text).width;
}

/** The same numbers as a table that screen readers walk through. */
function tableOf(spec, data) {
  const head = make("tr", {}, make("th", {}, ""), ...spec.columns.map((c) => make("th", { scope: "col" }, labelOf(c))));
  const rows = spec.rows.map((r, i) => {
    const cells = spec.columns.map((_, j) => make("td", {}, says(spec, data, i, j).split("\n").slice(1).join(" ")));
    return make("tr", {}, make("th", { scope: "row" }, labelOf(r)), ...cells);
  });
  return make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows));
}
