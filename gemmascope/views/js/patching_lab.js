// The live patching lab: token chips, remarks, a grid that is clicked, brushed and walked through, and a cell's detail.
//
// A message carries the number of the question that it is about, seq: Python drops those about older settings.

import { changeRows } from "./answers.js";
import { numbers } from "./arrays.js";
import { grid } from "./grid.js";
import { button, drawIfChanged, livePage } from "./live.js";
import { EXACT } from "./matrix.js";
import { make } from "./page.js";
import { format } from "./scale.js";
import { legible, readable } from "./tokens.js";

const TRAITS = ["state", "values", "marks", "seconds", "patterns", "other", "other_values", "other_marks"];

const LAB_STYLE = `
.gs-pairs{display:flex;flex-wrap:wrap;gap:2px 0;margin:4px 0}
.gs-pair{display:inline-flex;flex-direction:column;align-items:stretch;text-align:center}
.gs-pair .gs-chip{white-space:pre;unicode-bidi:isolate;min-height:1.6em}
.gs-pair .gs-special{border-style:solid;border-width:1px;outline:1px solid var(--gs-line);outline-offset:-4px;padding:0 6px}
.gs-pair .gs-none{border-style:dotted;opacity:.7}
.gs-differs .gs-chip{border:2px solid var(--gs-accent);border-radius:0;font-weight:700;text-decoration:underline}
.gs-side{font-size:12px;padding:1px 6px 1px 0;text-align:right}
.gs-grids{display:flex;flex-wrap:wrap;gap:12px}
.gs-grids>div{flex:1 1 360px;min-width:0}
.gs-patterns>div{flex:1 1 240px;min-width:0;max-width:420px}
.gs-detail{border-top:1px solid var(--gs-line);margin-top:6px;padding-top:4px}
.gs progress{width:140px;height:12px}
`;

/** Seconds in words. */
export function secondsText(seconds) {
  if (seconds === null || seconds === undefined || Number.isNaN(seconds)) return "";
  if (seconds < 1) return "under 1 s";
  if (seconds < 90) return `about ${Math.round(seconds)} s`;
  return seconds < 5400 ? `about ${Math.round(seconds / 60)} min` : `about ${(seconds / 3600).toFixed(1)} h`;
}

/** How many cells of a rectangle have no exact number yet, and about how long they take: {cells, seconds}. */
export function costOf(marks, seconds, columns, rect) {
  let cells = 0;
  let time = 0;
  for (let r = rect.rows[0]; r <= rect.rows[1]; r++)
    for (let c = rect.columns[0]; c <= rect.columns[1]; c++) {
      const i = r * columns + c;
      if (marks[i] === EXACT || seconds[i] === 0) continue;
      cells += 1;
      time += seconds[i];
    }
  return { cells, seconds: time };
}

