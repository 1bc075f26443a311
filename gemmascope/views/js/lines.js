// Line charts of series over layers, side by side where there is room, each with its own mark and name; a token chooses the
// position.
//
// spec: {x: [labels], panels: [{title, unit, series: [names]}], positions: [{pos, token, special}], start: which of them first,
//   prompt: the tokens, null if the positions are all of them}
// data: values, flat: [series of all panels][position][x]. A series has the same mark and colour in all panels.

import { FONT } from "./matrix.js";
import { make, paint, sized, tooltip, redrawOnResize } from "./page.js";
import { format, rounded, ticks } from "./scale.js";
import { card, strip } from "./system/card.js";
import { tokenBus } from "./system/token_bus.js";
import { onTheme, theme } from "./theme.js";
import { TEXT_STYLE, tintedText } from "./tinted_text.js";
import { fitted, legible, legibleLine, wrapped } from "./tokens.js";

const MARKS = ["circle", "square", "triangle", "diamond"];
// The third and the fourth series; the first two have the theme's colours of positive and negative numbers.
const INKS = { light: ["#5b7f00", "#7b3294"], dark: ["#b9d94f", "#d3a3ff"] };
const LEFT = 56, RIGHT = 88, TOP = 28, HEIGHT = 160, FOOT = 40;
// Pixels of a card from which charts stand side by side; of a line of text; lines of a title.
const SIDE_BY_SIDE = 900, LINE = 16, TITLE_LINES = 2;

/** Where the names of lines stand beside their ends, ys: at least LINE pixels apart, in the order of the ends. */
export function namePlaces(ys) {
  const order = ys.map((_, i) => i).sort((a, b) => ys[a] - ys[b]);
  const places = [...ys];
  order.forEach((i, k) => {
    if (k) places[i] = Math.max(places[i], places[order[k - 1]] + LINE);
  });
  return places;
}

/** The numbers of one series at a position. */
export function seriesAt(data, series, pos, sizes) {
  const start = (series * sizes.pos + pos) * sizes.x;
  return data.subarray(start, start + sizes.x);
}

/** The range of several lists, with 0 and a small margin; never empty. */
export function rangeOf(lists) {
  let [low, high] = [0, 0];
  for (const list of lists) for (const v of list) if (Number.isFinite(v)) [low, high] = [Math.min(low, v), Math.max(high, v)];
  if (high === low) return [low, low + 1];
  const air = (high - low) * 0.06;
  return [low < 0 ? low - air : low, high > 0 ? high + air : high];
}

