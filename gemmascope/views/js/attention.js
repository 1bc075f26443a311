// The attention view: a layer's heads as thumbnails, one of them large; for two prompts, both and their difference.
//
// spec: {tokens, special, layers: [{index, kind, window}], heads: [numbers], layer, head: indices into those lists, bos,
//   other?: {tokens, special}, same?: whether both prompts have as many tokens, names?: what is shown instead of two prompts,
//   each in colours of its own range, differ?: for each position its tokens and how many more there are, else null}
// data[layer] = the values that queries see, head by head (see arrays.js); other[layer] is the same for the second prompt.

import { fullPattern, countVisible } from "./arrays.js";
import { grid } from "./grid.js";
import { make, paint, rootIn, sized, moveFocus } from "./page.js";
import { colour, format } from "./scale.js";
import { onTheme, theme } from "./theme.js";
import { legible } from "./tokens.js";

const NAMES = { first: "first prompt", second: "second prompt", difference: "second less first" };

/** The largest absolute value of a pattern [q][k], without the first key unless bos. */
export function largestValue(pattern, n, bos) {
  let most = 0;
  for (let q = 0; q < n; q++) for (let k = bos ? 0 : 1; k <= q; k++) most = Math.max(most, Math.abs(pattern[q * n + k]));
  return most;
}

/** A pattern [q][k] with at most `most` cells a side; each keeps the value that is furthest from 0. */
export function downsample(pattern, n, most) {
  const size = Math.min(n, most);
  const small = new Float32Array(size * size);
  for (let q = 0; q < n; q++) {
    const row = Math.floor((q * size) / n) * size;
    for (let k = 0; k <= q; k++) {
      const i = row + Math.floor((k * size) / n);
      const value = pattern[q * n + k];
      if (Math.abs(value) > Math.abs(small[i])) small[i] = value;
    }
  }
  return { size, values: small };
}

/** A sentence on what a query of the layer can see. */
export function windowSentence(layer, n) {
  if (layer.window === null) return "This layer is global: every query sees all keys before it.";
  if (layer.window >= n) return `This layer is local, and its window of ${layer.window} positions cuts nothing off: the prompt has ${n}.`;
  return `This layer is local: a query sees ${layer.window} positions, its own included; the stair is the window's edge.`;
}

/** The patterns of each layer, for the prompt "first" or "second". */
export function layersOf(spec, data, name) {
  return spec.layers.map((layer) => data[`${name}${layer.index}`]);
}

