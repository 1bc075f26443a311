// The live patching lab: the question as a sentence, the prompts as heads of a grid that is clicked, brushed and walked
// through, the selected cell beside it, and the runs so far below.
//
// A message about cells carries the number of the question that it is about, seq: Python drops those about older questions, but
// for a click that was made while a prompt was typed.

import { numbers } from "./arrays.js";
import { folded, foldOf } from "./folding.js";
import { grid } from "./grid.js";
import { button, drawIfChanged, livePage } from "./live.js";
import { markSamples } from "./marks.js";
import { EXACT } from "./matrix.js";
import { make } from "./page.js";
import { cellPane } from "./patching/cell_pane.js";
import { askForText, picture } from "./patching/files.js";
import { columnHeads, withCharacters } from "./patching/heads.js";
import { runStrip } from "./patching/run_strip.js";
import { LAB_STYLE } from "./patching/style.js";
import { costOf, costText, secondsText } from "./patching/words.js";
import { colourAt, css, format } from "./scale.js";
import { ruler } from "./system/bars.js";
import { below, panes, primary, strip } from "./system/card.js";
import { exportMenu, wordMenu } from "./system/menus.js";
import { tokenBus } from "./system/token_bus.js";
import { saveAs } from "./take_away.js";
import { theme } from "./theme.js";

const TRAITS = ["state", "values", "marks", "estimates", "seconds", "patterns", "other", "other_values", "other_marks", "thumbnails"];
const UNTOLD = ["prepare", "the models at hand", "the grid"]; // jobs whose end nobody asked about
const SHAPE = { most: 44, least: 8, tall: 38, bare: true };

