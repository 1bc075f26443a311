// The grid: a labelled matrix with a tooltip, selection by pointer and keys, and a table for screen readers.
//
// grid(el, spec, data, on) draws it in el and returns
//   update({spec?, values?, marks?})   change labels, numbers or marks, and keep the selection
//   select(row, column)                select a cell, without a callback
//   point(row, column)                 the same, without telling screen readers: for grids that follow another
//   redraw()                           draw what is over the numbers again
//   selection()                        {row, column, picked, brush: {rows, columns} | null}
//   cellAt(row, column)                where a cell is on the canvas, {x, y, width, height} in CSS pixels
//   reveal(column)                     scroll to a column, now or as soon as the grid has a width
//   light(column)                      mark a column that another part of the page points at; null: none
//   canvas, root, bar, destroy()
// spec: {title, name?: for screen readers where there is no title, note, rows, columns, row_axis, column_axis, unit, measure?: the name of the number, in place of the unit, scale, up?, square?, window?, decimals?, texts?, hover?,
//   outside?(row, column): why a cell has no number, or nothing, faded?(row, column): whether
//   its text is faint, from?: [query, key] that a part of a matrix begins at}; rows, columns: {label, hint?, token?, special?, kind?};
//   scale: {kind: "diverging" | "sequential", low, high, log?, reverse?, hidden?}
// data: {values, marks?} flat, row by row. on: callbacks, each optional:
//   select(row, column), brush(rows, columns, byKey), clear(), activate(row, column) on Enter or a double click, point(cell) with
//   the cell under the pointer, [row, column] or null.
// options: those of layoutOf; over(ctx, layout, colours, spec): draws below the selection; and top: an element that scrolls above the canvas, such as heads of columns, with placed(layout). tabled: {shown}, whether the
// numbers stand below as a table, for grids that are made anew; inPane: whether the grid stands on the colour of a pane.

import { draw, drawState, FONT, cellAtPoint, labelOf, layoutOf, cellCorner, ESTIMATED, NOT_RUN, UNDER_WAY } from "./matrix.js";
import { make, paint, retitle, rootIn, sized, tooltip, redrawOnResize } from "./page.js";
import { format, rounded } from "./scale.js";
import { brushedCells, initialState, stateAfterKey, stateAfterPointer } from "./select.js";
import { onTheme, theme } from "./theme.js";
import { byteText, charactersOf, legible, legibleLine } from "./tokens.js";

const WORDS = { [NOT_RUN]: "not run", [ESTIMATED]: "estimate", [UNDER_WAY]: "under way" };

/** The text of a cell: its row, its column, its number, and whether that is an estimate. */
export function cellText(spec, data, row, column) {
  const axisText = (axis, labels, i) => {
    const character = charactersOf(labels.map(({ label }) => label))[i];
    const name = labels[i].hint ? legibleLine(labels[i].hint) : labelOf(labels[i]);
    return `${axis ?? ""} ${name}${character ? ` (${byteText(character)})` : ""}`.trim();
  };
  const place = `${axisText(spec.row_axis, spec.rows, row)}, ${axisText(spec.column_axis, spec.columns, column)}`;
  const why = spec.outside?.(row, column);
  if (why) return `${place}\n${why === true ? "not seen" : why}`;
  const i = row * spec.columns.length + column;
  const mark = data.marks ? data.marks[i] : 2;
  const value = mark === NOT_RUN ? "not run" : format(rounded(data.values[i], spec.scale), spec.scale.low < 0, spec.decimals);
  const unit = spec.unit && value !== "not run" ? ` ${spec.unit}` : "";
  const lines = [place, spec.measure ? `${spec.measure}: ${value}` : value + unit];
  if (WORDS[mark] && value !== "not run") lines.push(WORDS[mark]);
  if (spec.hover) lines.push(...(typeof spec.hover === "function" ? spec.hover(row, column) : spec.hover[row][column]));
  else if (spec.texts) lines.push(legible(spec.texts[row][column]));
  return lines.join("\n");
}

