// The patterns of an attention view and what is read from them: ranges, small pictures, scores, and the order of the heads.

import { countVisible, fullPattern } from "../packed.js";

const PANEL_NAMES = { first: "first prompt", second: "second prompt", difference: "second less first" };
const KEPT_PATTERNS = 24; // whole patterns that are kept, as squares

/** Call seen(q, k, value) for all the values that queries see: keys max(0, q - window + 1) to q, one query after the other. */
export function eachVisible(values, n, window, seen) {
  let at = 0;
  for (let q = 0; q < n; q++) for (let k = Math.max(0, q - window + 1); k <= q; k++) seen(q, k, values[at++]);
}

/** The largest absolute value that queries see, without the first key unless bos. */
export function largestValue(values, n, window, bos) {
  let most = 0;
  eachVisible(values, n, window, (q, k, value) => {
    if (k || bos) most = Math.max(most, Math.abs(value));
  });
  return most;
}

/** A square picture with at most `most` cells a side, [q][k]; each keeps the value that is furthest from 0. */
export function downsample(values, n, window, most) {
  const size = Math.min(n, most);
  const small = new Float32Array(size * size);
  eachVisible(values, n, window, (q, k, value) => {
    const i = Math.floor((q * size) / n) * size + Math.floor((k * size) / n);
    if (Math.abs(value) > Math.abs(small[i])) small[i] = value;
  });
  return { size, values: small };
}

/** How far two patterns of the same shape are apart: the share of a query's attention that moves, averaged over queries. */
export function movedShare(difference, n) {
  return difference.reduce((sum, value) => sum + Math.abs(value), 0) / 2 / Math.max(1, n - 1);
}

/** Heads as [layer, head], both indices, those with the highest score first; of equal ones the first stays first. */
export function rankedHeads(nLayers, nHeads, score) {
  const all = Array.from({ length: nLayers * nHeads }, (_, i) => [Math.floor(i / nHeads), i % nHeads]);
  const scores = new Map(all.map((place) => [place, score(...place)]));
  return all.sort((a, b) => scores.get(b) - scores.get(a));
}

/** A sentence on what a query of the layer can see. */
export function windowSentence(layer, n) {
  if (layer.window === null) return "Every query sees all keys before it.";
  if (layer.window >= n) return `Its window of ${layer.window} positions cuts nothing off: the prompt has ${n}.`;
  return `A query sees ${layer.window} positions, its own included; the stair is the window's edge.`;
}

/** The patterns and scores of a panel, "first" or "second", from a view's arrays. */
export function layersOf(spec, data, name) {
  return { patterns: spec.layers.map((layer) => data[`${name}${layer.index}`]), scores: data[`${name}_scores`] };
}

/** What is read from the patterns of a view. first, second: as layersOf returns them; second: null for one run. */
export function patternsOf(spec, first, second) {
  const panels = !second ? ["first"] : spec.same && !spec.names ? ["first", "second", "difference"] : ["first", "second"];
  const names = { ...PANEL_NAMES, ...spec.names };
  const prompts = { first: spec, second: spec.other, difference: spec };
  const squares = new Map();
  const ranges = new Map();
  const lengthOf = (name) => prompts[name].tokens.length;
  const windowOf = (name, layer) => spec.layers[layer].window ?? lengthOf(name);

  /** The values that the queries of a head see, flat. */
  function visible(name, layer, head) {
    if (name === "difference") {
      const before = visible("first", layer, head);
      return visible("second", layer, head).map((value, i) => value - before[i]);
    }
    const length = countVisible(lengthOf(name), windowOf(name, layer));
    return (name === "first" ? first : second).patterns[layer].subarray(head * length, (head + 1) * length);
  }
  /** A head's whole pattern, [q][k]. */
  function square(name, layer, head) {
    const key = `${name} ${layer} ${head}`;
    if (!squares.has(key)) {
      if (squares.size >= KEPT_PATTERNS) squares.clear();
      squares.set(key, fullPattern(visible(name, layer, head), lengthOf(name), windowOf(name, layer)));
    }
    return squares.get(key);
  }
  const largest = (name, layer, head, bos) => largestValue(visible(name, layer, head), lengthOf(name), windowOf(name, layer), bos);
  /** A range as a colour scale. Two prompts share one, so that they compare; a mean and its standard error have each its own. */
  function scaleFor(name, most) {
    if (name === "difference") return { kind: "diverging", low: -(most(name) || 1), high: most(name) || 1 };
    const shared = second && !spec.names ? ["first", "second"] : [name];
    return { kind: "sequential", low: 0, high: Math.max(...shared.map(most)) || 1 };
  }
  function largestOfAll(name, bos) {
    const key = `${name} ${bos}`;
    if (!ranges.has(key)) {
      let most = 0;
      spec.layers.forEach((_, layer) => spec.heads.forEach((_, head) => (most = Math.max(most, largest(name, layer, head, bos)))));
      ranges.set(key, most);
    }
    return ranges.get(key);
  }
  /** The score of a head in a panel, in the kind's unit; kind: an index of spec.kinds[panel]. */
  const score = (name, kind, layer, head) =>
    (name === "first" ? first : second).scores[(kind * spec.layers.length + layer) * spec.heads.length + head] * spec.kinds[name][kind].bound;

  return {
    panels, names, prompts, square, visible, lengthOf, windowOf, score,
    scaleOf: (name, layer, head, bos) => scaleFor(name, (one) => largest(one, layer, head, bos)),
    scaleOfAll: (name, bos) => scaleFor(name, (one) => largestOfAll(one, bos)),
    moved: (layer, head) => movedShare(visible("difference", layer, head), lengthOf("first")),
  };
}
