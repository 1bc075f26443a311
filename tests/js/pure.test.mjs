// The pure functions of the canvas module. Run with node --test tests/js/*.test.mjs; tests/test_module.py does.

import assert from "node:assert/strict";
import test from "node:test";

import { rungText } from "../../gemmascope/views/js/steering/ladder.js";
import { numbers } from "../../gemmascope/views/js/arrays.js";
import { countVisible, fullPattern, unpack } from "../../gemmascope/views/js/packed.js";
import { folded, foldOf } from "../../gemmascope/views/js/folding.js";
import { cellText } from "../../gemmascope/views/js/grid.js";
import { rangeOf, seriesAt } from "../../gemmascope/views/js/lines.js";
import { cellCorner, cellAtPoint, labelOf, layoutOf, namesOf } from "../../gemmascope/views/js/matrix.js";
import { barTicks, colour, colourAt, css, format, percent, rounded, inkOn, fractionAt, ticks, ticksOf } from "../../gemmascope/views/js/scale.js";
import { brushedCells, initialState, stateAfterKey, stateAfterPointer } from "../../gemmascope/views/js/select.js";
import { charactersOf, cut, fitted, legible, visibleText, wrapped } from "../../gemmascope/views/js/tokens.js";

const DIVERGING = { kind: "diverging", low: -2, high: 2 };
const SEQUENTIAL = { kind: "sequential", low: 0, high: 1 };

test("the middle of a diverging scale is neither colour, its ends are red and blue", () => {
  assert.deepEqual(colour(0, DIVERGING), [247, 247, 247]);
  assert.deepEqual(colour(-2, DIVERGING), [178, 24, 43]);
  assert.deepEqual(colour(2, DIVERGING), [33, 102, 172]);
  assert.deepEqual(colour(99, DIVERGING), colour(2, DIVERGING));
  assert.deepEqual(colour(1, DIVERGING), [103, 169, 207]);
});

test("a colour bar names both ends however low it is, and more where there is room", () => {
  assert.deepEqual(barTicks({ kind: "diverging", low: -23.47, high: 23.47 }, 40), [-23.5, 0, 23.5]);
  assert.deepEqual(barTicks({ kind: "diverging", low: -23.47, high: 23.47 }, 20), [-23.5, 23.5]);
  assert.deepEqual(barTicks({ kind: "sequential", low: 0, high: 1 }, 180), [0, 0.2, 0.4, 0.6, 0.8, 1]);
  const ranks = barTicks({ kind: "sequential", low: 0, high: 4321, log: true, reverse: true }, 180);
  assert.deepEqual([ranks[0], ranks.at(-1)], [0, 4320]);
  for (let high = 1e-7; high < 1e8; high *= 3.7) {
    const numbers = barTicks({ kind: "diverging", low: -high, high }, 60);
    assert.ok(numbers.length >= 3 && numbers.includes(0), String(high));
  }
});

test("what float32 rounds is a zero on its scale, and a small share has no digits", () => {
  const scale = { kind: "diverging", low: -23.5, high: 23.5 };
  assert.equal(format(rounded(9.54e-7, scale), true), "0");
  assert.equal(format(rounded(-9.54e-7, scale), true), "0");
  assert.equal(rounded(1e-3, scale), 1e-3);
  assert.equal(rounded(1e-7, { low: 0, high: 1e-6 }), 1e-7);
  assert.ok(Number.isNaN(rounded(NaN, scale)));
  assert.deepEqual([0, 0.0009, 0.001, 1].map(percent), ["<0.1%", "<0.1%", "0.1%", "100.0%"]);
});

test("a value that is not a number has no colour", () => {
  assert.equal(colour(NaN, SEQUENTIAL), null);
  assert.equal(fractionAt(null, SEQUENTIAL), null);
  assert.equal(fractionAt(0.25, SEQUENTIAL), 0.25);
  assert.equal(fractionAt(5, { low: 5, high: 5 }), 0);
});

