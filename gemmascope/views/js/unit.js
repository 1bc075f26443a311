// The page of one unit - a feature, a head, a neuron: examples with tinted tokens, a histogram, and lists of what it reads and
// writes.
//
// spec: facts, sections [{name, rows: [{tokens, values, at, value, text, pos, looks?}]}], scale, signed, measure, histogram
// {counts, low, high}, lists [{title, note, rows: [[name, value, address]], most, tokens?} or {title, note, text}]

import { EXAMPLE_STYLE, exampleRow } from "./examples.js";
import { make, paint, redrawOnResize } from "./page.js";
import { format, percent } from "./scale.js";
import { shape } from "./shape.js";
import { card, panes, strip } from "./system/card.js";
import { wordMenu } from "./system/menus.js";
import { onTheme, theme } from "./theme.js";
import { legible, legibleLine } from "./tokens.js";

const MOST_ROWS = 20;
const HIGH = 64; // the histogram, in pixels

const UNIT_STYLE = `${EXAMPLE_STYLE}
.gs-unit-facts{display:flex;flex-wrap:wrap;gap:8px 24px;align-items:flex-end}
.gs-unit-facts>div{display:grid}
.gs-unit h4{margin:16px 0 4px;font-size:14px;line-height:20px;font-weight:600}
.gs-unit h4:first-child{margin-top:0}
.gs-hist{display:block;width:100%;height:64px}
.gs-hist rect{fill:var(--gs-accent)}
.gs-hist-ends{display:flex;justify-content:space-between;font-size:12px;line-height:16px;color:var(--gs-faint)}
.gs-strong{display:grid;grid-template-columns:minmax(32px,128px) minmax(48px,1fr) 56px;gap:2px 16px;align-items:center;font-size:12px;line-height:16px}
.gs-strong>*{min-width:0;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.gs-strong>.gs-value{text-align:right;color:var(--gs-faint)}
.gs a{color:var(--gs-accent)}
.gs-turns{font-size:12px;line-height:20px;overflow-wrap:anywhere}
`;

function histogram({ counts, low, high }, measure) {
  if (!counts.length) return [make("p", { class: "gs-small gs-faint" }, "It was never active.")];
  const most = Math.log1p(Math.max(...counts));
  const wide = 100 / counts.length;
  const rects = counts.map((count, i) => {
    const tall = count ? Math.max(1, (HIGH * Math.log1p(count)) / most) : 0;
    const one = shape("rect", { x: (i * wide).toFixed(3), y: (HIGH - tall).toFixed(2), width: (wide * 0.9).toFixed(3), height: tall.toFixed(2) });
    const from = low + ((high - low) * i) / counts.length;
    one.append(shape("title", {}, `${format(from)} to ${format(from + (high - low) / counts.length)}: ${count.toLocaleString("en")} rows`));
    return one;
  });
  const picture = shape("svg", { class: "gs-hist", viewBox: `0 0 100 ${HIGH}`, preserveAspectRatio: "none", role: "img", "aria-label": `histogram of the ${measure}, from ${format(low)} to ${format(high)}` }, ...rects);
  return [picture, make("div", { class: "gs-hist-ends" }, make("span", {}, format(low)), make("span", {}, "rows, logarithmic"), make("span", {}, format(high)))];
}

function list({ title, note, rows, most, tokens, text }) {
  const head = make("h4", {}, title, make("small", { class: "gs-faint" }, ` · ${note}`));
  if (text) return [head, make("div", { class: "gs-turns" }, ...text.map((line) => make("div", { dir: "auto" }, legibleLine(line))))];
  if (!rows.length) return [head, make("p", { class: "gs-small gs-faint" }, "none")];
  const cells = rows.flatMap(([name, value, address]) => {
    const says = tokens ? legible(name) : legibleLine(name);
    const label = make(address ? "a" : "span", { class: tokens ? "gs-token" : "", dir: "auto", title: says, ...(address ? { href: address } : {}) }, says);
    const share = Math.min(1, Math.abs(value) / (most || 1));
    const bar = make("div", { class: "gs-track", "aria-hidden": "true" }, make("i", { style: `left:0;width:${(100 * share).toFixed(2)}%;background:var(--gs-${value < 0 ? "negative" : "positive"})` }));
    return [label, bar, make("span", { class: "gs-value" }, format(value, value < 0))];
  });
  return [head, make("div", { class: "gs-strong" }, ...cells)];
}

export function unit(el, spec) {
  const root = card(el, spec);
  root.classList.add("gs-unit");
  root.append(make("style", {}, UNIT_STYLE));
  const drawn = spec.sections.map(({ name, rows }) => ({ name, rows: rows.map(exampleRow) }));
  const canLook = drawn.some(({ rows }) => rows.some(({ row }) => row.looks));
  let by = "value";
  const menu = wordMenu("what tints the tokens", [{ value: "value", label: "its value there" }, { value: "looks", label: "where it looked from the framed token" }], by, (value) => {
    by = value;
    draw();
  });
  const facts = spec.facts.map(([name, value]) => make("div", {}, make("span", { class: "gs-head" }, name === "density" ? percent(value ?? 0) : format(value)), make("small", { class: "gs-faint" }, name)));
  strip(root, { sentence: canLook ? ["Tokens are tinted by ", menu.element] : ["Tokens are tinted by its value there"], aside: [make("div", { class: "gs-unit-facts" }, ...facts)] });
  const { left, right } = panes(root);
  for (const { name, rows } of drawn) {
    const more = rows.length > MOST_ROWS ? [make("details", {}, make("summary", { class: "gs-small" }, `${rows.length - MOST_ROWS} more`), ...rows.slice(MOST_ROWS).map(({ element }) => element))] : [];
    left.append(make("h4", {}, name), ...rows.slice(0, MOST_ROWS).map(({ element }) => element), ...more);
  }
  if (!drawn.length) left.append(make("p", {}, "It was active on no text."));
  right.append(make("h4", {}, "Histogram"), ...histogram(spec.histogram, spec.measure), ...spec.lists.flatMap(list));

  function draw() {
    const colours = theme();
    paint(root, colours);
    const values = { kind: spec.signed ? "diverging" : "sequential", low: spec.signed ? -spec.scale : 0, high: spec.scale };
    for (const { rows } of drawn) for (const { row, tint } of rows) {
      if (by === "looks" && row.looks) tint(row.looks, { kind: "sequential", low: 0, high: Math.max(...row.looks.map((one) => one ?? 0), 1e-9) }, colours.dark);
      else tint(by === "value" ? row.values : row.values.map(() => null), values, colours.dark);
    }
  }
  const stop = redrawOnResize(root, onTheme, draw);
  draw();
  el.dataset.gemmascopeReady = "1";
  return { destroy: stop };
}
