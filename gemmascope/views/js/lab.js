// The live patching lab: token chips, remarks, a grid that is clicked, brushed and walked through, and a cell's detail.
//
// Python's traits hold the state; what is asked travels as messages with the question's number, seq.

import { numbers } from "./arrays.js";
import { copied } from "./copied.js";
import { grid } from "./grid.js";
import { EXACT } from "./matrix.js";
import { hideStill, make, paint, rootIn } from "./page.js";
import { format, percent } from "./scale.js";
import { talk } from "./talk.js";
import { onTheme, theme } from "./theme.js";
import { cut, legible, readable } from "./tokens.js";

const TRAITS = ["state", "values", "marks", "seconds", "patterns", "other", "other_values", "other_marks"];

const LAB_STYLE = `
.gs-pairs{display:flex;flex-wrap:wrap;gap:2px 0;margin:4px 0}
.gs-pair{display:inline-flex;flex-direction:column;align-items:stretch;text-align:center}
.gs-pair .gs-chip{white-space:pre;unicode-bidi:isolate;min-height:1.6em}
.gs-pair .gs-special{border-style:solid;border-width:1px;outline:1px solid var(--gs-line);outline-offset:-4px;padding:0 6px}
.gs-pair .gs-none{border-style:dotted;opacity:.7}
.gs-differs .gs-chip{border:2px solid var(--gs-accent);border-radius:0;font-weight:700;text-decoration:underline}
.gs-side{font-size:12px;padding:1px 6px 1px 0;text-align:right}
.gs-remark{margin:2px 0;padding:2px 6px;border-left:4px solid var(--gs-warn)}
.gs-remark b{text-transform:uppercase;font-size:11px}
.gs-grids{display:flex;flex-wrap:wrap;gap:12px}
.gs-grids>div{flex:1 1 360px;min-width:0}
.gs-patterns>div{flex:1 1 240px;min-width:0;max-width:420px}
.gs-detail{border-top:1px solid var(--gs-line);margin-top:6px;padding-top:4px}
.gs progress{width:140px;height:12px}
`;

/** Seconds as people say them. */
export function spoken(seconds) {
  if (seconds === null || seconds === undefined || Number.isNaN(seconds)) return "";
  if (seconds < 1) return "under 1 s";
  if (seconds < 90) return `about ${Math.round(seconds)} s`;
  return seconds < 5400 ? `about ${Math.round(seconds / 60)} min` : `about ${(seconds / 3600).toFixed(1)} h`;
}

