// The pure functions of the attention view, the lens and the view of features.

import assert from "node:assert/strict";
import test from "node:test";

import { placeText, strongestPlaces, tokenText } from "../../gemmascope/views/js/attention/words.js";
import { partAround } from "../../gemmascope/views/js/attention/matrices.js";
import { downsample, eachVisible, largestValue, movedShare, patternsOf, rankedHeads, windowSentence } from "../../gemmascope/views/js/attention/patterns.js";
import { headAfterKey, wallLayout } from "../../gemmascope/views/js/attention/wall.js";
import { featureOrder } from "../../gemmascope/views/js/features.js";
import { namePlaces } from "../../gemmascope/views/js/lines.js";
import { cellsOf, heldTokens, leadText } from "../../gemmascope/views/js/lens.js";
import { sparkPoints } from "../../gemmascope/views/js/sparkline.js";

const visibleOf = (pattern, n, window) => {
  const values = [];
  for (let q = 0; q < n; q++) for (let k = Math.max(0, q - window + 1); k <= q; k++) values.push(pattern[q * n + k]);
  return Float32Array.from(values);
};

test("a downsampled pattern keeps the value furthest from 0, inside the window", () => {
  for (const [n, window, most] of [[5, 5, 5], [7, 3, 3], [200, 64, 60], [4, 1, 60]]) {
    const pattern = Float32Array.from({ length: n * n }, (_, i) => {
      const [q, k] = [Math.floor(i / n), i % n];
      return k <= q && q - k < window ? Math.random() * 2 - 1 : 0;
    });
    const { size, values } = downsample(visibleOf(pattern, n, window), n, window, most);
    assert.equal(size, Math.min(n, most));
    const expected = new Float32Array(size * size);
    pattern.forEach((v, i) => {
      const at = Math.floor((Math.floor(i / n) * size) / n) * size + Math.floor(((i % n) * size) / n);
      if (Math.abs(v) > Math.abs(expected[at])) expected[at] = v;
    });
    assert.deepEqual(values, expected);
    let count = 0;
    eachVisible(visibleOf(pattern, n, window), n, window, (q, k, value) => {
      assert.equal(value, pattern[q * n + k]);
      count += 1;
    });
    assert.equal(count, visibleOf(pattern, n, window).length);
    const later = pattern.filter((_, i) => i % n);
    assert.equal(largestValue(visibleOf(pattern, n, window), n, window, false), Math.max(0, ...later.map(Math.abs)));
    assert.equal(largestValue(visibleOf(pattern, n, window), n, window, true), Math.max(...pattern.map(Math.abs)));
  }
});

test("a sentence says what the window cuts off", () => {
  assert.match(windowSentence({ window: null }, 9), /^Every query sees all keys/);
  assert.match(windowSentence({ window: 9 }, 9), /cuts nothing off: the prompt has 9/);
  assert.match(windowSentence({ window: 8 }, 9), /A query sees 8 positions/);
});

test("patterns of two prompts share a scale, and their difference has its own", () => {
  const spec = {
    tokens: ["a", "b"], other: { tokens: ["a", "c"] }, same: true, heads: [0], layers: [{ index: 0, window: null }],
    kinds: { first: [{ bound: 2 }], second: [{ bound: 2 }] },
  };
  const [first, second] = [[1, 0.5, 0.5], [1, 0.25, 0.75]].map((values) => ({ patterns: [Float32Array.from(values)], scores: Float32Array.of(0.25) }));
  const patterns = patternsOf(spec, first, second);
  assert.deepEqual(patterns.panels, ["first", "second", "difference"]);
  assert.deepEqual([...patterns.square("difference", 0, 0)], [0, 0, -0.25, 0.25]);
  assert.deepEqual(patterns.scaleOf("first", 0, 0, false), { kind: "sequential", low: 0, high: 0.75 });
  assert.deepEqual(patterns.scaleOf("second", 0, 0, true), { kind: "sequential", low: 0, high: 1 });
  assert.deepEqual(patterns.scaleOfAll("difference", false), { kind: "diverging", low: -0.25, high: 0.25 });
  assert.equal(patterns.score("first", 0, 0, 0), 0.5);
  assert.equal(patterns.moved(0, 0), 0.25);
  const means = patternsOf({ ...spec, names: { first: "mean", second: "error" } }, first, second);
  assert.deepEqual(means.panels, ["first", "second"]);
  assert.equal(means.scaleOf("first", 0, 0, false).high, 0.5);
  assert.equal(movedShare(Float32Array.of(0, -0.5, 0.5), 2), 0.5);
});