/** chosen(layer, head): called with their numbers when another head becomes large. */
export function attention(el, spec, data, other, chosen = () => {}) {
  const root = rootIn(el, spec);
  const strip = make("div", { class: "gs-bar", role: "toolbar", "aria-label": "layers" });
  const options = make("div", { class: "gs-bar" });
  const thumbs = make("div", { class: "gs-bar", role: "toolbar", "aria-label": "heads" });
  const sentence = make("div", { class: "gs-note", "aria-live": "polite" });
  const large = make("div", { class: "gs-panels" });
  root.append(strip, options, thumbs, sentence, large);
  const which = !other ? ["first"] : spec.same && !spec.names ? ["first", "second", "difference"] : ["first", "second"];
  const names = { ...NAMES, ...spec.names };
  const prompts = { first: spec, second: spec.other, difference: spec };
  const state = { layer: spec.layer, head: spec.head, bos: spec.bos, show: "first" };
  const most = Math.max(...which.map((name) => prompts[name].tokens.length));
  large.style.setProperty("--gs-least", `${Math.max(340, 3 * most + 230)}px`);
  const thumb = spec.heads.length <= 8 ? 92 : spec.heads.length <= 16 ? 72 : 60;

  const layerButtons = spec.layers.map((layer, i) => {
    const name = `${layer.index} ${layer.kind === "global" ? "◆ global" : "local"}`;
    return make("button", { type: "button", onclick: () => choose({ layer: i }), "data-lm-suppress-shortcuts": "true" }, name);
  });
  strip.append(make("span", {}, "layer"), ...layerButtons);
  const atLayer = moveFocus(strip, layerButtons, (i) => choose({ layer: i }));
  const bos = make("input", { type: "checkbox", onchange: () => choose({ bos: bos.checked }) });
  bos.checked = state.bos;
  options.append(make("label", {}, bos, "colours take in the first position"));
  if (other) {
    const pick = make("select", { onchange: () => choose({ show: pick.value }) });
    for (const name of which) pick.append(make("option", { value: name }, names[name]));
    options.append(make("label", {}, "small pictures: ", pick));
  }
  const heads = spec.heads.map((head, i) => {
    const canvas = make("canvas", { "aria-hidden": "true" });
    const button = make("button", { type: "button", class: "gs-thumb", "aria-label": `head ${head}`, onclick: () => choose({ head: i }), "data-lm-suppress-shortcuts": "true" }, canvas, `${head}`);
    return { button, canvas };
  });
  thumbs.append(...heads.map((h) => h.button));
  const atHead = moveFocus(thumbs, heads.map((h) => h.button), (i) => choose({ head: i }));

  const panels = which.map((name) => {
    const host = make("div");
    large.append(host);
    return { name, host, drawn: null };
  });
  const patterns = new Map();
  let drawnThumbnails = "";

  /** A head's full pattern, for a prompt or the difference of both. Patterns of the present layer are cached. */
  function pattern(name, head) {
    const key = `${name} ${head}`;
    if (!patterns.has(key)) {
      const values = name === "difference" ? pattern("second", head).map((v, i) => v - pattern("first", head)[i]) : unrolled(name, head);
      patterns.set(key, values);
    }
    return patterns.get(key);
  }
  function unrolled(name, head) {
    const n = prompts[name].tokens.length;
    const window = spec.layers[state.layer].window ?? n;
    const length = countVisible(n, window);
    return fullPattern((name === "first" ? data : other)[state.layer].subarray(head * length, (head + 1) * length), n, window);
  }
  /** The colour scale of a head: the same for both prompts, so that they compare, and another for their difference.
   *  A mean and its standard error have each its own. */
  function scaleOf(name, head) {
    const of = (one) => largestValue(pattern(one, head), prompts[one].tokens.length, state.bos);
    if (spec.names) return { kind: "sequential", low: 0, high: of(name) || 1 };
    if (name !== "difference") return { kind: "sequential", low: 0, high: Math.max(of("first"), other ? of("second") : 0) || 1 };
    const most = of(name) || 1;
    return { kind: "diverging", low: -most, high: most };
  }
  function specOf(name) {
    const layer = spec.layers[state.layer];
    const { tokens, special } = prompts[name];
    const label = (token, i) => {
      const twin = name === "difference" ? spec.other.tokens[i] : token;
      const [all, more] = spec.differ?.[i] ?? [twin === token ? [token] : [token, twin], 0];
      const hint = `${i}: ${all.map(legible).join(spec.differ ? ", " : " ≠ ")}${more ? ` and ${more} more` : ""}`;
      return { label: legible(token) + (all.length > 1 ? " ≠" : ""), special: special[i], hint };
    };
    const labels = tokens.map(label);
    const window = layer.window ?? tokens.length;
    return {
      title: `${other ? `${names[name]}: ` : ""}layer ${layer.index} (${layer.kind}), head ${spec.heads[state.head]}`,
      rows: labels, columns: labels, square: true, window: layer.window, row_axis: "query", column_axis: "key",
      unit: other ? "" : "probability", measure: other ? names[name] : "probability", decimals: 4, scale: scaleOf(name, state.head),
      outside: (q, k) => (k > q ? "a later position: not seen" : q - k >= window ? "outside the window: not seen" : null),
      hover: spec.same ? (q, k) => beside(name, q, k) : undefined,
    };
  }
  /** The values of the other panels in the same cell. */
  function beside(name, q, k) {
    const i = q * spec.tokens.length + k;
    return which.filter((one) => one !== name).map((one) => `${names[one]} ${format(pattern(one, state.head)[i], one === "difference", 4)}`);
  }

  function choose(change) {
    if ("layer" in change) patterns.clear();
    Object.assign(state, change);
    render();
  }
  function render() {
    const colours = theme();
    paint(root, colours);
    atLayer(state.layer);
    atHead(state.head);
    const drawn = [state.layer, state.show, state.bos, colours.dark].join();
    if (drawn !== drawnThumbnails) heads.forEach((h, head) => thumbnail(h, head, colours));
    drawnThumbnails = drawn;
    const range = state.bos ? "" : " Colours leave out the first position, on which much attention rests.";
    sentence.textContent = `${windowSentence(spec.layers[state.layer], most)}${range} Every head has colours of its own range.`;
    for (const panel of panels) show(panel);
    chosen(spec.layers[state.layer].index, spec.heads[state.head]);
    el.dataset.gemmascopeReady = "1";
  }
  function show(panel) {
    const next = specOf(panel.name);
    const values = pattern(panel.name, state.head);
    if (panel.drawn) {
      panel.drawn.root.querySelector(".gs-title").textContent = next.title;
      return panel.drawn.update({ spec: next, values });
    }
    const follow = (row, column) => spec.same && panels.forEach((p) => p === panel || p.drawn.point(row, column));
    panel.drawn = grid(panel.host, next, { values }, { select: follow }, { most: 28, least: 3 });
  }
  function thumbnail({ button, canvas }, head, colours) {
    const { tokens } = prompts[state.show];
    const values = pattern(state.show, head);
    const { size, values: dots } = downsample(values, tokens.length, thumb);
    const scale = scaleOf(state.show, head);
    const picture = new ImageData(size, size);
    for (let q = 0; q < size; q++) for (let k = 0; k <= q; k++) picture.data.set([...colour(dots[q * size + k], scale, colours.dark), 255], 4 * (q * size + k));
    const dot = document.createElement("canvas");
    [dot.width, dot.height] = [size, size];
    dot.getContext("2d").putImageData(picture, 0, 0);
    const ctx = sized(canvas, thumb, thumb);
    ctx.imageSmoothingEnabled = false;
    ctx.drawImage(dot, 0, 0, thumb, thumb);
    ctx.strokeStyle = colours.line;
    ctx.strokeRect(0.5, 0.5, thumb - 1, thumb - 1);
    button.title = `head ${spec.heads[head]}: up to ${format(scale.high, false, 4)}`;
  }
  const stop = onTheme(render);
  render();
  const destroy = () => {
    stop();
    panels.forEach((panel) => panel.drawn.destroy());
  };
  return { choose, state, destroy };
}
