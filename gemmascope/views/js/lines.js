// Line charts: one panel below the other, series over layers, each with its own mark; a position is chosen by its token.
//
// spec: {x: [labels], panels: [{title, unit, series: [names]}], positions: [{pos, token, special}], start: which of them first}
// data: values, flat: [series of all panels][position][x]. A series has the same mark and colour in all panels.

import { FONT } from "./matrix.js";
import { make, paint, rootIn, sized, tooltip, moveFocus, redrawOnResize } from "./page.js";
import { format, ticks } from "./scale.js";
import { onTheme, theme } from "./theme.js";
import { legible, legibleLine } from "./tokens.js";

const MARKS = ["circle", "square", "triangle", "diamond"];
const INKS = { light: ["#2166ac", "#b2182b", "#5b7f00", "#7b3294"], dark: ["#7db7ff", "#ff8a80", "#b9d94f", "#d3a3ff"] };
const LEFT = 64, RIGHT = 120, TOP = 30, HEIGHT = 150, FOOT = 36;

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
  const root = rootIn(el, spec);
  const sizes = { pos: spec.positions.length, x: spec.x.length };
  const names = [...new Set(spec.panels.flatMap((panel) => panel.series))];
  let pos = spec.start;
  const chips = make("div", { class: "gs-bar gs-chips", role: "toolbar", "aria-label": "positions" });
  const buttons = spec.positions.map(({ token, special, pos: number }, i) =>
    make("button", { type: "button", class: special ? "gs-chip gs-special" : "gs-chip", title: `position ${number}`, onclick: () => choose(i), "data-lm-suppress-shortcuts": "true" }, legible(token)));
  chips.append(make("span", {}, "position"), ...buttons);
  const atChip = moveFocus(chips, buttons, choose);
  const positionText = () => `position ${spec.positions[pos].pos}, ${legible(spec.positions[pos].token)}`;
  const canvas = make("canvas", { tabindex: "0", role: "application", "aria-roledescription": "line charts", "data-lm-suppress-shortcuts": "true" });
  const live = make("div", { class: "gs-live", "aria-live": "polite" });
  const table = make("div", { class: "gs-scroll", hidden: true });
  const toggle = make("button", { type: "button", "aria-pressed": "false", onclick: () => {
    table.hidden = !table.hidden;
    toggle.setAttribute("aria-pressed", String(!table.hidden));
    fillTable();
  } }, "Show as table");
  if (sizes.pos > 1) root.append(chips);
  const wide = make("div", { class: "gs-wide" }, canvas);
  root.append(wide, make("div", { class: "gs-bar" }, toggle), table, live);
  const tip = tooltip(root);
  let colours, width, ctx;

  const numbers = (panel) => {
    const before = spec.panels.slice(0, panel).reduce((n, p) => n + p.series.length, 0);
    return spec.panels[panel].series.map((_, i) => seriesAt(data, before + i, pos, sizes));
  };
  const x = (i) => LEFT + ((width - LEFT - RIGHT) * (i + 0.5)) / sizes.x;
  const top = (panel) => TOP + panel * (HEIGHT + TOP + FOOT);

  function choose(next) {
    pos = next;
    live.textContent = positionText();
    redraw();
    fillTable();
  }
  function redraw() {
    colours = theme();
    paint(root, colours);
    atChip(pos);
    width = Math.max(320, wide.clientWidth || 800);
    ctx = sized(canvas, width, spec.panels.length * (HEIGHT + TOP + FOOT));
    ctx.fillStyle = colours.ground;
    ctx.fillRect(0, 0, width, spec.panels.length * (HEIGHT + TOP + FOOT));
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
    ctx.fillText(legibleLine(`${panel.title}${panel.unit ? ` (${panel.unit})` : ""}`), LEFT, top(i) - 9);
    ctx.font = FONT;
    ctx.textBaseline = "middle";
    for (const tick of ticks(low, high, 4)) {
      ctx.strokeStyle = tick === 0 ? colours.faint : colours.line;
      ctx.lineWidth = tick === 0 ? 1.2 : 0.6;
      ctx.beginPath();
      ctx.moveTo(LEFT, y(tick));
      ctx.lineTo(width - RIGHT, y(tick));
      ctx.stroke();
      ctx.textAlign = "right";
      ctx.fillText(format(tick), LEFT - 6, y(tick));
    }
    ctx.textAlign = "center";
    const every = Math.ceil((sizes.x * 30) / (width - LEFT - RIGHT));
    spec.x.forEach((label, k) => k % every || ctx.fillText(label, x(k), top(i) + HEIGHT + 12));
    ctx.fillStyle = colours.faint;
    ctx.fillText(spec.x_axis, (LEFT + width - RIGHT) / 2, top(i) + HEIGHT + 27);
    lists.forEach((list, s) => series(list, s, panel.series[s], y, i));
  }
  function series(list, s, name, y, panel) {
    const kind = names.indexOf(name) % MARKS.length;
    const ink = INKS[colours.dark ? "dark" : "light"][kind];
    ctx.strokeStyle = ctx.fillStyle = ink;
    ctx.lineWidth = 1.8;
    ctx.beginPath();
    list.forEach((v, k) => Number.isFinite(v) && ctx.lineTo(x(k), y(v)));
    ctx.stroke();
    list.forEach((v, k) => Number.isFinite(v) && mark(x(k), y(v), MARKS[kind]));
    const [lx, ly] = [width - RIGHT + 18, top(panel) + 8 + s * 18];
    mark(lx, ly, MARKS[kind]);
    ctx.fillStyle = colours.ink;
    ctx.textAlign = "left";
    ctx.fillText(name, lx + 10, ly);
  }
  function mark(px, py, kind) {
    ctx.beginPath();
    if (kind === "circle") ctx.arc(px, py, 3.6, 0, 7);
    else if (kind === "square") ctx.rect(px - 3.3, py - 3.3, 6.6, 6.6);
    else if (kind === "triangle") { ctx.moveTo(px, py - 4.4); ctx.lineTo(px + 4.2, py + 3.4); ctx.lineTo(px - 4.2, py + 3.4); }
    else { ctx.moveTo(px, py - 4.6); ctx.lineTo(px + 4.6, py); ctx.lineTo(px, py + 4.6); ctx.lineTo(px - 4.6, py); }
    ctx.fill();
  }
  function layerText(k) {
    const lines = [`layer ${spec.x[k]}, ${positionText()}`];
    spec.panels.forEach((panel, i) => {
      lines.push(`${legibleLine(panel.title)}:`, ...numbers(i).map((list, s) => `  ${panel.series[s]} ${format(list[k])}`));
    });
    return lines.join("\n");
  }
  function fillTable() {
    if (table.hidden) return;
    const head = make("tr", {}, make("th", {}, spec.x_axis), ...spec.panels.flatMap((p) => p.series.map((s) => make("th", { scope: "col" }, `${legibleLine(p.title)}: ${s}`))));
    const rows = spec.x.map((label, k) => make("tr", {}, make("th", { scope: "row" }, label), ...spec.panels.flatMap((_, i) => numbers(i).map((list) => make("td", {}, format(list[k]))))));
    table.replaceChildren(make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
  }
  let at = -1;
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const k = Math.floor(((event.clientX - box.left - LEFT) / (width - LEFT - RIGHT)) * sizes.x);
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
    tip.show(layerText(at), x(at), canvas.parentElement.offsetTop + 30);
  });
  canvas.addEventListener("blur", () => tip.hide());
  const stop = redrawOnResize(root, onTheme, redraw);
  redraw();
  return { choose, destroy: stop };
}