export function grid(el, spec, data, on = {}, options = {}) {
  const root = rootIn(el, spec);
  const canvas = make("canvas", { tabindex: "0", role: "application", "aria-roledescription": "heat map", "data-lm-suppress-shortcuts": "true" });
  const live = make("div", { class: "gs-live", "aria-live": "polite" });
  const table = make("div", { class: "gs-scroll", hidden: true });
  const toggle = make("button", { type: "button", "aria-pressed": "false", onclick: () => showTable(table.hidden) }, "Show as table");
  const bar = make("div", { class: "gs-bar" }, toggle);
  // The rows' labels stay in sight while the cells scroll.
  const names = make("canvas", { class: "gs-names", "aria-hidden": "true" });
  const wide = make("div", { class: "gs-wide" }, ...(options.top ? [options.top] : []), make("div", { class: "gs-cells" }, names, canvas));
  root.append(wide, bar, table, live);
  const tip = tooltip(root);
  let tipCell = null; // the cell that the tooltip describes
  const base = document.createElement("canvas");
  let colours, layout, ctx;
  let state = initialState();
  let picked = false;
  let dragging = false;
  let lit = null; // the column that another part of the page points at
  let wanted = null; // the column to scroll to
  let scrolledTo = 0; // asked at each drawing, scrollLeft would lay out the page

  function redraw() {
    colours = options.inPane ? { ...theme(), ground: theme().pane } : theme();
    paint(root, colours);
    const width = Math.max(260, wide.clientWidth || el.clientWidth || 800);
    const measure = (text) => measured(canvas, text);
    layout = layoutOf(spec, width, measure, options);
    ctx = sized(canvas, layout.width, layout.height);
    wide.lastElementChild.style.paddingRight = `${layout.width > width ? layout.cw : 0}px`;
    drawBase();
    options.placed?.(layout);
    canvas.setAttribute("aria-label", `${legibleLine(spec.title || spec.name || "grid")}: ${layout.rows} by ${layout.columns} cells. Arrow keys move, shift brushes, Enter chooses, Escape clears`);
    drawSelection();
    if (wide.scrollLeft) wide.scrollLeft = Math.round(wide.scrollLeft / layout.cw) * layout.cw; // columns may have another width now
    scrollToWanted();
    el.dataset.gemmascopeReady = "1";
  }
  function scrollToWanted() {
    if (wanted === null || !wide.clientWidth) return;
    const [x] = cellCorner(layout, 0, wanted);
    // By whole columns, so that the first one in sight is not cut.
    if (x + layout.cw > wide.clientWidth) wide.scrollLeft = Math.ceil((x + layout.cw * 1.5 - wide.clientWidth) / layout.cw) * layout.cw;
    wanted = null;
  }
  /** Draw the numbers on a second canvas; the selection is drawn over a copy, so that moving it is fast. */
  function drawBase() {
    draw(sized(base, layout.width, layout.height), layout, spec, data, colours);
    drawNames();
    drawSelection();
  }
  /** The rows' names. The first columns' slanted labels begin below them, and are hidden once their columns have scrolled away. */
  function drawNames() {
    const edge = sized(names, layout.left, layout.height);
    canvas.style.marginLeft = `-${names.style.width}`;
    edge.resetTransform();
    edge.drawImage(base, 0, 0);
    if (!scrolledTo) return;
    const below = Math.ceil(layout.bottom * (base.height / layout.height)) + 1;
    edge.fillStyle = colours.ground;
    edge.fillRect(0, below, names.width, names.height - below);
  }
  function drawSelection() {
    ctx.save();
    ctx.resetTransform();
    ctx.drawImage(base, 0, 0);
    ctx.restore();
    options.over?.(ctx, layout, colours, spec);
    drawState(ctx, layout, colours, { selected: picked ? state : null, brush: brushedCells(state), lit });
  }
  /** Show the tooltip at a cell, and scroll there. */
  function showTip(row, column) {
    const [x, y] = cellCorner(layout, row, column);
    if (x < wide.scrollLeft || x + layout.cw > wide.scrollLeft + wide.clientWidth) wide.scrollLeft = x - wide.clientWidth / 2;
    tipCell = [row, column];
    tip.show(cellText(spec, data, row, column), wide.offsetLeft + x + layout.cw - wide.scrollLeft, wide.offsetTop + y);
  }
  function announce(text) {
    if (live.textContent !== text) live.textContent = text;
  }
  function changeTo(next, quiet = false, byKey = false) {
    state = next;
    picked = true;
    drawSelection();
    const brush = brushedCells(state);
    if (brush) announce(`${brush.rows[1] - brush.rows[0] + 1} by ${brush.columns[1] - brush.columns[0] + 1} cells`);
    else announce(cellText(spec, data, state.row, state.column));
    if (quiet) return;
    if (brush) on.brush?.(brush.rows, brush.columns, byKey);
    else on.select?.(state.row, state.column);
  }
  function pointOf(event) {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) * layout.width) / box.width, ((event.clientY - box.top) * layout.height) / box.height];
  }
  function showTable(yes) {
    table.hidden = !yes;
    if (options.tabled) options.tabled.shown = yes;
    toggle.setAttribute("aria-pressed", String(yes));
    if (yes) table.replaceChildren(tableOf(spec, data));
  }

  canvas.addEventListener("pointerdown", (event) => {
    const cell = cellAtPoint(layout, ...pointOf(event));
    canvas.focus({ preventScroll: true });
    if (!cell) return;
    dragging = true;
    canvas.setPointerCapture(event.pointerId);
    state = stateAfterPointer(state, ...cell, event.shiftKey);
    picked = true;
    drawSelection();
  });
  canvas.addEventListener("pointermove", (event) => {
    const cell = cellAtPoint(layout, ...pointOf(event));
    if (dragging && cell && (cell[0] !== state.row || cell[1] !== state.column)) {
      state = stateAfterPointer(state, ...cell, true);
      drawSelection();
    }
    on.point?.(cell);
    if (!cell) return tip.hide();
    const box = root.getBoundingClientRect();
    tipCell = cell;
    tip.show(cellText(spec, data, ...cell), event.clientX - box.left, event.clientY - box.top);
  });
  canvas.addEventListener("pointerup", () => {
    if (!dragging) return;
    dragging = false;
    changeTo(state);
  });
  canvas.addEventListener("pointercancel", () => (dragging = false));
  canvas.addEventListener("pointerleave", () => {
    tip.hide();
    on.point?.(null);
  });
  canvas.addEventListener("dblclick", () => on.activate?.(state.row, state.column));
  canvas.addEventListener("keydown", (event) => {
    if (event.key === "Enter") {
      event.preventDefault();
      return on.activate?.(state.row, state.column);
    }
    const next = stateAfterKey(state, event.key, { rows: layout.rows, columns: layout.columns, shift: event.shiftKey, ctrl: event.ctrlKey, up: layout.up });
    if (!next) return;
    event.preventDefault();
    event.stopPropagation();
    if (event.key === "Escape") {
      state = next;
      picked = false;
      tip.hide();
      drawSelection();
      announce("nothing selected");
      return on.clear?.();
    }
    changeTo(picked ? next : { ...state, from: null }, false, true);
    showTip(state.row, state.column);
  });
  canvas.addEventListener("blur", () => tip.hide());
  wide.addEventListener("scroll", () => {
    scrolledTo = wide.scrollLeft;
    drawNames();
  });

  const stop = redrawOnResize(root, onTheme, redraw);
  redraw();
  if (options.tabled?.shown) showTable(true);
  return {
    canvas,
    root,
    bar,
    update(changes) {
      const shape = `${spec.rows.length},${spec.columns.length}`;
      if (changes.spec) spec = changes.spec;
      data = { ...data, ...(changes.values ? { values: changes.values } : {}), ...("marks" in changes ? { marks: changes.marks } : {}) };
      if (`${spec.rows.length},${spec.columns.length}` !== shape) {
        state = initialState();
        picked = false;
        tip.hide();
      }
      if (changes.spec) {
        retitle(root, spec);
        redraw();
      } else drawBase();
      if (!table.hidden) showTable(true);
      if (tip.text !== null) tip.say(cellText(spec, data, ...tipCell));
      if (picked && !brushedCells(state)) announce(cellText(spec, data, state.row, state.column));
    },
    select(row, column) {
      changeTo({ row, column, from: null }, true);
    },
    point(row, column) {
      state = { row, column, from: null };
      picked = true;
      drawSelection();
    },
    reveal(column) {
      wanted = column;
      scrollToWanted();
    },
    light(column) {
      if (column === lit) return;
      lit = column;
      drawSelection();
    },
    redraw: drawSelection,
    selection: () => ({ row: state.row, column: state.column, picked, brush: brushedCells(state) }),
    cellAt: (row, column) => {
      const [x, y] = cellCorner(layout, row, column);
      return { x, y, width: layout.cw, height: layout.ch };
    },
    destroy: stop,
  };
}

let measuring = null;
function measured(canvas, text) {
  measuring ??= canvas.ownerDocument.createElement("canvas").getContext("2d");
  measuring.font = FONT;
  return measuring.measureText(text).width;
}

/** The numbers as a table, in the order in which they are drawn: what is above in the grid is above in the table. */
function tableOf(spec, data) {
  const heading = (label, scope) => make("th", { scope, class: label.special ? "gs-special" : null }, labelOf(label));
  const head = make("tr", {}, make("th", {}, ""), ...spec.columns.map((c) => heading(c, "col")));
  const rows = spec.rows.map((r, i) => {
    const cells = spec.columns.map((_, j) => make("td", {}, spec.outside?.(i, j) ? "" : cellText(spec, data, i, j).split("\n").slice(1).join("; ")));
    return make("tr", {}, heading(r, "row"), ...cells);
  });
  return make("table", {}, make("thead", {}, head), make("tbody", {}, ...(spec.up ? rows.reverse() : rows)));
}
