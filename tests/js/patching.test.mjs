// What the patching lab says of its numbers, and the colour of an estimate.

import assert from "node:assert/strict";
import test from "node:test";

import { colour, luminance } from "../../gemmascope/views/js/scale.js";
import { EXACT, paleOf } from "../../gemmascope/views/js/matrix.js";
import { columnText, uprightColumns, withCharacters } from "../../gemmascope/views/js/patching/heads.js";
import { apartText, costOf, costText, figureText, misleads, secondsText, shareText } from "../../gemmascope/views/js/patching/words.js";

test("a headline has at most nine characters, with the digits that matter", () => {
  assert.deepEqual([23.463, -11.605, 0.38417, 0.0001411, -0.00098, 0].map(figureText), ["+23.46", "−11.61", "+0.384", "+1.4e-4", "−9.8e-4", "0"]);
  for (let size = 1e-12; size < 1e12; size *= 3.7) for (const value of [size, -size]) assert.ok(figureText(value).length <= 9, figureText(value));
});

test("a share of the gap is a whole percentage, and none where there is no gap", () => {
  assert.deepEqual([0.998, -0.12, 0.0004, -0.0004, null, Infinity].map(shareText), ["100%", "−12%", "0%", "0%", "–", "–"]);
});

test("an estimate is held against the exact number", () => {
  assert.equal(apartText(23.46, 2.898, 23.46), "8 times too low");
  assert.equal(apartText(2, 3, 20), "1.5 times too high");
  assert.equal(apartText(10, 10.5, 20), "right within 10%");
  assert.equal(apartText(10, -10, 20), "of the wrong sign");
  assert.equal(apartText(0.001, 0.002, 20), "right: next to nothing");
  assert.equal(apartText(0, 10, 20), "too far from 0");
  assert.equal(apartText(10, 0, 20), "next to nothing: far too low");
  assert.deepEqual([misleads(23, 3, 23), misleads(3, 23, 23), misleads(10, 11, 23), misleads(0.01, 0.02, 23)], ["low", "high", "", ""]);
});

test("exact cells and those that need no run cost nothing", () => {
  const marks = Uint8Array.from([EXACT, 0, 1, 1]), seconds = Float32Array.from([1, 2, 4, 0]);
  const all = { rows: [0, 1], columns: [0, 1] };
  assert.deepEqual(costOf(marks, seconds, 2, all), { cells: 2, seconds: 6 });
  assert.equal(costText({ cells: 1, seconds: 6 }), "1 cell · about 6 s");
  assert.equal(costText({ cells: 0, seconds: 0 }), "0 cells");
  assert.deepEqual([0.2, 60, 600, 7200, NaN].map(secondsText), ["under 1 s", "about 60 s", "about 10 min", "about 2.0 h", ""]);
});

test("an estimate is nearer to the colour of no effect than its own colour is, in both themes", () => {
  const scale = { kind: "diverging", low: -1, high: 1 };
  for (const dark of [false, true])
    for (const value of [-1, -0.5, 0.5, 1]) {
      const [own, none] = [colour(value, scale, dark), colour(0, scale, dark)];
      const far = (rgb) => Math.abs(luminance(rgb) - luminance(none));
      assert.ok(far(paleOf(own, scale, dark)) < 0.6 * far(own), `${value}, dark: ${dark}`);
    }
  assert.deepEqual(paleOf(colour(0, scale), scale, false), colour(0, scale));
});

test("a column knows the characters whose bytes it holds, in each prompt by itself", () => {
  const column = (clean, corrupt = clean) => ({ clean: clean && { text: clean }, corrupt: corrupt && { text: corrupt }, same: clean === corrupt });
  const columns = withCharacters([column("a"), column("<0xC3>"), column("<0xA9>", "<0xA8>"), column(null, "b"), column("<0xC3>"), column(null, "c"), column("<0xA9>")]);
  assert.deepEqual(columns.map(({ clean }) => clean?.character?.text), [undefined, "é", "é", undefined, "é", undefined, "é"]);
  assert.deepEqual(columns.map(({ corrupt }) => corrupt?.character?.text), [undefined, "è", "è", undefined, undefined, undefined, undefined]);
  assert.deepEqual(columns.map(({ clean }) => clean?.character?.columns), [undefined, 2, 2, undefined, 3, undefined, 3], "a gap in between is covered");
  assert.equal(columnText(columns[2]), "differs: clean <0xA9>, byte 2 of 2 of é, corrupted <0xA8>, byte 2 of 2 of è");
});

test("upright heads stay apart, and those that differ go first", () => {
  for (const cw of [3, 6, 8, 14, 15, 40]) {
    const weights = Array.from({ length: 60 }, (_, c) => (c % 7 === 3 || c === 11 ? 2 : 1));
    const shown = [...uprightColumns(weights, cw)].sort((a, b) => a - b);
    assert.ok(shown.every((c, i) => !i || (c - shown[i - 1]) * cw >= 15), `${cw}`);
    assert.ok(shown.includes(3));
    assert.ok(weights.every((_, c) => shown.some((other) => Math.abs(other - c) * cw < 15)), "there is room for no other");
  }
});
