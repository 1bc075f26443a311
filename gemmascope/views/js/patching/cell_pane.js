// The right pane of the patching lab: the selected cell, what its patch does to the answers, and where the last token looks.

import { changeRows } from "../answers.js";
import { numbers } from "../arrays.js";
import { grid } from "../grid.js";
import { button, drawIfChanged } from "../live.js";
import { EXACT, NOT_RUN, labelOf } from "../matrix.js";
import { make } from "../page.js";
import { format, percent, rounded } from "../scale.js";
import { arcs } from "../system/arcs.js";
import { bars } from "../system/bars.js";
import { legible } from "../tokens.js";
import { columnText, tokenText } from "./heads.js";
import { apartText, costOf, costText, figureText, misleads, shareText } from "./words.js";

const RUNS = { clean: "clean run", corrupt: "corrupted run", patched: "patched" };
const N_STRONGEST = 3;

/** send(type, more): asks Python. select(row, column): select a cell. Returns {element, draw(now), stop()}; see draw. */
export function cellPane({ bus, send, select }) {
  const title = make("div", { class: "gs-head" });
  const sub = make("div", { class: "gs-faint gs-sub" });
  const share = make("div", { class: "gs-big" });
  const shareSays = make("div", { class: "gs-small gs-faint" });
  const exact = make("div", { class: "gs-head" });
  const estimate = make("div", { class: "gs-head gs-faint" });
  const apart = make("div", { class: "gs-small gs-faint" });
  const figures = make("div", { class: "gs-figures" }, make("div", {}, share, shareSays), make("div", {}, exact, make("div", { class: "gs-small gs-faint" }, "exact")), make("div", {}, estimate, apart));
  const answers = bars([], { label: "probability of the two answers, before and after the patch" });
  const looks = make("div", { class: "gs-looks" });
  const looksTitle = make("span", { class: "gs-faint" });
  const picture = arcs(null, { bus });
  const why = make("div", { class: "gs-why gs-small", hidden: true });
  const tools = make("div", { class: "gs-bar", role: "toolbar", "aria-label": "compute more, or take the cell further" });
  const patterns = make("div", { class: "gs-row gs-patterns" });
  const changed = make("table", { "aria-label": "likeliest next tokens before and after the patch" });
  const code = make("pre", { class: "gs-small gs-code" });
  const fold = (name, ...parts) => make("details", {}, make("summary", { class: "gs-faint" }, name), ...parts);
  const patternFold = fold("Patterns in the clean, corrupted and patched run", patterns);
  const folds = make("div", { class: "gs-folds" }, patternFold, fold("What else changed", make("div", { class: "gs-scroll" }, changed)), fold("Python", code));
  const body = make("div", { class: "gs-cell" }, figures, answers.element, looks, why, tools, folds);
  const hint = make("div", { class: "gs-hint" });
  const element = make("div", { class: "gs-detail", role: "region", "aria-label": "the selected cell" }, title, sub, hint, body);
  let shownRun = "patched";
  let patternGrids = [];
  let now = null;

  const runButtons = Object.entries(RUNS).map(([name, label]) => button(label, () => ((shownRun = name), drawLooks()), { "aria-pressed": "false", "data-run": name }));
  looks.append(make("div", { class: "gs-bar" }, looksTitle, ...runButtons), picture.element);
  patternFold.addEventListener("toggle", () => drawPatterns());

  function drawLooks() {
    const last = now?.detail?.last;
    looks.classList.toggle("gs-empty", !last);
    runButtons.forEach((one) => {
      one.setAttribute("aria-pressed", String(one.dataset.run === shownRun));
      one.disabled = !last;
    });
    if (!last) {
      looksTitle.textContent = now?.detail ? "The patch moves no head's look at the last token." : "";
      return picture.element.replaceChildren();
    }
    looksTitle.textContent = `Where the last token looks, head ${last.layer}.${last.head}${last.own ? "" : " (moved most)"}`;
    const texts = now.state.tokens.map(({ clean, corrupt }) => ((shownRun === "clean" ? clean : shownRun === "corrupt" ? corrupt : now.state.into === "clean" ? clean : corrupt) ?? clean ?? corrupt).text);
    const weights = new Float32Array(texts.length);
    for (const [k, weight] of last.weights[shownRun]) weights[k] = weight;
    picture.update({ tokens: texts, query: texts.length - 1, weights });
  }

  function drawPatterns() {
    const detail = now?.detail;
    patternFold.hidden = !detail?.patterns.length;
    if (!patternFold.open || patternFold.hidden) return;
    drawIfChanged(patterns, [detail.row, detail.column, detail.pattern_of, now.state.seq], () => {
      patternGrids.forEach((one) => one.destroy());
      patterns.replaceChildren();
      patternGrids = detail.patterns.map((name, i) => {
        const host = make("div");
        patterns.append(host);
        const labels = detail.positions[name];
        const size = labels.length ** 2;
        const values = numbers(now.patterns, "float32").slice(i * size, (i + 1) * size);
        const spec = { title: `${detail.pattern_of}, ${name} run`, rows: labels, columns: labels, row_axis: "query", column_axis: "key", square: true, unit: "", scale: { kind: "sequential", low: 0, high: 1 }, outside: (q, k) => k > q };
        return grid(host, spec, { values }, {}, { most: 16, least: 3, inPane: true });
      });
    });
  }

  function placeText(spec, row, column) {
    const part = (axis, label) => (/position|query|key/.test(axis) ? `${axis} ${label.hint.split(":")[0]}` : `${axis} ${labelOf(label)}`);
    const text = `${part(spec.row_axis, spec.rows[row])} · ${part(spec.column_axis, spec.columns[column])}`;
    return text[0].toUpperCase() + text.slice(1);
  }

  function drawHint() {
    const { state, values, marks } = now;
    const spec = state.grid;
    title.textContent = spec ? "Click a cell" : "";
    sub.textContent = spec ? "Its patch is run, and here stands what it does. Drag to run a rectangle; arrow keys walk, Enter runs." : state.can_run ? "The two prompts are being run." : "Mend what is marked as an error, and the grid appears.";
    const order = spec ? Array.from(values.keys()).filter((i) => marks[i] !== NOT_RUN && rounded(values[i], spec.scale) !== 0) : [];
    const strongest = order.sort((a, b) => Math.abs(values[b]) - Math.abs(values[a])).slice(0, N_STRONGEST);
    const entry = (i) => {
      const [row, column] = [Math.floor(i / spec.columns.length), i % spec.columns.length];
      return make("li", {}, button(`${placeText(spec, row, column)}: ${format(values[i], true)}`, () => select(row, column)));
    };
    hint.replaceChildren(...(strongest.length ? [make("div", { class: "gs-faint" }, "The strongest so far"), make("ul", {}, ...strongest.map(entry))] : []));
  }

  return {
    element,
    /** now: {state, values, marks, estimates, seconds, patterns, row, column, brush}; row: null if no cell is selected. */
    draw(next) {
      const { state, values, marks, estimates, seconds, row, column, brush } = next;
      const spec = state.grid;
      const isSelected = spec && row !== null;
      const detail = isSelected && state.detail?.row === row && state.detail?.column === column ? state.detail : null;
      now = { ...next, detail };
      body.hidden = !isSelected;
      hint.hidden = isSelected;
      if (!isSelected) return drawHint();
      const i = row * spec.columns.length + column;
      const isExact = marks[i] === EXACT;
      const value = marks[i] === NOT_RUN ? NaN : rounded(values[i], spec.scale);
      const guess = rounded(estimates[i], spec.scale);
      const gap = state.gap ?? 0;
      title.textContent = placeText(spec, row, column);
      const tokens = /position|key/.test(spec.column_axis) ? state.tokens[column] : null;
      sub.textContent = tokens ? (tokens.same ? `${columnText(tokens)} in both prompts` : `${tokenText(tokens.clean)} in clean, ${tokenText(tokens.corrupt)} in corrupted`) : state.measure;
      share.textContent = Number.isNaN(value) ? "–" : shareText(gap ? value / gap : null);
      shareSays.textContent = `of the gap ${state.into === "corrupt" ? "restored" : "broken"}${isExact || Number.isNaN(value) ? "" : ", by estimate"}`;
      exact.textContent = isExact ? figureText(value) : "–";
      exact.title = isExact ? format(value, true) : "";
      estimate.textContent = Number.isNaN(guess) ? "–" : figureText(guess);
      estimate.title = Number.isNaN(guess) ? "" : format(guess, true);
      const both = isExact && !Number.isNaN(guess);
      apart.textContent = `estimate${both ? `, ${apartText(value, guess, Math.abs(gap))}` : ""}`;
      const text = both ? state.misleading[misleads(value, guess, Math.abs(gap))] ?? "" : "";
      why.hidden = !text;
      why.textContent = text;
      answers.update((detail?.answers ?? state.answers.map((token) => ({ token, before: null, after: 0 }))).map(({ token, before, after }, k) => ({ name: legible(token), value: after, before, token: true, negative: k > 0, ...(before === null ? { text: "–" } : {}) })));
      drawLooks();
      changed.replaceChildren(...(detail ? changeRows(detail.top) : []));
      code.textContent = state.code ?? "";
      drawPatterns();
      const width = spec.columns.length;
      const cost = (rect) => costText(costOf(marks, seconds, width, rect));
      const line = { rows: [row, row], columns: [0, width - 1] };
      const down = { rows: [0, spec.rows.length - 1], columns: [column, column] };
      const head = detail?.last;
      const parts = [
        ...(brush ? [button(`Run rectangle · ${cost(brush)}`, () => send("run", { what: "rectangle", row: brush.rows, column: brush.columns }))] : []),
        ...(detail ? [] : [button(isExact ? "Look into this cell" : "Run this cell", () => send("click", { row, column }), { "data-gs-do": "cell" })]),
        button(`Run row · ${cost(line)}`, () => send("run", { what: "row", row }), { "data-gs-do": "row", disabled: !costOf(marks, seconds, width, line).cells }),
        button(`Run column · ${cost(down)}`, () => send("run", { what: "column", column }), { "data-gs-do": "column", disabled: !costOf(marks, seconds, width, down).cells }),
        ...(head ? [button(`Head ${head.layer}.${head.head} in the head lab`, () => send("head_lab", { layer: head.layer, head: head.head }), { "data-gs-do": "head_lab", title: `open a head lab below, with head ${head.layer}.${head.head} ablated` })] : []),
      ];
      const focused = tools.contains(document.activeElement) ? document.activeElement.dataset.gsDo : null;
      tools.replaceChildren(...parts);
      if (focused) tools.querySelector(`[data-gs-do="${focused}"]`)?.focus({ preventScroll: true });
    },
    stop: () => patternGrids.forEach((one) => one.destroy()),
  };
}