export function lines(el, spec, data) {
  const root = card(el);
  root.setAttribute("aria-label", legibleLine(spec.title));
  const sizes = { pos: spec.positions.length, x: spec.x.length };
  const names = [...new Set(spec.panels.flatMap((panel) => panel.series))];
  const tokens = spec.positions.map(({ token }) => token);
  const bus = tokenBus(spec.prompt ?? tokens);
  let pos = spec.start;
  const text = tintedText(tokens, { bus, special: spec.positions.map(({ special }) => special), positions: spec.positions.map((one) => one.pos), close: true, label: "positions" });
  const positionText = () => `position ${spec.positions[pos].pos}, ${legible(spec.positions[pos].token)}`;
  const canvas = make("canvas", { tabindex: "0", role: "application", "aria-roledescription": "line charts", "data-lm-suppress-shortcuts": "true" });
  const live = make("div", { class: "gs-live", "aria-live": "polite" });
  const table = make("div", { class: "gs-scroll", hidden: true });
  const toggle = make("button", { type: "button", "aria-pressed": "false", onclick: () => {
    table.hidden = !table.hidden;
    toggle.setAttribute("aria-pressed", String(!table.hidden));
    fillTable();
  } }, "Show as table");
  strip(root, { sentence: [make("div", { class: "gs-title" }, legibleLine(spec.title)), make("span", { class: "gs-faint" }, spec.note)] });
  const wide = make("div", { class: "gs-wide" }, canvas);
  const where = make("div", { class: "gs-head" });
  root.append(make("div", { style: "padding:16px 24px" }, make("style", {}, TEXT_STYLE), where, text.element, wide, make("div", { class: "gs-bar" }, toggle), table), live);
  const tip = tooltip(root);
  let colours, width, ctx;

  const numbers = (panel) => {
    const before = spec.panels.slice(0, panel).reduce((n, p) => n + p.series.length, 0);
    return spec.panels[panel].series.map((_, i) => seriesAt(data, before + i, pos, sizes));
  };
  let perRow = 1;
  const left = (panel) => LEFT + (panel % perRow) * width;
  const x = (i, panel) => left(panel) + ((width - LEFT - RIGHT) * (i + 0.5)) / sizes.x;
  let titles = []; // the lines of each panel's title
  let above = TOP; // pixels above a chart, for its title and its unit
  const top = (panel) => above + Math.floor(panel / perRow) * (HEIGHT + above + FOOT);

  function choose(next) {
    if (next !== pos) live.textContent = positionText();
    pos = next;
    redraw();
    fillTable();
  }
  function redraw() {
    colours = theme();
    paint(root, colours);
    text.tint({ at: pos }, colours);
    where.textContent = `Position ${spec.positions[pos].pos}, ${legible(spec.positions[pos].token)}`;
    const room = Math.max(320, wide.clientWidth || 800);
    perRow = root.clientWidth >= SIDE_BY_SIDE ? spec.panels.length : 1;
    width = Math.floor(room / perRow);
    canvas.getContext("2d").font = `600 ${FONT}`;
    titles = spec.panels.map((panel) => wrapped(legibleLine(panel.title), width - LEFT - 8, (text) => canvas.getContext("2d").measureText(text).width, TITLE_LINES));
    above = TOP + LINE * Math.max(...titles.map((lines) => lines.length));
    const height = Math.ceil(spec.panels.length / perRow) * (HEIGHT + above + FOOT);
    ctx = sized(canvas, width * perRow, height);
    ctx.fillStyle = colours.ground;
    ctx.fillRect(0, 0, width * perRow, height);
    ctx.font = FONT;
    spec.panels.forEach((panel, i) => chart(panel, i));
    canvas.setAttribute("aria-label", `${legibleLine(spec.title)} at ${positionText()}: ${spec.panels.map((p) => legibleLine(p.title)).join("; ")}. Arrow keys read a layer`);
    el.dataset.gemmascopeReady = "1";
  }
  function chart(panel, i) {
    const lists = numbers(i);
    const [low, high] = rangeOf(lists);
    const y = (v) => top(i) + HEIGHT - (HEIGHT * (v - low)) / (high - low);
    ctx.fillStyle = colours.ink;
    ctx.textAlign = "left";
    ctx.textBaseline = "alphabetic";
    ctx.font = `600 ${FONT}`;
    titles[i].forEach((line, k) => ctx.fillText(line, left(i), top(i) - 24 - LINE * (titles[i].length - 1 - k)));
    ctx.font = FONT;
    ctx.fillStyle = colours.faint;
    ctx.fillText(fitted(legibleLine(panel.unit), width - LEFT - 8, (one) => ctx.measureText(one).width), left(i), top(i) - 8);
    ctx.fillStyle = colours.ink;
    ctx.textBaseline = "middle";
    for (const tick of ticks(low, high, 4)) {
      ctx.strokeStyle = tick === 0 ? colours.faint : colours.line;
      ctx.lineWidth = tick === 0 ? 1.2 : 0.6;
      ctx.beginPath();
      ctx.moveTo(left(i), y(tick));
      ctx.lineTo(left(i) + width - LEFT - RIGHT, y(tick));
      ctx.stroke();
      ctx.textAlign = "right";
      ctx.fillText(format(tick), left(i) - 6, y(tick));
    }
    ctx.textAlign = "center";
    const every = Math.ceil((sizes.x * 30) / (width - LEFT - RIGHT));
    spec.x.forEach((label, k) => k % every || ctx.fillText(label, x(k, i), top(i) + HEIGHT + 12));
    ctx.fillStyle = colours.faint;
    ctx.fillText(spec.x_axis, left(i) + (width - LEFT - RIGHT) / 2, top(i) + HEIGHT + 28);
    const places = namePlaces(lists.map((list) => y(Number.isFinite(list.at(-1)) ? list.at(-1) : 0)));
    lists.forEach((list, s) => series(list, panel.series[s], y, i, places[s]));
  }
  function series(list, name, y, panel, place) {
    const kind = names.indexOf(name) % MARKS.length;
    const ink = [colours.positive, colours.negative, ...INKS[colours.dark ? "dark" : "light"]][kind];
    ctx.strokeStyle = ctx.fillStyle = ink;
    ctx.lineWidth = 1.8;
    ctx.beginPath();
    list.forEach((v, k) => Number.isFinite(v) && ctx.lineTo(x(k, panel), y(v)));
    ctx.stroke();
    list.forEach((v, k) => Number.isFinite(v) && mark(x(k, panel), y(v), MARKS[kind]));
    ctx.textAlign = "left";
    ctx.fillText(fitted(legibleLine(name), RIGHT - 12, (one) => ctx.measureText(one).width), x(sizes.x - 1, panel) + 10, place);
  }
  function mark(px, py, kind) {
    ctx.beginPath();
    if (kind === "circle") ctx.arc(px, py, 3.6, 0, 7);
    else if (kind === "square") ctx.rect(px - 3.3, py - 3.3, 6.6, 6.6);
    else if (kind === "triangle") { ctx.moveTo(px, py - 4.4); ctx.lineTo(px + 4.2, py + 3.4); ctx.lineTo(px - 4.2, py + 3.4); }
    else { ctx.moveTo(px, py - 4.6); ctx.lineTo(px + 4.6, py); ctx.lineTo(px, py + 4.6); ctx.lineTo(px - 4.6, py); }
    ctx.fill();
  }
  /** A number of a series as text: without float32's rounding on the scale of the series. */
  const shown = (list, k) => format(rounded(list[k], { low: Math.min(...list), high: Math.max(...list) }));
  function layerText(k) {
    const lines = [`layer ${spec.x[k]}, ${positionText()}`];
    spec.panels.forEach((panel, i) => {
      lines.push(`${legibleLine(panel.title)}:`, ...numbers(i).map((list, s) => `  ${panel.series[s]} ${shown(list, k)}`));
    });
    return lines.join("\n");
  }
  function fillTable() {
    if (table.hidden) return;
    const head = make("tr", {}, make("th", {}, spec.x_axis), ...spec.panels.flatMap((p) => p.series.map((s) => make("th", { scope: "col" }, `${legibleLine(p.title)}: ${s}`))));
    const rows = spec.x.map((label, k) => make("tr", {}, make("th", { scope: "row" }, label), ...spec.panels.flatMap((_, i) => numbers(i).map((list) => make("td", {}, shown(list, k))))));
    table.replaceChildren(make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
  }
  let at = -1;
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const k = Math.floor(((((event.clientX - box.left) % width) - LEFT) / (width - LEFT - RIGHT)) * sizes.x);
    if (k < 0 || k >= sizes.x) return tip.hide();
    at = k;
    const outer = root.getBoundingClientRect();
    tip.show(layerText(k), event.clientX - outer.left, event.clientY - outer.top);
  });
  canvas.addEventListener("pointerleave", () => tip.hide());
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    at = Math.min(sizes.x - 1, Math.max(0, at + step));
    live.textContent = layerText(at);
    tip.show(layerText(at), x(at, 0), canvas.parentElement.offsetTop + 30);
  });
  canvas.addEventListener("blur", () => tip.hide());
  /** The position that is pointed at, or the one that is kept, or the first that was shown. */
  const stopBus = bus.on(({ at: pointed, pinned }) => {
    const found = [pointed, pinned].map((one) => spec.positions.findIndex((place) => place.pos === one)).find((i) => i >= 0);
    choose(found ?? spec.start);
  });
  const stop = redrawOnResize(root, onTheme, redraw);
  redraw();
  const destroy = () => {
    stop();
    stopBus();
    bus.stop();
  };
  return { choose, destroy };
}
