// Line charts: series over layers, each with its own mark, one panel under the other; a position is chosen by its token.
//
// spec: {x: [labels], panels: [{title, unit, series: [{name, kind}]}], tokens, special, pos}
// data: values [panel series one after the other][pos][x], flat.

import { make, paint, rootIn, sized, tooltip, whenSeen } from "./page.js";
import { format, ticks } from "./scale.js";
import { onTheme, theme } from "./theme.js";
import { shown } from "./tokens.js";

const MARKS = ["circle", "square", "triangle", "diamond"];
const INKS = { light: ["#2166ac", "#b2182b", "#5b7f00", "#7b3294"], dark: ["#7db7ff", "#ff8a80", "#b9d94f", "#d3a3ff"] };
const [LEFT, RIGHT, TOP, HEIGHT, FOOT] = [64, 150, 22, 150, 34];

/** The numbers of one series at a position, out of all. */
export function seriesAt(data, series, pos, sizes) {
  const start = (series * sizes.pos + pos) * sizes.x;
  return data.subarray(start, start + sizes.x);
}

/** The least and largest of several lists, 0 among them, widened where they are one. */
export function rangeOf(lists) {
  let [low, high] = [0, 0];
  for (const list of lists) for (const v of list) if (Number.isFinite(v)) [low, high] = [Math.min(low, v), Math.max(high, v)];
  return high > low ? [low, high] : [low, low + 1];
}

export function lines(el, spec, data) {
  const root = rootIn(el, spec);
  const sizes = { pos: spec.tokens.length, x: spec.x.length };
  let pos = spec.pos;
  const chips = make("div", { class: "gs-bar", role: "toolbar", "aria-label": "positions" });
  const buttons = spec.tokens.map((token, i) =>
    make("button", { type: "button", class: spec.special[i] ? "gs-chip gs-special" : "gs-chip", title: `position ${i}`, onclick: () => choose(i), "data-lm-suppress-shortcuts": "true" }, shown(token)));
  chips.append(...buttons);
  chips.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    choose(Math.min(sizes.pos - 1, Math.max(0, pos + step)));
    buttons[pos].focus();
  });
  const canvas = make("canvas", { tabindex: "0", role: "img" });
  const live = make("div", { class: "gs-live", "aria-live": "polite" });
  const table = make("div", { class: "gs-scroll", hidden: true });
  const toggle = make("button", { type: "button", "aria-pressed": "false", onclick: () => {
    table.hidden = !table.hidden;
    toggle.setAttribute("aria-pressed", String(!table.hidden));
    fill();
  } }, "Show as table");
  if (sizes.pos > 1) root.append(chips);
  root.append(canvas, make("div", { class: "gs-bar" }, toggle), table, live);
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
    live.textContent = `position ${pos}, ${shown(spec.tokens[pos])}`;
    redraw();
    fill();
  }
  function redraw() {
    colours = theme();
    paint(root, colours);
    buttons.forEach((b, i) => b.setAttribute("aria-pressed", String(i === pos)));
    width = Math.max(320, root.clientWidth || 800);
    ctx = sized(canvas, width, spec.panels.length * (HEIGHT + TOP + FOOT));
    ctx.font = "12px system-ui, sans-serif";
    spec.panels.forEach((panel, i) => draw(panel, i));
    canvas.setAttribute("aria-label", `${spec.title} at position ${pos}: ${spec.panels.map((p) => p.title).join("; ")}`);
    el.dataset.gemmascopeReady = "1";
  }
  function draw(panel, i) {
    const lists = numbers(i);
    const [low, high] = rangeOf(lists);
    const y = (v) => top(i) + HEIGHT - (HEIGHT * (v - low)) / (high - low);
    ctx.fillStyle = colours.ink;
    ctx.textAlign = "left";
    ctx.textBaseline = "alphabetic";
    ctx.fillText(`${panel.title}${panel.unit ? ` (${panel.unit})` : ""}`, LEFT, top(i) - 8);
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
    lists.forEach((list, s) => series(list, s, panel.series[s].name, y, i));
  }
  function series(list, s, name, y, panel) {
    const ink = INKS[colours.dark ? "dark" : "light"][s % 4];
    ctx.strokeStyle = ctx.fillStyle = ink;
    ctx.lineWidth = 1.8;
    ctx.beginPath();
    list.forEach((v, k) => Number.isFinite(v) && (k ? ctx.lineTo(x(k), y(v)) : ctx.moveTo(x(k), y(v))));
    ctx.stroke();
    list.forEach((v, k) => Number.isFinite(v) && mark(x(k), y(v), MARKS[s % 4]));
    const [lx, ly] = [width - RIGHT + 18, top(panel) + 8 + s * 18];
    mark(lx, ly, MARKS[s % 4]);
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
  function said(k) {
    const all = spec.panels.flatMap((panel, i) => numbers(i).map((list, s) => `${panel.series[s].name} ${format(list[k])}`));
    return [`${spec.x_axis} ${spec.x[k]}`, ...all].join("\n");
  }
  function fill() {
    if (table.hidden) return;
    const head = make("tr", {}, make("th", {}, spec.x_axis), ...spec.panels.flatMap((p) => p.series.map((s) => make("th", { scope: "col" }, s.name))));
    const rows = spec.x.map((label, k) => make("tr", {}, make("th", { scope: "row" }, label), ...spec.panels.flatMap((_, i) => numbers(i).map((list) => make("td", {}, format(list[k]))))));
    table.replaceChildren(make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
  }
  let at = 0;
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const k = Math.floor(((event.clientX - box.left - LEFT) / (width - LEFT - RIGHT)) * sizes.x);
    if (k < 0 || k >= sizes.x) return tip.hide();
    at = k;
    const outer = root.getBoundingClientRect();
    tip.show(said(k), event.clientX - outer.left, event.clientY - outer.top, colours);
  });
  canvas.addEventListener("pointerleave", () => tip.hide());
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    at = Math.min(sizes.x - 1, Math.max(0, at + step));
    live.textContent = said(at);
    tip.show(said(at), x(at), canvas.offsetTop + 30, colours);
  });
  canvas.addEventListener("blur", () => tip.hide());
  const stop = whenSeen(root, onTheme, redraw);
  redraw();
  return { choose, destroy: stop };
}