test("ranks go by powers of ten, and the best stands out most", () => {
  const scale = { kind: "sequential", low: 0, high: 999, log: true, reverse: true };
  assert.equal(fractionAt(0, scale), 0);
  assert.equal(fractionAt(999, scale), 1);
  assert.ok(Math.abs(fractionAt(9, scale) - 1 / 3) < 1e-9);
  assert.deepEqual(colour(0, scale), colour(1, SEQUENTIAL));
  assert.deepEqual(colourAt(1, scale), colour(0, SEQUENTIAL));
  assert.deepEqual(ticksOf(scale, 9), [0, 1, 10, 100]);
  assert.deepEqual(ticksOf(scale, 2), [0, 10]);
  assert.deepEqual(ticksOf({ low: 0, high: 1 }, 5), ticks(0, 1, 5));
});

test("colours grow steadily in both themes, and text on them can be read", () => {
  const light = (rgb) => 0.2126 * rgb[0] + 0.7152 * rgb[1] + 0.0722 * rgb[2];
  for (const [dark, sign] of [[false, -1], [true, 1]]) {
    let last = null;
    for (let v = 0; v <= 1; v += 0.05) {
      const now = light(colour(v, SEQUENTIAL, dark)) * sign;
      if (last !== null) assert.ok(now >= last - 6, `${v} ${dark}`);
      last = now;
    }
  }
  const channel = (c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  for (const scale of [DIVERGING, SEQUENTIAL]) for (const dark of [false, true]) for (let v = scale.low; v <= scale.high; v += 0.07) {
    const rgb = colour(v, scale, dark);
    const ink = inkOn(rgb) === "#000000" ? 0 : 1;
    const [a, b] = [luminance(rgb) + 0.05, ink + 0.05].sort((x, y) => y - x);
    assert.ok(a / b >= 4.5, `${css(rgb)} ${a / b}`);
  }
});

test("numbers are written with four digits and a real minus", () => {
  assert.equal(format(0.123456), "0.1235");
  assert.equal(format(-1.5), "−1.5");
  assert.equal(format(1.5, true), "+1.5");
  assert.equal(format(0, true), "0");
  assert.equal(format(0.0000123), "1.23e-5");
  assert.equal(format(NaN), "not run");
  assert.equal(format(-Infinity), "−∞");
  assert.equal(format(0.123456, false, 4), "0.1235");
  assert.equal(format(-0.25, true, 4), "−0.2500");
  assert.equal(format(-0.00001, true, 4), "0.0000");
  assert.equal(format(NaN, true, 4), "not run");
});

test("ticks are round, inside the range, and about as many as requested", () => {
  assert.deepEqual(ticks(0, 1, 5), [0, 0.2, 0.4, 0.6, 0.8, 1]);
  assert.deepEqual(ticks(-23.5, 23.5, 3), [-20, 0, 20]);
  assert.deepEqual(ticks(3, 3), [3]);
  for (let i = 0; i < 200; i++) {
    const low = Math.random() * 100 - 50;
    const high = low + 10 ** (Math.random() * 6 - 3);
    const values = ticks(low, high, 4);
    assert.ok(values.length >= 1 && values.length <= 9);
    assert.ok(values.every((t) => t >= low - 1e-9 * Math.abs(low) - 1e-9 && t <= high + (high - low) * 1e-5));
  }
});

test("tokens show their spaces, and are cut without breaking a character", () => {
  assert.equal(visibleText(" Mary\n"), "·Mary⏎");
  assert.equal(visibleText("<img src=x>"), "<img·src=x>");
  assert.equal(cut("abcdef", 4), "abc…");
  assert.equal(cut("😀😀😀", 3), "😀😀😀");
  assert.equal(cut("😀😀😀😀", 3), "😀😀…");
  const measure = (text) => 10 * Array.from(text).length;
  assert.equal(fitted("abcdef", 60, measure), "abcdef");
  assert.equal(fitted("abcdef", 45, measure), "abc…");
  for (let i = 20; i < 100; i++) assert.ok(measure(fitted("abcdefgh", i, measure)) <= i);
});

test("a global layer is marked, and a character that reverses the text is shown as its escape code", () => {
  assert.equal(labelOf({ label: "<bos>", token: true, special: true }), "<bos>");
  assert.equal(labelOf({ label: "\u202eab", token: true }), "\\u202eab");
  assert.equal(labelOf({ label: "a b\u0000" }), "a b\\x00");
  assert.equal(labelOf({ label: " a", token: true }), "·a");
  assert.equal(labelOf({ label: "3", kind: "global" }), "3 ◆");
  assert.equal(labelOf({ label: "3", kind: "local" }), "3");
});

const spec = (rows, columns, more = {}) => ({
  rows: Array.from({ length: rows }, (_, i) => ({ label: `${i}` })), columns: Array.from({ length: columns }, (_, i) => ({ label: `${i}` })),
  row_axis: "layer", column_axis: "position", scale: DIVERGING, ...more,
});

test("a point is found in the cell that contains it, whether rows run up or down", () => {
  for (const up of [false, true]) for (const width of [300, 800, 1280]) {
    const at = layoutOf(spec(5, 14, { up }), width, (text) => 7 * text.length);
    for (let r = 0; r < 5; r++) for (let c = 0; c < 14; c++) {
      const [x, y] = cellCorner(at, r, c);
      assert.deepEqual(cellAtPoint(at, x + at.cw / 2, y + at.ch / 2), [r, c]);
    }
    assert.equal(cellAtPoint(at, at.left - 1, at.top + 1), null);
    assert.equal(cellAtPoint(at, at.right + 1, at.top + 1), null);
    assert.equal(cellAtPoint(at, at.left + 1, at.bottom + 1), null);
    const [, first] = cellCorner(at, 0, 0);
    assert.equal(first === at.top, !up);
  }
});

test("labels stay inside the page, and cells keep a minimum width on a narrow page", () => {
  const measure = (text) => 7 * text.length;
  const long = { rows: [{ label: "x".repeat(90) }], columns: Array.from({ length: 40 }, () => ({ label: "y".repeat(30) })), scale: SEQUENTIAL };
  for (const width of [260, 800, 1280]) {
    const at = layoutOf(long, width, measure);
    assert.ok(at.room <= at.left - 6 && at.left <= Math.max(90, width * 0.3) + 32);
    assert.ok(at.cw >= 6 && at.width >= at.right);
    assert.ok(layoutOf({ ...long, texts: [] }, width, measure).cw >= 40);
    assert.ok(layoutOf({ ...long, columns: Array.from({ length: 8000 }, () => ({ label: "" })) }, width, measure).width < 13000);
  }
});

test("a cell names its place, its number and its unit, or says why there is no number", () => {
  const grid = {
    rows: [{ label: "0", kind: "local", hint: "0 (local)" }, { label: " a\u202e", token: true }], columns: [{ label: "<b>", token: true, hint: "4: <b>" }],
    row_axis: "layer", column_axis: "position", unit: "nats", scale: DIVERGING,
  };
  const data = { values: [1.25, NaN], marks: [1, 2] };
  assert.equal(cellText(grid, data, 0, 0), "layer 0 (local), position 4: <b>\n+1.25 nats\nestimate");
  assert.equal(cellText(grid, data, 1, 0), "layer ·a\\u202e, position 4: <b>\nnot run");
  assert.equal(cellText({ ...grid, measure: "entropy" }, { values: [1.25, 0] }, 0, 0).split("\n")[1], "entropy: +1.25");
  assert.equal(cellText({ ...grid, outside: () => "outside the window" }, data, 0, 0).split("\n")[1], "outside the window");
  assert.equal(cellText({ ...grid, outside: () => true }, data, 0, 0).split("\n")[1], "not seen");
  assert.equal(cellText({ ...grid, hover: (r, c) => [`${r} ${c}`] }, data, 0, 0).split("\n").at(-1), "0 0");
  assert.equal(cellText({ ...grid, texts: [[" go"], [""]] }, data, 0, 0).split("\n").at(-1), "·go");
});

test("arrow keys stay within the grid, shift brushes, Escape clears the brush", () => {
  const size = { rows: 3, columns: 4 };
  let state = initialState();
  state = stateAfterKey(state, "ArrowLeft", size);
  assert.deepEqual([state.row, state.column], [0, 0]);
  for (let i = 0; i < 9; i++) state = stateAfterKey(state, "ArrowRight", size);
  assert.deepEqual([state.row, state.column], [0, 3]);
  state = stateAfterKey(state, "ArrowDown", { ...size, shift: true });
  state = stateAfterKey(state, "ArrowLeft", { ...size, shift: true });
  assert.deepEqual(brushedCells(state), { rows: [0, 1], columns: [2, 3] });
  assert.equal(brushedCells(stateAfterKey(state, "Escape", size)), null);
  assert.equal(brushedCells(stateAfterKey(state, "ArrowUp", size)), null);
  assert.equal(stateAfterKey(initialState(), "ArrowUp", { ...size, up: true }).row, 1);
  assert.equal(stateAfterKey(initialState(), "PageUp", { ...size, up: true }).row, 2);
  assert.equal(stateAfterKey(initialState(), "End", { ...size, ctrl: true }).row, 2);
  assert.equal(stateAfterKey(initialState(), "a", size), null);
  const dragged = stateAfterPointer(stateAfterPointer(initialState(), 2, 3, false), 1, 1, true);
  assert.deepEqual(brushedCells(dragged), { rows: [1, 2], columns: [1, 3] });
});

test("the visible part of each row is unpacked into the full pattern", () => {
  const [n, window] = [7, 3];
  const rows = Float32Array.from({ length: countVisible(n, window) }, (_, i) => i + 1);
  const full = fullPattern(rows, n, window);
  let at = 0;
  for (let q = 0; q < n; q++) for (let k = 0; k < n; k++) {
    const seen = k <= q && q - k < window;
    assert.equal(full[q * n + k], seen ? rows[at++] : 0);
  }
  assert.equal(at, rows.length);
  assert.equal(countVisible(5, 99), 15);
});

test("bytes are read as numbers at any offset in their buffer", () => {
  const expected = Float32Array.from([1.5, -2, NaN]);
  const shifted = new Uint8Array(13 + 1);
  shifted.set(new Uint8Array(expected.buffer), 1);
  const view = new DataView(shifted.buffer, 1, 12);
  assert.deepEqual([...numbers(view, "float32")], [...expected]);
  assert.deepEqual([...numbers(new Uint8Array([0, 1, 2, 0]), "uint16", 0.5)], [128, 1]);
});

test("arrays that Python packed are unpacked with the same numbers", { skip: !process.env.GS_PACKED }, async () => {
  for (const { packed, values } of JSON.parse(process.env.GS_PACKED)) {
    const unpacked = await unpack(packed);
    assert.equal(unpacked.length, values.length);
    values.forEach((v, i) => assert.ok(v === null ? Number.isNaN(unpacked[i]) : Math.abs(unpacked[i] - v) <= 1e-5, `${i}: ${unpacked[i]} ${v}`));
  }
});

test("Python and this module display tokens alike", { skip: !process.env.GS_SHOWN }, () => {
  for (const [text, expected, drawn] of JSON.parse(process.env.GS_SHOWN)) {
    assert.equal(visibleText(text), expected);
    assert.equal(legible(text), drawn);
  }
});

test("a series is read from the array of all series, and an axis range covers the values and 0", () => {
  const data = Float32Array.from({ length: 24 }, (_, i) => i);
  assert.deepEqual([...seriesAt(data, 1, 2, { pos: 3, x: 4 })], [20, 21, 22, 23]);
  const [low, high] = rangeOf([[3, NaN, 5], [-1]]);
  assert.ok(low < -1 && low > -1.5 && high > 5 && high < 5.5);
  assert.equal(rangeOf([[3, 5]])[0], 0);
  assert.deepEqual(rangeOf([[0, 0]]), [0, 1]);
});

test("a long prompt folds its columns up to the first token that differs", () => {
  assert.equal(foldOf(40, 30), null, "short prompts do not fold");
  assert.equal(foldOf(60, 15), null, "nor do short stretches");
  assert.equal(foldOf(60, 0), null);
  assert.deepEqual(foldOf(60, 50), [1, 46]);
  const columns = Array.from({ length: 60 }, (_, i) => ({ label: String(i) }));
  const { spec, data, shown, whole } = folded({ columns, rows: [{}, {}] }, [1, 46]);
  assert.deepEqual(spec.columns.map((one) => one.label), ["0", "… 46 alike", ...columns.slice(47).map((one) => one.label)]);
  const numbered = Float32Array.from({ length: 120 }, (_, i) => i);
  const { values, marks } = data({ values: numbered, marks: null });
  assert.equal(marks, null);
  assert.deepEqual([...values].slice(0, 4), [0, 1, 47, 48]);
  assert.equal(values[spec.columns.length + 2], 60 + 47, "the second row");
  for (let column = 0; column < 60; column++) assert.equal(whole(shown(column)), column >= 1 && column <= 46 ? 1 : column);
  assert.match(spec.outside(0, 1), /alike/);
  assert.equal(spec.outside(0, 2), null);
  const same = folded({ columns }, null);
  assert.equal(same.spec.columns.length, 60);
  assert.equal(same.whole(same.shown(7)), 7);
});

test("bytes that make one character are found, and bytes that make none are not", () => {
  const bytes = (text) => Array.from(new TextEncoder().encode(text), (byte) => `<0x${byte.toString(16).toUpperCase()}>`);
  const says = (texts) => charactersOf(texts).map((one) => one && `${one.text}${one.nth + 1}/${one.of}`);
  assert.deepEqual(says(["a", ...bytes("中"), ...bytes("é"), "b"]), [null, "中1/3", "中2/3", "中3/3", "é1/2", "é2/2", null]);
  assert.deepEqual(says(bytes("😀")), ["😀1/4", "😀2/4", "😀3/4", "😀4/4"]);
  for (const broken of [["<0xE4>", "<0xB8>"], ["<0xB8>", "<0xAD>"], ["<0xC0>", "<0x80>"], ["<0xED>", "<0xA0>", "<0x80>"], ["<0xE4>", " ", "<0xB8>", "<0xAD>"], ["<0x41>"]])
    assert.deepEqual(says(broken), broken.map(() => null));
  assert.deepEqual(says(["<0xE4>", ...bytes("中")]), [null, "中1/3", "中2/3", "中3/3"]);
});

test("a character of several tokens is named once along an axis, over all of them, and each token's tooltip says its byte", () => {
  const labels = ["a", "<0xE4>", "<0xB8>", "<0xAD>", "b"].map((label, i) => ({ label, token: true, hint: `${i}: ${label}` }));
  assert.deepEqual(namesOf(labels).map(({ text, at, of }) => [text, at, of]), [["a", 0, 1], ["中", 1, 3], ["b", 4, 1]]);
  const spec = { rows: [{ label: "0" }], columns: labels, column_axis: "position", scale: DIVERGING };
  assert.equal(cellText(spec, { values: [0, 1, 2, 3, 4] }, 0, 2), "0, position 2: <0xB8> (byte 2 of 3 of 中)\n+2");
});

test("a title breaks between words, loses none while there is room, and never grows wider", () => {
  const measure = (text) => 7 * text.length;
  const title = "norm of the stream, and of what is added to it";
  assert.deepEqual(wrapped(title, 400, measure), [title]);
  for (let width = 60; width < 400; width += 7) {
    const lines = wrapped(title, width, measure);
    assert.ok(lines.length <= 2 && lines.every((line) => measure(line) <= width), `${width}: ${lines}`);
    if (width >= 190) assert.equal(lines.join(" "), title);
  }
  assert.deepEqual(wrapped("", 100, measure), [""]);
});

test("a rung says a share as a percentage and a difference to three digits, and nothing as 0", () => {
  assert.deepEqual([null, 0.0000182, 0.2331].map((value) => rungText(value, true, [0.9])), ["", "<0.1%", "23.3%"]);
  assert.deepEqual([0.0000182, -11.6049, 0.5].map((value) => rungText(value, false, [-11.6, 11.9])), ["0", "−11.6", "+0.5"]);
});
