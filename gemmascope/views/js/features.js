// The view of a run's features: a grid of features by positions, the text tinted by the chosen feature, and the features of the
// chosen token as bars.
//
// spec: a grid's, with peaks: each feature's largest activation where colours count it, and positions: of the columns
// data: activations, flat, [feature][position]

import { linkedGrid } from "./linked_grid.js";
import { make, paint, redrawOnResize } from "./page.js";
import { format } from "./scale.js";
import { bars } from "./system/bars.js";
import { card, panes, strip } from "./system/card.js";
import { wordMenu } from "./system/menus.js";
import { tokenBus } from "./system/token_bus.js";
import { onTheme, theme } from "./theme.js";
import { TEXT_STYLE, tintedText } from "./tinted_text.js";
import { legible, legibleLine } from "./tokens.js";

const MOST_BARS = 10;
const ORDERS = [{ value: "strength", label: "strength" }, { value: "number", label: "number" }, { value: "first", label: "first active position" }];

/** The order of the features, as indices of the rows: by number as given, the strongest first, or by where they begin. */
export function featureOrder(order, spec, values) {
  const n = spec.columns.length;
  const all = spec.rows.map((_, i) => i);
  const begins = all.map((i) => values.subarray(i * n, (i + 1) * n).findIndex((value) => value > 0));
  if (order === "strength") return all.sort((a, b) => spec.peaks[b] - spec.peaks[a]);
  if (order === "first") return all.sort((a, b) => begins[a] - begins[b]);
  return all;
}

export function features(el, spec, data) {
  const root = card(el);
  root.setAttribute("aria-label", legibleLine(spec.title));
  const tokens = spec.columns.map((column) => column.label);
  const n = tokens.length;
  const bus = tokenBus(tokens);
  let order = featureOrder("strength", spec, data);
  let chosen = order[0]; // an index of spec.rows
  const sort = wordMenu("order of the features", ORDERS, "strength", (value) => {
    order = featureOrder(value, spec, data);
    drawGrid();
  });
  strip(root, { sentence: [make("div", { class: "gs-title" }, legibleLine(spec.title)), spec.note, " Sorted by ", sort.element] });
  const { left, right } = panes(root);
  const heading = make("div", { class: "gs-head" });
  const where = make("div", { class: "gs-small gs-faint", style: "min-height:16px", "aria-live": "polite" });
  const text = tintedText(tokens, { bus, special: spec.columns.map((column) => column.special), close: true });
  const tokenHead = make("div", { class: "gs-title", style: "margin:16px 0 8px" });
  const strongest = bars([], { label: "features of the token", most: spec.scale.high });
  const list = make("div", { style: `min-height:${MOST_BARS * 24}px` }, strongest.element);
  right.append(make("style", {}, TEXT_STYLE), heading, where, text.element, tokenHead, list);
  const host = make("div");
  left.append(host);

  const at = (feature, pos) => data[feature * n + pos];
  const gridSpec = () => ({ ...spec, title: "", name: spec.title, note: "", framed: false, rows: order.map((i) => spec.rows[i]) });
  const gridValues = () => Float32Array.from(order.flatMap((i) => [...data.subarray(i * n, (i + 1) * n)]));
  const featureGrid = linkedGrid(host, gridSpec(), { values: gridValues(), marks: null }, {
    hover: (row, pos) => bus.point(pos),
    select: (row, pos) => {
      chosen = order[row];
      if (bus.state().pinned !== pos) bus.pin(pos);
      draw();
    },
  });
  function drawGrid() {
    featureGrid.update({ spec: gridSpec(), values: gridValues() });
  }
  function draw() {
    const colours = theme();
    paint(root, colours);
    const values = data.subarray(chosen * n, (chosen + 1) * n);
    heading.textContent = `Feature ${legibleLine(spec.rows[chosen].label)}`;
    const peak = values.indexOf(spec.peaks[chosen]);
    where.textContent = `strongest at ${legible(tokens[peak])} (${peak}): ${format(spec.peaks[chosen])}`;
    text.tint({ values, scale: spec.scale, first: peak }, colours);
    drawToken();
  }
  function drawToken() {
    const { at: pointed, pinned } = bus.state();
    const pos = [pointed, pinned, n - 1].find((one) => one !== null && one >= 0 && one < n);
    featureGrid.cross(null, pointed);
    const here = order.filter((i) => at(i, pos) > 0).sort((a, b) => at(b, pos) - at(a, pos)).slice(0, MOST_BARS);
    tokenHead.textContent = here.length ? `Features at ${legible(tokens[pos])} (${pos})` : `None of these features at ${legible(tokens[pos])} (${pos})`;
    strongest.update(here.map((i) => ({ name: legibleLine(spec.rows[i].label), value: at(i, pos), text: format(at(i, pos)) })));
  }
  const stopBus = bus.on(drawToken);
  const stop = redrawOnResize(root, onTheme, draw);
  draw();
  featureGrid.reveal(n - 1);
  el.dataset.gemmascopeReady = "1";
  const destroy = () => {
    stop();
    stopBus();
    bus.stop();
    featureGrid.destroy();
  };
  return { destroy };
}
