// The selected head of a head lab: its pattern and where a token looks, and the lens; before, after, or the difference.

import { numbers } from "../arrays.js";
import { grid } from "../grid.js";
import { make } from "../page.js";
import { format } from "../scale.js";
import { arcs } from "../system/arcs.js";
import { legible } from "../tokens.js";

const SHOWS = ["before", "after", "difference"];

/** After less before. */
export function differenceOf(before, after) {
  return after.map((value, i) => value - before[i]);
}

/** The scale of what is shown: probabilities from 0, differences around 0. */
export function scaleFor(show, values) {
  if (show !== "difference") return { kind: "sequential", low: 0, high: 1 };
  const most = Math.max(0.01, ...values.map(Math.abs));
  return { kind: "diverging", low: -most, high: most };
}

/** bus(): the present tokenBus. Returns {element, lens, update({tokens, pattern, lens}), follow(now), destroy()}; lens: the element of the lens. */
export function headDetail(bus) {
  let show = "after";
  let shown = null;
  let patternGrid = null;
  let lensGrid = null;
  const choices = SHOWS.map((name) => make("button", { type: "button", "aria-pressed": String(name === show), "data-gs-do": name, onclick: () => choose(name) }, name));
  const tools = make("div", { class: "gs-bar", role: "group", "aria-label": "what the pattern and the lens show" }, ...choices);
  const patternHost = make("div");
  const lensHost = make("div");
  const looks = make("div", { class: "gs-note" });
  const attention = arcs(null, { bus: { wire: (...parts) => bus().wire(...parts) } });
  let drawnQuery = -1;
  const element = make("div", {}, tools, patternHost, looks, attention.element);

  function choose(name) {
    show = name;
    choices.forEach((one, i) => one.setAttribute("aria-pressed", String(SHOWS[i] === name)));
    draw();
  }
  function draw() {
    if (!shown?.tokens.length) return;
    drawPattern();
    drawArcs();
    drawLens();
  }
  const valuesOf = ({ before, after }) => (show === "difference" ? differenceOf(before, after) : show === "before" ? before : after);

  function drawPattern() {
    const { layer, head, first } = shown.pattern;
    const values = valuesOf(shown.pattern);
    const labels = shown.tokens.slice(first);
    const others = (i) => SHOWS.filter((name) => name !== show && name !== "difference").map((name) => `${name} ${format(shown.pattern[name][i], false, 4)}`);
    const spec = {
      title: `Pattern of layer ${layer}, head ${head}: ${show === "difference" ? "after less before" : show}`, rows: labels, columns: labels, square: true,
      row_axis: "query", column_axis: "key", unit: "", measure: show === "difference" ? "difference" : "probability", decimals: 4, scale: scaleFor(show, values),
      outside: (q, k) => (k > q ? "a later position: not seen" : null), hover: (q, k) => others(q * labels.length + k),
    };
    if (patternGrid) patternGrid.update({ spec, values });
    else patternGrid = grid(patternHost, spec, { values }, { select: (q) => bus().state().pinned !== q + first && bus().pin(q + first) }, { most: 22, least: 1, inPane: true });
  }
  function drawArcs() {
    const { first, after, before } = shown.pattern;
    const n = shown.tokens.length - first;
    const query = Math.max(0, (bus().state().pinned ?? shown.tokens.length - 1) - first);
    const row = (show === "before" ? before : after).slice(query * n, (query + 1) * n);
    const labels = shown.tokens.slice(first).map((token) => token.label);
    drawnQuery = bus().state().pinned;
    looks.textContent = `Where ${legible(labels[query])} (${query + first}) looks${show === "before" ? " without the changes" : ""}`;
    attention.update({ tokens: labels, query, weights: row });
  }
  function drawLens() {
    const lens = shown.lens;
    lensHost.hidden = !lens;
    if (!lens) return;
    const columns = shown.tokens.slice(lens.first);
    const values = valuesOf(lens);
    const rows = shown.kinds.map((kind, layer) => ({ label: String(layer), kind }));
    const named = (ids, i) => lens.texts[ids[i]];
    const ids = show === "before" ? lens.tokensBefore : lens.tokensAfter;
    const at = (r, c) => r * columns.length + c;
    const spec = {
      title: `Lens: ${show === "difference" ? "how the probability of" : "probability of"} ${legible(lens.follows)}${show === "difference" ? " changed" : ` ${show}`}`,
      rows, columns, up: true, row_axis: "layer", column_axis: "", unit: "", measure: show, decimals: 4, scale: scaleFor(show, values),
      texts: rows.map((_, r) => columns.map((_, c) => named(ids, at(r, c)))),
      hover: (r, c) => [`likeliest before ${legible(named(lens.tokensBefore, at(r, c)))}, after ${legible(named(lens.tokensAfter, at(r, c)))}`, `${legible(lens.follows)} before ${format(lens.before[at(r, c)], false, 4)}, after ${format(lens.after[at(r, c)], false, 4)}`],
    };
    if (lensGrid) return lensGrid.update({ spec, values });
    lensGrid = grid(lensHost, spec, { values }, {}, { least: 44 });
    lensGrid.reveal(columns.length - 1);
  }
  return {
    element,
    lens: lensHost,
    update(next) {
      shown = next;
      draw();
    },
    /** Follow a token that is pointed at or pinned elsewhere. */
    follow({ at, pinned }) {
      if (!shown?.tokens.length || !patternGrid) return;
      const { first } = shown.pattern;
      const n = shown.tokens.length - first;
      const query = (pinned ?? shown.tokens.length - 1) - first;
      if (at !== null && at >= first && query >= 0) patternGrid.point(Math.min(query, n - 1), at - first);
      if (pinned !== drawnQuery) drawArcs();
    },
    destroy() {
      patternGrid?.destroy();
      lensGrid?.destroy();
    },
  };
}

/** A head's pattern as Python sends it, with numbers; null before there is one. */
export function patternFrom(trait) {
  if (!trait?.before) return null;
  return { ...trait, before: numbers(trait.before, "float32"), after: numbers(trait.after, "float32") };
}

/** The lenses as Python sends them, with numbers; null before there are any. */
export function lensFrom(trait) {
  if (!trait) return null;
  return {
    ...trait, before: numbers(trait.before, "float32"), after: numbers(trait.after, "float32"),
    tokensBefore: numbers(trait.tokens_before, "uint16"), tokensAfter: numbers(trait.tokens_after, "uint16"),
  };
}