export function render({ model, el }) {
  const page = livePage({ model, el }, LAB_STYLE);
  page.root.classList.add("gs-lab");
  const part = (name, attributes = {}) => {
    const element = make("div", { class: name, ...attributes });
    page.root.append(element);
    return element;
  };
  const tokens = part("gs-pairs", { role: "list", "aria-label": "the two prompts, token by token" });
  const remarks = part("gs-remarks", { role: "list" });
  const baselines = part("gs-ends");
  const tools = part("gs-bar", { role: "toolbar", "aria-label": "compute" });
  page.root.append(page.error);
  const grids = part("gs-grids");
  const main = make("div");
  const beside = make("div", { hidden: true });
  grids.append(main, beside);
  const files = part("gs-bar", { role: "toolbar", "aria-label": "take away" });
  const detail = part("gs-detail", { role: "region", "aria-label": "the selected cell", hidden: true });
  page.root.append(page.status);

  let state = model.get("state");
  let mainGrid = null;
  let mainSpec = "";
  let otherGrid = null;
  let patternGrids = [];
  let byPointer = false; // whether the grid was last used with the pointer, and not with keys

  const send = (type, more = {}) => page.send(type, { seq: state.seq, ...more });

  function onMessage(message) {
    if (message.type === "event" && message.seq === model.get("state").seq) {
      const text = { done: "done", cancelled: "cancelled: what was done is kept", error: "failed" }[message.kind];
      if (text && message.what && !["prepare", "the models at hand"].includes(message.what)) page.status.textContent = `${message.what}: ${text}`;
    } else if (message.type === "file") saveAs(message.name, new Blob([message.text]));
  }

  // -- drawing --

  function draw(now) {
    state = now;
    drawIfChanged(tokens, state.tokens, drawTokens);
    remarks.replaceChildren(...state.checks.map(remark));
    baselines.textContent = readable(baselinesText());
    drawGrid();
    drawTools();
    drawDetail();
  }

  function drawTokens() {
    const sides = make("div", { class: "gs-pair", "aria-hidden": "true" }, make("span", { class: "gs-side" }, "clean"), make("span", { class: "gs-side" }, "corrupted"));
    tokens.replaceChildren(...(state.tokens.length ? [sides] : []), ...state.tokens.map(pair));
  }
  function pair(column) {
    const say = (token) => (token ? legible(token.text) : "nothing");
    const label = column.same ? say(column.clean) : `differs: clean ${say(column.clean)}, corrupted ${say(column.corrupt)}`;
    const position = (column.clean ?? column.corrupt).pos;
    const chips = [column.clean, column.corrupt].map((token) =>
      make("span", { class: `gs-chip${token?.special ? " gs-special" : ""}${token ? "" : " gs-none"}`, dir: "auto" }, token ? legible(token.text) : "–"),
    );
    const attributes = { class: `gs-pair${column.same ? "" : " gs-differs"}`, role: "listitem", "aria-label": `${position}: ${label}`, title: `position ${position}` };
    return make("div", attributes, ...chips);
  }
  function remark(check) {
    const sign = check.level === "error" ? "⛔" : "⚠";
    return make("div", { class: "gs-remark", role: "listitem" }, make("b", {}, `${sign} ${check.level} `), `(${check.about}) ${check.text}`);
  }
  function baselinesText() {
    if (!state.baselines) return state.can_run ? "Running the two prompts …" : "Mend what is marked as an error, and the grid appears.";
    const { clean, corrupt } = state.baselines;
    return `${state.metric}: clean ${format(clean, true)}, corrupted ${format(corrupt, true)}, gap ${format(clean - corrupt, true)}`;
  }

  function arrays() {
    return { values: numbers(model.get("values"), "float32"), marks: numbers(model.get("marks"), "uint8") };
  }
  function drawGrid() {
    if (!state.grid) {
      mainGrid?.destroy();
      mainGrid = null;
      main.replaceChildren();
      return;
    }
    const other = model.get("other");
    const isCompared = Boolean(other?.rows);
    const bound = Math.max(state.grid.scale.high, isCompared ? other.scale.high : 0);
    const onScale = (spec) => ({ ...spec, scale: { ...spec.scale, low: -bound, high: bound } });
    const spec = onScale(state.grid);
    const isSame = JSON.stringify(spec) === mainSpec;
    mainSpec = JSON.stringify(spec);
    if (mainGrid) mainGrid.update({ ...(isSame ? {} : { spec }), ...arrays() });
    else mainGrid = grid(main, spec, arrays(), { select: selected, brush: brushedCells, clear: cleared, activate: activated });
    beside.hidden = !isCompared;
    if (isCompared) {
      const data = { values: numbers(model.get("other_values"), "float32"), marks: numbers(model.get("other_marks"), "uint8") };
      otherGrid?.destroy();
      otherGrid = grid(beside, onScale(other), data);
    }
  }

  // -- what is selected, and what is done with it --

  main.addEventListener("pointerup", () => (byPointer = true), true);
  main.addEventListener("keydown", () => (byPointer = false), true);

  function selected(row, column) {
    if (byPointer) send("click", { row, column });
    drawTools();
  }
  function brushedCells(rows, columns) {
    if (byPointer) send("run", { what: "rectangle", row: rows, column: columns });
    drawTools();
  }
  function activated(row, column) {
    const brush = mainGrid.selection().brush;
    if (brush) send("run", { what: "rectangle", row: brush.rows, column: brush.columns });
    else send("click", { row, column });
  }
  function cleared() {
    if (state.busy) send("cancel");
    drawTools();
  }

  function drawTools() {
    const focused = page.root.contains(document.activeElement) ? document.activeElement.dataset?.gsDo : null;
    const can = state.can_run && state.grid;
    const selection = mainGrid?.selection();
    const marks = can ? numbers(model.get("marks"), "uint8") : [];
    const seconds = can ? numbers(model.get("seconds"), "float32") : [];
    const columns = can ? state.grid.columns.length : 0;
    const rows = can ? state.grid.rows.length : 0;
    const cost = (rect) => {
      const { cells, seconds: rest } = costOf(marks, seconds, columns, rect);
      const time = secondsText(rest);
      return `${cells} ${cells === 1 ? "cell" : "cells"}${time && cells ? `, ${time}` : ""}`;
    };
    const some = can && selection?.picked;
    const row = some ? { rows: [selection.row, selection.row], columns: [0, columns - 1] } : null;
    const column = some ? { rows: [0, rows - 1], columns: [selection.column, selection.column] } : null;
    const all = can ? { rows: [0, rows - 1], columns: [0, columns - 1] } : null;
    const estimate = secondsText(state.estimate_seconds);
    const press = (name, label, enabled, act, title = "") => button(label, act, { "data-gs-do": name, disabled: !enabled, title });
    const parts = [
      press("estimate", `Estimate${estimate ? ` (${estimate})` : ""}`, can && !state.busy, () => send("run", { what: "estimate" }), "gradients: every cell at once, roughly"),
      press("all", `Exact: all${all ? ` (${cost(all)})` : ""}`, can, () => send("run", { what: "all" })),
      press("row", `row${row ? ` (${cost(row)})` : ""}`, some, () => send("run", { what: "row", row: selection.row })),
      press("column", `column${column ? ` (${cost(column)})` : ""}`, some, () => send("run", { what: "column", column: selection.column })),
    ];
    if (some && selection.brush)
      parts.push(press("rectangle", `rectangle (${cost(selection.brush)})`, true, () => send("run", { what: "rectangle", row: selection.brush.rows, column: selection.brush.columns })));
    parts.push(press("cancel", "Cancel", state.busy, () => send("cancel")));
    if (state.progress) {
      const { what, done, total, seconds: rest } = state.progress;
      parts.push(make("progress", { max: String(total || 1), ...(what === "estimate" ? {} : { value: String(done) }), "aria-label": "progress" }));
      parts.push(make("span", {}, what === "estimate" ? "estimating" : `${done} of ${total}${rest ? `, ${secondsText(rest)} left` : ""}`));
    }
    tools.replaceChildren(...parts);
    drawIfChanged(files, [state.code, state.history], drawFiles);
    if (focused) page.root.querySelector(`[data-gs-do="${focused}"]`)?.focus({ preventScroll: true });
  }

  function drawFiles() {
    const press = (label, act) => button(label, act, { disabled: !state.code, "data-gs-do": label });
    const choice = make("select", { "aria-label": "compare with an earlier run", onchange: (event) => send("compare", { index: event.target.value === "" ? null : Number(event.target.value) }) });
    choice.append(make("option", { value: "" }, "Compare with …"));
    state.history.forEach((label, i) => choice.append(make("option", { value: String(i) }, `${i + 1}. ${legible(label).replaceAll("·", " ")}`)));
    const legend = [["▦ hatched", "not run"], ["◤ corner", "estimate"], ["■ plain", "exact"], ["••• dots", "under way"]];
    files.replaceChildren(
      page.copyButton({ disabled: !state.code, "data-gs-do": "Copy Python" }),
      press("CSV", () => send("file", { what: "csv" })),
      press("PNG", () => mainGrid?.canvas.toBlob((blob) => saveAs("patching_lab.png", blob))),
      press("HTML", () => send("file", { what: "html" })),
      ...(state.history.length ? [choice] : []),
      ...legend.map(([sign, meaning]) => make("small", {}, `${sign}: ${meaning}`)),
    );
  }

  function drawDetail() {
    detail.hidden = !state.detail;
    if (state.detail) drawIfChanged(detail, [state.detail, state.seq], () => drawCell(state.detail));
  }
  function drawCell({ place, top, pattern_of, patterns, positions }) {
    const table = make("table", { "aria-label": "likeliest next tokens before and after the patch" }, ...changeRows(top));
    const row = make("div", { class: "gs-row gs-patterns" });
    detail.replaceChildren(make("div", { class: "gs-title" }, `Patched: ${legible(place).replaceAll("·", " ")}`), table, row);
    patternGrids.forEach((one) => one.destroy());
    patternGrids = patterns.map((name, i) => {
      const host = make("div");
      row.append(host);
      const labels = positions[name];
      const size = labels.length ** 2;
      const values = numbers(model.get("patterns"), "float32").slice(i * size, (i + 1) * size);
      const title = `${pattern_of}, ${name} run`;
      const spec = { title, rows: labels, columns: labels, row_axis: "query", column_axis: "key", square: true, unit: "", scale: { kind: "sequential", low: 0, high: 1 }, outside: (q, k) => k > q };
      return grid(host, spec, { values }, {}, { most: 16, least: 3 });
    });
  }

  function saveAs(name, blob) {
    const link = make("a", { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    page.status.textContent = `${name} was saved by the browser`;
  }

  const stopped = () => [mainGrid, otherGrid, ...patternGrids].forEach((one) => one?.destroy());
  return page.start(TRAITS, draw, { onMessage, stopped });
}