test("heads with the highest score come first, and of equal ones those of the lower layer", () => {
  const scores = [[0.5, 0.9], [0.9, 0.1]];
  assert.deepEqual(rankedHeads(2, 2, (layer, head) => scores[layer][head]), [[0, 1], [1, 0], [0, 0], [1, 1]]);
});

test("no two pictures of a wall overlap, layer 0 is at the bottom, and either order is as wide and high", () => {
  for (const [layers, heads, width] of [[6, 4, 640], [26, 8, 640], [46, 32, 640], [1, 1, 320], [42, 16, 300]]) {
    const ranked = rankedHeads(layers, heads, () => 0);
    const [byLayer, byScore] = [wallLayout(layers, heads, width, null), wallLayout(layers, heads, width, ranked)];
    assert.deepEqual([byLayer.room, byLayer.shown], [byScore.room, byScore.shown]);
    for (const layout of [byLayer, byScore]) {
      const taken = new Set();
      for (const [layer, head] of layout.order) {
        const [x, y] = layout.at(layer, head);
        assert.ok(x >= 0 && y >= 0 && x + layout.size <= layout.width && y + layout.size <= layout.height);
        for (const [l, h] of layout.order.slice(0, 40)) {
          const [a, b] = layout.at(l, h);
          if (l !== layer || h !== head) assert.ok(Math.abs(a - x) >= layout.size || Math.abs(b - y) >= layout.size);
        }
        taken.add(`${layer}.${head}`);
      }
      assert.equal(taken.size, layers * heads);
    }
    if (layers > 1) assert.ok(byLayer.at(0, 0)[1] > byLayer.at(1, 0)[1]);
  }
});

test("arrow keys go through the wall, and stay in it", () => {
  assert.deepEqual(["ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp", "Home", "End", "x"].map((key) => headAfterKey(5, key, 4, 12)), [6, 4, 9, 1, 4, 7, null]);
  assert.equal(headAfterKey(0, "ArrowUp", 4, 12), 0);
  assert.equal(headAfterKey(11, "ArrowRight", 4, 12), 11);
});

test("a magnified part covers what was asked for, is long enough and lies in the pattern", () => {
  for (let i = 0; i < 300; i++) {
    const n = 1 + Math.floor(Math.random() * 100);
    const wanted = [0, 0].map(() => Math.floor(Math.random() * n)).sort((a, b) => a - b);
    const [first, last] = partAround(wanted, 16, n);
    assert.ok(first >= 0 && last < n && first <= wanted[0] && last >= wanted[1], `${wanted} ${n}: ${first} ${last}`);
    assert.ok(last - first + 1 >= Math.min(n, 16));
  }
});

test("a cell of the lens shows the top token, its tooltip the answer's rank, and it is faint if the row below agrees", () => {
  const spec = { rows: [{}, {}, {}], columns: [{}], tokens: [" a", "b"], top: 2, held: 2, follows: "b", leads: [1] };
  const data = { ids: Uint16Array.of(0, 1, 1, 0, 1, 0), probs: Float32Array.of(0.5, 0.25, 0.75, 0.125, 1, 0), prob: Float32Array.of(0.25, 0.75, 1), rank: Float32Array.of(1, 0, 0) };
  const { texts, hover, faded, outlined } = cellsOf(spec, data);
  assert.deepEqual(texts, [[" a"], ["b"], ["b"]]);
  assert.deepEqual(hover(1, 0), ["b  0.7500", "·a  0.1250", "answer b: 0.7500, rank 0"]);
  assert.deepEqual(cellsOf({ ...spec, follows: null }, data).hover(0, 0), ["·a  0.5000", "b  0.2500"]);
  assert.deepEqual([0, 1, 2].map((row) => faded(row, 0)), [false, false, true]);
  assert.deepEqual(outlined, [[1, 0]]);
});