/** How many cells of a rectangle have no exact number yet, and about how long they take: {cells, seconds}. */
export function left(marks, seconds, columns, rect) {
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
  const root = rootIn(el, { title: "" });
  root.classList.add("gs-lab");
  const part = (name, attributes = {}) => {
    const made = make("div", { class: name, ...attributes });
    root.append(made);
    return made;
  };
  root.append(make("style", {}, LAB_STYLE));
  hideStill(root, model);
  const tokens = part("gs-pairs", { role: "list", "aria-label": "the two prompts, token by token" });
  const remarks = part("gs-remarks", { role: "list" });
  const ends = part("gs-ends");
  const tools = part("gs-bar", { role: "toolbar", "aria-label": "compute" });
  const wrong = part("gs-remark gs-error", { role: "alert", hidden: true });
  const grids = part("gs-grids");
  const main = make("div");
  const beside = make("div", { hidden: true });
  grids.append(main, beside);
  const files = part("gs-bar", { role: "toolbar", "aria-label": "take away" });
  const detail = part("gs-detail", { role: "region", "aria-label": "the selected cell", hidden: true });
  const status = part("gs-note gs-status", { role: "status", "aria-live": "polite" });

  let state = model.get("state");
  let drawn = null;
  let other = null;
  let looks = [];
  let pointer = false;

  // -- talking to Python --

  const send = (type, more = {}) => talking.send(type, { seq: state.seq, ...more });

  function heard(message) {
    if (message.type === "told" && message.seq === model.get("state").seq) {
      const words = { done: "done", cancelled: "cancelled: what was done is kept", error: "failed" }[message.kind];
      if (words && message.what && !/^(prepare|the look)/.test(message.what)) status.textContent = `${message.what}: ${words}`;
    } else if (message.type === "file") saveAs(message.name, new Blob([message.text]));
  }

  // -- drawing --

  function refresh() {
    const before = state;
    state = model.get("state");
    if (!before || JSON.stringify(before.tokens) !== JSON.stringify(state.tokens) || !tokens.childNodes.length) drawTokens();
    remarks.replaceChildren(...state.checks.map(remark));
    ends.textContent = readable(endsText());
    wrong.hidden = !state.error;
    wrong.replaceChildren(make("b", {}, "⛔ error "), readable(state.error ?? ""));
    drawGrid();
    drawTools();
    drawDetail();
    el.dataset.gemmascopeReady = "1";
    el.dataset.gemmascopeNumber = String(state.number);
  }

  function drawTokens() {
    const sides = make("div", { class: "gs-pair", "aria-hidden": "true" }, make("span", { class: "gs-side" }, "clean"), make("span", { class: "gs-side" }, "corrupted"));
    tokens.replaceChildren(...(state.tokens.length ? [sides] : []), ...state.tokens.map(pair));
  }
  function pair(column) {
    const say = (token) => (token ? legible(token.text) : "nothing");
    const label = column.same ? say(column.clean) : `differs: clean ${say(column.clean)}, corrupted ${say(column.corrupt)}`;
    const at = (column.clean ?? column.corrupt).pos;
    const chips = [column.clean, column.corrupt].map((token) =>
      make("span", { class: `gs-chip${token?.special ? " gs-special" : ""}${token ? "" : " gs-none"}`, dir: "auto" }, token ? legible(token.text) : "–"),
    );
    const attributes = { class: `gs-pair${column.same ? "" : " gs-differs"}`, role: "listitem", "aria-label": `${at}: ${label}`, title: `position ${at}` };
    return make("div", attributes, ...chips);
  }
  function remark(check) {
    const sign = check.level === "error" ? "⛔" : "⚠";
    return make("div", { class: "gs-remark", role: "listitem" }, make("b", {}, `${sign} ${check.level} `), `(${check.about}) ${check.text}`);
  }
  function endsText() {
    if (!state.baselines) return state.can_run ? "Running the two prompts …" : "Mend what is marked as an error, and the grid appears.";
    const { clean, corrupt } = state.baselines;
    return `${state.metric}: clean ${format(clean, true)}, corrupted ${format(corrupt, true)}, gap ${format(clean - corrupt, true)}`;
  }

  function arrays() {
    return { values: numbers(model.get("values"), "float32"), marks: numbers(model.get("marks"), "uint8") };
  }
  function drawGrid() {
    if (!state.grid) {
      drawn?.destroy();
      drawn = null;
      main.replaceChildren();
      return;
    }
    const earlier = model.get("other");
    const compared = Boolean(earlier && earlier.rows);
    const bound = Math.max(state.grid.scale.high, compared ? earlier.scale.high : 0);
    const onScale = (spec) => ({ ...spec, scale: { ...spec.scale, low: -bound, high: bound } });
    const spec = onScale(state.grid);
    const same = drawn && JSON.stringify(spec) === drawn.said;
    if (!drawn) {
      const made = grid(main, spec, arrays(), { select: picked, brush: swept, clear: cleared, activate: entered });
      drawn = { ...made, said: JSON.stringify(spec) };
    } else {
      drawn.update({ ...(same ? {} : { spec }), ...arrays() });
      drawn.said = JSON.stringify(spec);
    }
    beside.hidden = !compared;
    if (compared) {
      const data = { values: numbers(model.get("other_values"), "float32"), marks: numbers(model.get("other_marks"), "uint8") };
      other?.destroy();
      other = grid(beside, onScale(earlier), data);
    }
  }

  // -- what is selected, and what is done with it --

  main.addEventListener("pointerup", () => (pointer = true), true);
  main.addEventListener("keydown", () => (pointer = false), true);

  function picked(row, column) {
    if (pointer) exact(row, column);
    drawTools();
  }
  function exact(row, column) {
    send("click", { row, column });
    if (!state.streams) send("look", { row, column });
  }
  function swept(rows, columns) {
    if (pointer) send("run", { what: "rectangle", row: rows, column: columns });
    drawTools();
  }
  function entered(row, column) {
    const brush = drawn.selection().brush;
    if (brush) send("run", { what: "rectangle", row: brush.rows, column: brush.columns });
    else exact(row, column);
  }
  function cleared() {
    if (state.busy) send("cancel");
    drawTools();
  }

  function drawTools() {
    const focused = root.contains(document.activeElement) ? document.activeElement.dataset?.gsDo : null;
    const can = state.can_run && state.grid;
    const at = drawn?.selection();
    const marks = can ? numbers(model.get("marks"), "uint8") : [];
    const seconds = can ? numbers(model.get("seconds"), "float32") : [];
    const columns = can ? state.grid.columns.length : 0;
    const rows = can ? state.grid.rows.length : 0;
    const cost = (rect) => {
      const found = left(marks, seconds, columns, rect);
      const time = spoken(found.seconds);
      return `${found.cells} ${found.cells === 1 ? "cell" : "cells"}${time && found.cells ? `, ${time}` : ""}`;
    };
    const some = can && at?.picked;
    const row = some ? { rows: [at.row, at.row], columns: [0, columns - 1] } : null;
    const column = some ? { rows: [0, rows - 1], columns: [at.column, at.column] } : null;
    const all = can ? { rows: [0, rows - 1], columns: [0, columns - 1] } : null;
    const estimate = spoken(state.estimate_seconds);
    const press = (name, label, able, act, title = "") =>
      make("button", { type: "button", "data-gs-do": name, disabled: !able, title, onclick: act }, label);
    const parts = [
      press("estimate", `Estimate${estimate ? ` (${estimate})` : ""}`, can && !state.busy, () => send("run", { what: "estimate" }), "gradients: every cell at once, roughly"),
      press("all", `Exact: all${all ? ` (${cost(all)})` : ""}`, can, () => send("run", { what: "all" })),
      press("row", `row${row ? ` (${cost(row)})` : ""}`, some, () => send("run", { what: "row", row: at.row })),
      press("column", `column${column ? ` (${cost(column)})` : ""}`, some, () => send("run", { what: "column", column: at.column })),
    ];
    if (some && at.brush)
      parts.push(press("rectangle", `rectangle (${cost(at.brush)})`, true, () => send("run", { what: "rectangle", row: at.brush.rows, column: at.brush.columns })));
    parts.push(press("cancel", "Cancel", state.busy, () => send("cancel")));
    if (state.progress) {
      const { what, done, total, seconds: rest } = state.progress;
      parts.push(make("progress", { max: String(total || 1), ...(what === "estimate" ? {} : { value: String(done) }), "aria-label": "progress" }));
      parts.push(make("span", {}, what === "estimate" ? "estimating" : `${done} of ${total}${rest ? `, ${spoken(rest)} left` : ""}`));
    }
    tools.replaceChildren(...parts);
    drawFiles();
    if (focused) root.querySelector(`[data-gs-do="${focused}"]`)?.focus({ preventScroll: true });
  }

  function drawFiles() {
    const said = JSON.stringify([state.code, state.history]);
    if (files.dataset.said === said) return;
    files.dataset.said = said;
    const press = (label, act) => make("button", { type: "button", disabled: !state.code, onclick: act, "data-gs-do": label }, label);
    const choice = make("select", { "aria-label": "compare with an earlier run", onchange: (event) => send("compare", { index: event.target.value === "" ? null : Number(event.target.value) }) });
    choice.append(make("option", { value: "" }, "Compare with …"));
    state.history.forEach((label, i) => choice.append(make("option", { value: String(i) }, `${i + 1}. ${legible(label).replaceAll("·", " ")}`)));
    files.replaceChildren(
      press("Copy Python", () => copied(root, state.code, status, "the Python of this experiment was copied")),
      press("CSV", () => send("file", { what: "csv" })),
      press("PNG", () => drawn?.canvas.toBlob((blob) => saveAs("patching_lab.png", blob))),
      press("HTML", () => send("file", { what: "html" })),
      ...(state.history.length ? [choice] : []),
      ...[["▦ hatched", "not run"], ["◤ corner", "estimate"], ["■ plain", "exact"], ["••• dots", "under way"]].map(([sign, word]) => make("small", {}, `${sign}: ${word}`)),
    );
  }

  function drawDetail() {
    const found = state.detail;
    detail.hidden = !found;
    if (!found || detail.dataset.said === JSON.stringify([found, state.seq])) return;
    detail.dataset.said = JSON.stringify([found, state.seq]);
    const line = (cells, tag) => make("tr", {}, ...cells.map((cell) => make(tag, {}, cell)));
    const table = make(
      "table", { "aria-label": "likeliest answers before and after the patch" },
      line(["next token", "before", "after", "change, in %"], "th"),
      ...found.top.map((t) => line([cut(legible(t.token), 24), percent(t.before), percent(t.after), `${t.after >= t.before ? "▲" : "▼"} ${format(100 * (t.after - t.before), true, 1)}`], "td")),
    );
    const patterns = make("div", { class: "gs-row gs-patterns" });
    detail.replaceChildren(make("div", { class: "gs-title" }, `Patched: ${legible(found.place).replaceAll("·", " ")}`), table, patterns);
    looks.forEach((look) => look.destroy());
    looks = found.patterns.map((name, i) => {
      const host = make("div");
      patterns.append(host);
      const positions = found.positions[name];
      const size = positions.length ** 2;
      const values = numbers(model.get("patterns"), "float32").slice(i * size, (i + 1) * size);
      const title = `${found.pattern_of}, ${name} run`;
      const spec = { title, rows: positions, columns: positions, row_axis: "query", column_axis: "key", square: true, unit: "", scale: { kind: "sequential", low: 0, high: 1 }, outside: (q, k) => k > q };
      return grid(host, spec, { values }, {}, { most: 16, least: 3 });
    });
  }

  // -- taking away --

  function saveAs(name, blob) {
    const link = make("a", { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    status.textContent = `${name} was saved by the browser`;
  }
  const talking = talk(model, TRAITS, status, { changed: refresh, poll: () => ({ seq: state.seq, number: state.number }), heard });
  const painted = () => paint(root, theme());
  const stop = onTheme(painted);
  painted();
  refresh();
  return () => {
    talking.stop();
    stop();
    [drawn, other, ...looks].forEach((made) => made?.destroy());
  };
}