export function render({ model, el }) {
  const page = livePage({ model, el }, LAB_STYLE);
  page.root.classList.add("gs-lab");
  let state = model.get("state");
  let bus = tokenBus();
  let busOf = "";
  let isUnfolded = false;
  let fold = folded({ columns: [] }, null);
  let mainGrid = null;
  let [mainSpec, mainColumns] = ["", ""];
  let otherGrid = null;
  let byPointer = false; // whether the grid was last used with the pointer, and not with keys
  const tabled = { shown: false };
  let waits = 0; // the question whose grid was last drawn

  const send = (type, more = {}) => page.send(type, { seq: state.seq, ...more });
  const set = (name, text) => page.send("set", { name, text });

  // -- the strip: the question as a sentence --

  const menu = (name, label) => wordMenu(label, [], "", (value) => set(name, value), { most: 32 });
  const menus = { site: menu("site", "what is patched"), into: menu("into", "the run that is patched"), by: menu("by", "the grid's axes"), layers: menu("layers", "layers"), metric: menu("metric", "what is measured") };
  const from = make("b");
  const way = ruler();
  const run = primary("Run all exactly", () => send("run", { what: "all" }), { "data-gs-do": "all" });
  const takeAway = exportMenu([], "export and copy");
  const sentence = ["Patch ", menus.site.element, " from ", from, " into ", menus.into.element, ", by ", menus.by.element, " in ", menus.layers.element, "; measure ", menus.metric.element];
  strip(page.root, { sentence, aside: [way.element], end: [run, takeAway.element] });
  const copier = page.copyButton();

  // -- the left pane: prompts, grid, legend, messages --

  const { left, right } = panes(page.root);
  const editor = make("div", { class: "gs-editor", hidden: true });
  const prompts = button("Prompts and answers", () => showEditor(editor.hidden), { "aria-expanded": "false", "data-gs-do": "prompts" });
  const family = wordMenu("family of prompts", [], "", (value) => page.send("next_pair", { family: value }));
  const undo = button("Undo", () => page.send("undo"), { "data-gs-do": "undo" });
  const estimate = button("Estimate", () => send("run", { what: "estimate" }), { "data-gs-do": "estimate" });
  const tools = make("div", { class: "gs-tools", role: "toolbar", "aria-label": "prompts" }, prompts, make("span", { class: "gs-next" }, button("Next pair", () => page.send("next_pair"), { "data-gs-do": "next" }), "of ", family.element), undo, estimate);
  const field = (name, label) => make("input", { type: "text", name, "aria-label": label, spellcheck: "false", autocomplete: "off", dir: "auto", onchange: (event) => set(name, event.target.value) });
  const fields = { clean: field("clean", "clean prompt"), corrupt: field("corrupt", "corrupted prompt"), answer: field("answer", "answer"), against: field("against", "against") };
  const row = (label, ...parts) => make("label", {}, make("span", { class: "gs-small gs-faint" }, label), ...parts);
  editor.append(row("clean", fields.clean), row("corrupted", fields.corrupt), row("answer", make("span", { class: "gs-two" }, fields.answer, fields.against, button("Swap answers", () => page.send("swap"), { "data-gs-do": "swap" }))));
  const chips = make("div", { class: "gs-line", role: "list", "aria-label": "the two prompts, token by token", hidden: true });
  const main = make("div", { class: "gs-grid" });
  const legend = make("div", { class: "gs-legend" });
  const progress = make("div", { class: "gs-progress" });
  const remarks = make("div", { class: "gs-remarks", role: "list" });
  const beside = make("div", { class: "gs-beside", hidden: true });
  left.append(tools, editor, chips, main, legend, progress, make("div", { class: "gs-messages" }, page.error, remarks), beside);
  const cancel = button("Cancel", () => send("cancel"), { "data-gs-do": "cancel", disabled: true });
  const bar = make("progress", { "aria-label": "progress", hidden: true });
  const soFar = make("span");
  progress.append(bar, soFar, page.status, cancel);
  let heads = newHeads();
  let pane = null;
  const runs = runStrip((type, more) => page.send(type, more));
  below(page.root, runs.element);
  const models = page.root.querySelector(".gs-models");
  if (models) below(page.root, models);

  function newHeads() {
    const made = columnHeads({ bus, swap: (position, tokens) => page.send("swap_token", { position, ...tokens }) });
    left.append(made.form);
    return made;
  }
  function showEditor(yes) {
    editor.hidden = !yes;
    prompts.setAttribute("aria-expanded", String(yes));
    if (yes) fields.clean.focus();
  }

  // -- messages --

  function onMessage(message) {
    if (message.type === "event" && message.seq === model.get("state").seq) {
      if (message.kind === "settings" || message.kind === "error" || message.kind === "refused") page.status.textContent = "";
      const text = { done: "done", cancelled: "cancelled: what was done is kept" }[message.kind];
      if (text && message.what && !UNTOLD.includes(message.what) && !model.get("state").error) page.status.textContent = `${message.what}: ${text}`;
    } else if (message.type === "file") {
      saveAs(message.name, new Blob([message.text]));
      page.status.textContent = `${message.name} was saved by the browser`;
    }
  }

  // -- drawing --

  function draw(now) {
    if (now.seq !== state.seq) page.status.textContent = "";
    state = { ...now, tokens: withCharacters(now.tokens) };
    drawBus();
    drawSentence();
    drawTokens();
    drawGrid();
    drawLegend();
    drawProgress();
    drawCell();
    drawIfChanged(remarks, state.checks, () => remarks.replaceChildren(...state.checks.map(remark)));
    drawIfChanged(runs.element, [state.runs, bytesKey(model.get("thumbnails")), theme().dark], () => runs.draw(state.runs, model.get("thumbnails")));
  }
  const bytesKey = (bytes) => Array.from(numbers(bytes, "uint8")).reduce((sum, code) => (sum * 31 + code) % 2147483647, 7);

  /** One bus for the prompts as they are now, so that other views of the same prompt on the page light up too. */
  function drawBus() {
    const sides = ["clean", "corrupt"].map((side) => state.tokens.map((one) => one[side]?.text ?? ""));
    const key = JSON.stringify(sides);
    if (pane && key === busOf) return;
    busOf = key;
    bus.stop();
    bus = tokenBus(...sides);
    bus.on(({ at }) => mainGrid?.light(at === null || !isOfPositions() ? null : fold.shown(at)));
    heads.form.remove();
    heads = newHeads();
    pane?.stop();
    pane = cellPane({ bus, send, select: (r, c) => { byPointer = true; mainGrid?.select(r, fold.shown(c)); send("click", { row: r, column: c }); drawCell(); } });
    right.replaceChildren(pane.element);
    mainGrid?.destroy();
    mainGrid = null;
    chips.dataset.drawn = "";
  }
  const isOfPositions = () => Boolean(state.grid) && /position|key/.test(state.grid.column_axis) && state.grid.columns.length === state.tokens.length;

  function drawSentence() {
    for (const [name, one] of Object.entries(menus)) one.update(state.menus[name]);
    family.update(state.menus.family);
    from.textContent = state.into === "corrupt" ? "clean" : "corrupted";
    const picked = selected();
    const i = picked ? picked.row * state.grid.columns.length + picked.column : -1;
    const marks = arrays().marks;
    const now = i >= 0 && marks[i] === EXACT && state.baselines ? state.baselines[state.into] + arrays().values[i] : null;
    way.update({ ...(state.baselines ?? {}), now });
    for (const [name, one] of Object.entries(fields)) if (document.activeElement !== one) one.value = state.settings[name];
    undo.disabled = !state.can_undo;
    estimate.disabled = !state.grid || state.busy;
    const seconds = secondsText(state.estimate_seconds);
    estimate.textContent = `Estimate${seconds ? ` · ${seconds}` : ""}`;
    drawIfChanged(takeAway.element, [state.code !== null, state.runs.length], drawMenu);
    const all = state.grid ? costOf(marks, numbers(model.get("seconds"), "float32"), state.grid.columns.length, { rows: [0, state.grid.rows.length - 1], columns: [0, state.grid.columns.length - 1] }) : null;
    run.disabled = !all?.cells || !state.can_run;
    run.textContent = !all ? "Run all exactly" : all.cells ? `Run all exactly · ${costText(all)}` : "All cells are exact";
  }
  function drawMenu() {
    const none = state.code === null;
    const file = (what) => () => page.request("file", { seq: state.seq, what });
    takeAway.update([
      { label: "Copy Python", act: () => copier.click(), disabled: none },
      { label: "CSV", act: file("csv"), disabled: none },
      { label: "PNG", act: savePicture, disabled: none },
      { label: "HTML", act: file("html"), disabled: none },
      { label: "Save session", act: file("json"), disabled: !state.runs.length },
      { label: "Open session …", act: () => askForText(".json", (name, text) => page.send("open", { name, text })) },
    ]);
  }
  function savePicture() {
    const { baselines, settings, grid: spec } = state;
    const lines = [`Clean: ${settings.clean}`, `Corrupted: ${settings.corrupt}`, `Measured: ${state.measure}; clean ${format(baselines?.clean, true)}, corrupted ${format(baselines?.corrupt, true)}. Pale around its colour: estimate; hatched: not run.`];
    picture(spec, arrays(), lines).toBlob((blob) => {
      saveAs("patching_lab.png", blob);
      page.status.textContent = "patching_lab.png was saved by the browser";
    });
  }
  function remark(check) {
    return make("div", { class: "gs-remark", role: "listitem" }, make("b", {}, `${check.level === "error" ? "⛔" : "⚠"} ${check.level} `), `(${check.about}) ${check.text}`);
  }

  /** The prompts as chips, where they are not the heads of columns: grids of heads, and prompts that do not fit each other. */
  function drawTokens() {
    chips.hidden = isOfPositions() || (!state.grid && state.can_run);
    if (!chips.hidden) drawIfChanged(chips, state.tokens, () => chips.replaceChildren(...heads.chips(state.tokens)));
  }

  const arrays = () => ({ values: numbers(model.get("values"), "float32"), marks: numbers(model.get("marks"), "uint8") });

  function drawGrid() {
    main.classList.toggle("gs-stale", !state.grid);
    main.inert = !state.grid;
    if (!state.grid) return; // the old grid stays in its place until the new one is there
    const bare = { ...state.grid, scale: { ...state.grid.scale, hidden: true } };
    const span = isUnfolded || !isOfPositions() ? null : foldOf(bare.columns.length, state.alike);
    const key = JSON.stringify([bare, span]);
    fold = folded(bare, span);
    const { values, marks } = fold.data(arrays());
    if (mainGrid && key === mainSpec) return mainGrid.update({ values, marks });
    const isNew = state.seq !== waits;
    waits = state.seq;
    const columns = JSON.stringify([bare.columns, span]);
    const same = mainGrid && columns === mainColumns;
    [mainSpec, mainColumns] = [key, columns];
    if (same) {
      placeHeads = placer();
      return mainGrid.update({ spec: fold.spec, values, marks });
    }
    mainGrid?.destroy();
    placeHeads = placer();
    mainGrid = grid(main, fold.spec, { values, marks }, { select: selectedCell, brush: brushed, clear: cleared, activate: activated, point: pointed }, { ...SHAPE, tabled, top: heads.element, placed: (layout) => placeHeads(layout) });
    if (isUnfolded && foldOf(bare.columns.length, state.alike)) mainGrid.bar.append(button("Fold what is alike", () => showFold(false), { "data-gs-do": "fold" }));
    if (isNew) showDifference();
  }
  /** Scroll to the first token that differs, unless it is in sight. */
  function showDifference() {
    if (!isOfPositions()) return;
    const first = state.tokens.findIndex((one) => !one.same);
    const at = mainGrid.cellAt(0, fold.shown(Math.max(0, first)));
    const wide = main.querySelector(".gs-wide");
    if (at.x > wide.scrollLeft + wide.clientWidth - at.width) wide.scrollLeft = at.x - wide.clientWidth / 4;
  }
  function showFold(unfolded) {
    const before = selected();
    isUnfolded = unfolded;
    drawGrid();
    if (before) mainGrid.select(before.row, fold.shown(before.column));
    showDifference();
    mainGrid.canvas.focus({ preventScroll: true });
  }
  let placeHeads = () => {};
  function placer() {
    const [tokens, labels, whole] = [isOfPositions() ? state.tokens : null, fold.spec.columns, fold.whole];
    return (layout) => heads.draw({ layout, tokens, labels, whole, unfold: () => showFold(true) });
  }

  function drawLegend() {
    const scale = state.grid?.scale;
    if (!scale) return;
    const isGlobal = state.grid.rows.some((one) => one.kind === "global");
    drawIfChanged(legend, [scale, state.gap, state.into, theme().dark, isGlobal], () => {
      const stops = Array.from({ length: 9 }, (_, i) => css(colourAt(i / 8, scale, theme().dark))).join(",");
      const end = (value, style) => make("span", { style }, format(value, true));
      const gap = state.gap ? `${format(state.gap, true)} ${state.into === "corrupt" ? "restores" : "breaks"} all` : "";
      const bar = make("div", { class: "gs-scale", role: "img", "aria-label": `colours from ${format(scale.low, true)} over 0 to ${format(scale.high, true)}` }, make("i", { style: `background:linear-gradient(90deg,${stops})` }), end(scale.low, "left:0"), make("span", { style: "left:50%;transform:translateX(-50%)" }, "0"), end(scale.high, "right:0"));
      legend.replaceChildren(bar, gap, ...(isGlobal ? [make("span", {}, "◆ global layer")] : []), ...markSamples(scale, theme().dark));
    });
  }

  function drawProgress() {
    cancel.disabled = !state.busy;
    bar.hidden = !state.progress || !state.busy;
    soFar.textContent = "";
    if (bar.hidden) {
      if (!state.baselines && state.can_run) soFar.textContent = "Running the two prompts …";
      return;
    }
    const { what, done, total, seconds } = state.progress;
    bar.max = total || 1;
    if (what === "estimate") bar.removeAttribute("value");
    else bar.value = done;
    soFar.textContent = what === "estimate" ? "estimating" : `${done} of ${total}${seconds ? `, ${secondsText(seconds)} left` : ""}`;
  }

  // -- what is selected, and what is done with it --

  /** The selected cell of the whole grid: {row, column, brush}; null if none is. */
  function selected() {
    const now = state.grid && mainGrid?.selection();
    if (!now?.picked) return null;
    const brush = now.brush && { rows: now.brush.rows, columns: now.brush.columns.map(fold.whole) };
    return { row: now.row, column: fold.whole(now.column), brush };
  }
  function drawCell() {
    const { row: r, column, brush } = selected() ?? { row: null, column: null, brush: null };
    pane.draw({ state, ...arrays(), estimates: numbers(model.get("estimates"), "float32"), seconds: numbers(model.get("seconds"), "float32"), patterns: model.get("patterns"), row: r, column, brush });
    drawOther();
  }
  function drawOther() {
    const other = model.get("other");
    beside.hidden = !other?.rows;
    if (beside.hidden) return;
    drawIfChanged(beside, [other, bytesKey(model.get("other_values"))], () => {
      otherGrid?.destroy();
      const host = make("div");
      beside.replaceChildren(button("Close comparison", () => page.send("compare", { index: null })), host);
      otherGrid = grid(host, other, { values: numbers(model.get("other_values"), "float32"), marks: numbers(model.get("other_marks"), "uint8") });
    });
  }

  main.addEventListener("pointerup", () => (byPointer = true), true);
  main.addEventListener("keydown", () => (byPointer = false), true);

  function pointed(cell) {
    bus.point(cell && isOfPositions() && !fold.spec.columns[cell[1]].folded ? fold.whole(cell[1]) : null);
  }
  function selectedCell(r, shown) {
    if (byPointer && !fold.spec.columns[shown].folded) send("click", { row: r, column: fold.whole(shown) });
    drawSentence();
    drawCell();
  }
  function brushed(rows, columns) {
    if (byPointer) send("run", { what: "rectangle", row: rows, column: columns.map(fold.whole) });
    drawCell();
  }
  function activated(r, shown) {
    const brush = selected()?.brush;
    if (brush) send("run", { what: "rectangle", row: brush.rows, column: brush.columns });
    else if (!fold.spec.columns[shown].folded) {
      mainGrid.select(r, shown); // Enter may come before any arrow key
      send("click", { row: r, column: fold.whole(shown) });
      drawSentence();
      drawCell();
    }
  }
  function cleared() {
    if (state.busy) send("cancel");
    drawSentence();
    drawCell();
  }

  const stopped = () => {
    bus.stop();
    pane?.stop();
    [mainGrid, otherGrid].forEach((one) => one?.destroy());
  };
  return page.start(TRAITS, draw, { onMessage, stopped });
}