test("a click lists the tokens that the tooltip shows, then the rest that is held", () => {
  const spec = { rows: [{}, {}], columns: [{}], top: 1, held: 3 };
  const data = { ids: Uint16Array.of(0, 4), probs: Float32Array.of(0.5, 0.25), more_ids: Uint16Array.of(1, 2, 5, 6), more_probs: Float32Array.of(0.25, 0.125, 0.0625, 0) };
  assert.deepEqual(heldTokens(spec, data, 1, 0).map(({ id }) => id), [4, 5, 6]);
  assert.deepEqual(heldTokens(spec, data, 1, 0).map(({ probability }) => probability), [0.25, 0.0625, 0]);
});

test("words say since when an answer leads, also if it loses the lead", () => {
  const names = ["layer 0", "layer 1", "layer 2", "layer 3"];
  assert.equal(leadText(names, [5, 2, 0, 0]), "it leads from layer 2 on");
  assert.equal(leadText(names, [5, 0, 3, 0]), "it leads first at layer 1, and from layer 3 on");
  assert.equal(leadText(names, [0, 0, 0, 0]), "it leads from the start");
  assert.equal(leadText(names, [3, 0, 0, 9]), "it leads first at layer 1, and not at the end");
  assert.equal(leadText(names, [3, 2, 1, 9]), "it never leads");
});

test("a rank of 0 is drawn on top, a worse one lower", () => {
  const ys = sparkPoints([300, 20, 1, 0]).map(([, y]) => y);
  assert.deepEqual([...ys].sort((a, b) => b - a), ys);
  assert.ok(sparkPoints([0]).flat().every(Number.isFinite));
});

test("features are sorted by number, strength or where they begin", () => {
  const spec = { rows: [{}, {}, {}], columns: [{}, {}], peaks: [1, 3, 2] };
  const values = Float32Array.of(0, 1, 3, 0, 0, 2);
  assert.deepEqual(featureOrder("number", spec, values), [0, 1, 2]);
  assert.deepEqual(featureOrder("strength", spec, values), [1, 2, 0]);
  assert.deepEqual(featureOrder("first", spec, values), [1, 0, 2]);
});

test("the names of lines stand apart, in the order of their ends", () => {
  const places = namePlaces([100, 90, 20]);
  assert.equal(places[2], 20);
  assert.ok(places[0] - places[1] >= 16 && places[1] - places[2] >= 16);
});

test("the bytes of a character are one place, with their sum, or their largest value", () => {
  const tokens = ["a", "<0xE4>", "<0xB8>", "<0xAD>", "b"];
  const asked = { tokens, names: tokens, values: [0.2, 0.1, 0.3, 0.15, 0.25], unseen: () => false, most: 2 };
  const says = (places) => places.map((place) => `${placeText(place)} ${place.value.toFixed(2)}`);
  assert.deepEqual(says(strongestPlaces(asked)), ["中 (1 to 3) 0.55", "b (4) 0.25"]);
  assert.deepEqual(says(strongestPlaces({ ...asked, largest: true })), ["中 (1 to 3) 0.30", "b (4) 0.25"]);
  assert.deepEqual(says(strongestPlaces({ ...asked, unseen: (i) => i < 2, most: 9 })), ["中 (1 to 3) 0.45", "b (4) 0.25"]);
  assert.deepEqual([0, 2].map((i) => tokenText(tokens, tokens, i)), ["a (0)", "中, byte 2 of 3 (2)"]);
});
