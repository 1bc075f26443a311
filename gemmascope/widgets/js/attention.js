// The attention view: heads of a layer as thumbnails, one of them large, one or two prompts and their difference.
//
// spec: {tokens, special, layers: [{index, kind, window}], n_heads, bos, other?: {tokens, special}, arrays per layer}
// data[layer] = rows of what queries see, head by head (see arrays.js); other[layer] the same of the second prompt.

import { fromRows, rowsLength } from "./arrays.js";
import { grid } from "./grid.js";
import { make, paint, rootIn, sized } from "./page.js";
import { colour, css } from "./scale.js";
import { onTheme, theme } from "./theme.js";

const THUMB = 62;

/** The largest number of patterns [q][k], the first key left out unless bos. */
export function largest(pattern, n, bos) {
  let most = 0;
  for (let q = 0; q < n; q++) for (let k = bos ? 0 : 1; k <= q; k++) most = Math.max(most, Math.abs(pattern[q * n + k]));
  return most;
}

export function attention(el, spec, data, other) {
  const root = rootIn(el, spec);
  const strip = make("div", { class: "gs-bar", role: "toolbar", "aria-label": "layers" });
  const sentence = make("div", { class: "gs-note", "aria-live": "polite" });
  const options = make("div", { class: "gs-bar" });
  const thumbs = make("div", { class: "gs-bar", role: "toolbar", "aria-label": "heads" });
  const large = make("div");
  root.append(strip, options, thumbs, sentence, large);
  const both = Boolean(other);
  const same = both && spec.same;
  const state = { layer: spec.layer, head: spec.head, bos: spec.bos, show: "first" };

  const buttons = spec.layers.map((layer, i) => {
    const name = `${layer.index} ${layer.kind === "global" ? "◆ global" : "local"}`;
    return make("button", { type: "button", onclick: () => choose({ layer: i }), "data-lm-suppress-shortcuts": "true" }, name);
  });
  strip.append(make("span", {}, "layer"), ...buttons);
  walk(strip, buttons, (i) => choose({ layer: i }));
  const bos = make("input", { type: "checkbox", id: `${spec.id}-bos`, onchange: () => choose({ bos: bos.checked }) });
  bos.checked = state.bos;
  options.append(bos, make("label", { for: bos.id }, "colours take in the first position"));
  if (both) {
    const names = same ? { first: "first prompt", second: "second prompt", difference: "second less first" } : { first: "first prompt", second: "second prompt" };
    const pick = make("select", { "aria-label": "which prompt", onchange: () => choose({ show: pick.value }) });
    for (const [value, text] of Object.entries(names)) pick.append(make("option", { value }, text));
    options.append(pick);
  }
  const heads = Array.from({ length: spec.n_heads }, (_, head) => {
    const canvas = make("canvas", { "aria-hidden": "true" });
    const button = make("button", { type: "button", class: "gs-thumb", "aria-label": `head ${head}`, onclick: () => choose({ head }), "data-lm-suppress-shortcuts": "true" }, canvas, `${head}`);
    return { button, canvas };
  });
  thumbs.append(...heads.map((h) => h.button));
  walk(thumbs, heads.map((h) => h.button), (head) => choose({ head }));

  let colours = theme();
  let shown = null;
  const seen = new Map();

  /** A head's pattern in full, as it is to be drawn, with how many positions it has. */
  function pattern(head) {
    const key = `${state.layer} ${head} ${state.show}`;
    if (!seen.has(key)) {
      const [a, b] = [of(data, spec.tokens, head), both ? of(other, spec.other.tokens, head) : null];
      const values = state.show === "first" ? a : state.show === "second" ? b : b.map((v, i) => v - a[i]);
      seen.set(key, values);
    }
    return seen.get(key);
  }
  function of(rows, tokens, head) {
    const layer = spec.layers[state.layer];
    const n = tokens.length;
    const window = layer.window ?? n;
    const length = rowsLength(n, window);
    return fromRows(rows[state.layer].subarray(head * length, (head + 1) * length), n, window);
  }
  const prompt = () => (state.show === "second" ? spec.other : spec);

  function specOf(values, thumb) {
    const { tokens, special } = prompt();
    const n = tokens.length;
    const layer = spec.layers[state.layer];
    const most = largest(values, n, state.bos) || 1;
    const difference = state.show === "difference";
    const ends = tokens.map((label, i) => ({ label, token: true, special: special[i], hint: `${i}: ${label}` }));
    const blank = tokens.map(() => ({ label: "" }));
    return {
      title: thumb ? undefined : `layer ${layer.index} (${layer.kind}), head ${state.head}`,
      rows: thumb ? blank : ends, columns: thumb ? blank : ends, square: true, window: layer.window,
      row_axis: thumb ? "" : "query", column_axis: thumb ? "" : "key", unit: "",
      scale: difference ? { kind: "diverging", low: -most, high: most } : { kind: "sequential", low: 0, high: most },
      outside: (q, k) => k > q,
    };
  }

  function choose(change) {
    Object.assign(state, change);
    render();
  }
  function render() {
    colours = theme();
    paint(root, colours);
    const layer = spec.layers[state.layer];
    buttons.forEach((b, i) => b.setAttribute("aria-pressed", String(i === state.layer)));
    heads.forEach((h, i) => h.button.setAttribute("aria-pressed", String(i === state.head)));
    heads.forEach((h, head) => thumbnail(h.canvas, pattern(head)));
    const n = prompt().tokens.length;
    const cut = layer.window === null ? "This layer is global: every query sees all keys before it."
      : layer.window >= n ? `This layer is local, and its window of ${layer.window} positions cuts nothing off: the prompt has ${n}.`
      : `This layer is local: a query sees ${layer.window} positions, its own included; the stair is the window's edge.`;
    const range = state.bos ? "" : " Colours leave out the first position, on which much attention rests.";
    sentence.textContent = cut + range;
    const values = pattern(state.head);
    const next = specOf(values, false);
    if (shown) {
      shown.root.querySelector(".gs-title").textContent = next.title;
      shown.update({ spec: next, values });
    } else shown = grid(large, next, { values }, {}, { most: 26, least: 3 });
    el.dataset.gemmascopeReady = "1";
  }
  function thumbnail(canvas, values) {
    const n = prompt().tokens.length;
    const { scale } = specOf(values, true);
    const size = THUMB / n;
    const ctx = sized(canvas, THUMB, THUMB);
    for (let q = 0; q < n; q++) {
      for (let k = 0; k <= q; k++) {
        ctx.fillStyle = css(colour(values[q * n + k], scale, colours.dark));
        ctx.fillRect(k * size, q * size, size + 0.3, size + 0.3);
      }
    }
    ctx.strokeStyle = colours.line;
    ctx.strokeRect(0.5, 0.5, THUMB - 1, THUMB - 1);
  }
  onTheme(render);
  render();
  return { choose, state, destroy: () => shown?.destroy() };
}

/** Arrow keys walk along buttons. */
function walk(bar, buttons, chosen) {
  bar.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const at = buttons.indexOf(document.activeElement);
    if (!step || at < 0) return;
    event.preventDefault();
    event.stopPropagation();
    const next = (at + step + buttons.length) % buttons.length;
    buttons[next].focus();
    chosen(next);
  });
}
