// The slider of a steering lab: it lies on the curve of what is followed, above the perplexity, and where that collapses the
// ground is shaded. The slider is a real range input, laid over the curve unseen.

import { make } from "../page.js";
import { format, ticks } from "../scale.js";
import { shape } from "../system/arcs.js";

export const CURVE_STYLE = `
.gs-curve{position:relative;min-height:248px}
.gs-curve svg{display:block;width:100%;height:248px;font:12px system-ui,sans-serif}
.gs-curve text{fill:var(--gs-faint)}
.gs-curve .gs-curve-title{fill:var(--gs-ink)}
.gs .gs-curve input{position:absolute;top:0;height:224px;margin:0;opacity:0;cursor:ew-resize}
.gs-curve:has(input:focus-visible) .gs-handle{stroke:var(--gs-highlight);stroke-width:4px}
`;
const LEFT = 56, RIGHT = 16, TOP = 24, METRIC = 112, BETWEEN = 32, PERPLEXITY = 48;
const STEPS = 64;
const PATIENCE_MS = 2000;

/** The stretches of strengths that have collapsed, as [from, to]: each point stands for half the way to its neighbours. */
export function collapsedSpans(strengths, collapsed) {
  const spans = [];
  const edge = (i, j) => (j < 0 || j >= strengths.length ? strengths[i] : (strengths[i] + strengths[j]) / 2);
  collapsed.forEach((is, i) => {
    if (!is) return;
    const [from, to] = [edge(i, i - 1), edge(i, i + 1)];
    const last = spans.at(-1);
    if (last && last[1] >= from) last[1] = to;
    else spans.push([from, to]);
  });
  return spans;
}

/** The value of a curve at a strength, between its two measured neighbours; null outside of what is measured. */
export function valueAt(strengths, values, strength) {
  let before = null;
  for (let i = 0; i < strengths.length; i++) {
    if (values[i] === null) continue;
    if (strengths[i] === strength) return values[i];
    if (strengths[i] > strength) return before === null ? null : values[before] + ((values[i] - values[before]) * (strength - strengths[before])) / (strengths[i] - strengths[before]);
    before = i;
  }
  return null;
}

/** slid(strength): the slider was moved. Returns {element, input, update(state), release(), destroy()}. */
export function strengthCurve(slid) {
  const input = make("input", { type: "range", "aria-label": "strength", "data-gs-do": "strength", "data-lm-suppress-shortcuts": "true" });
  const host = make("div");
  const element = make("div", { class: "gs-curve" }, host, input);
  let state = null;
  let isHeld = false;
  let room = 640; // pixels
  let waiting = false;
  let asked = null; // the strength that the slider was moved to, until Python's answer has it: older answers may come first
  let askedAt = 0;
  input.addEventListener("pointerdown", () => (isHeld = true));
  input.addEventListener("pointerup", () => (isHeld = false));
  input.addEventListener("input", () => {
    const moved = Number(input.value);
    asked = moved;
    askedAt = performance.now();
    draw();
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      slid(asked ?? moved);
    });
  });

  function update(now) {
    state = now;
    const [low, high] = now.strengths;
    if (input.min !== String(low) || input.max !== String(high)) Object.assign(input, { min: String(low), max: String(high), step: String((high - low) / STEPS) });
    if (asked === now.strength || now.error || (!now.busy && performance.now() - askedAt > PATIENCE_MS)) asked = null;
    if (!isHeld && asked === null) input.value = String(now.strength);
    draw();
  }
  function draw() {
    if (!state) return;
    const { strengths, metric, perplexity, collapsed, unsteered, why_not } = state.curve;
    const [low, high] = state.strengths;
    const strength = isHeld || asked !== null ? Number(input.value) : state.strength;
    room = element.clientWidth || room; // none for a moment while a front end changes its theme
    const width = Math.max(280, room);
    const x = (s) => LEFT + ((width - LEFT - RIGHT) * (s - low)) / (high - low);
    const known = metric.filter((v) => v !== null);
    const parts = [];
    const bottom = TOP + METRIC + BETWEEN + PERPLEXITY;
    for (const [from, to] of collapsedSpans(strengths, collapsed)) parts.push(shape("rect", { x: x(from), y: TOP - 4, width: x(to) - x(from), height: bottom - TOP + 8, fill: "var(--gs-warn)", "fill-opacity": 0.1 }));
    const text = (label, at, y, anchor = "start", name = "") => shape("text", { x: at, y, "text-anchor": anchor, class: name }, label);
    const line = (y, ink) => shape("line", { x1: LEFT, x2: width - RIGHT, y1: y, y2: y, stroke: `var(--gs-${ink})` });
    const path = (values, y) => {
      const steps = strengths.map((s, i) => (values[i] === null ? null : `${x(s).toFixed(1)},${y(values[i]).toFixed(1)}`)).filter(Boolean);
      return shape("path", { d: steps.length ? `M${steps.join("L")}` : "", fill: "none", stroke: "var(--gs-accent)", "stroke-width": 2, "stroke-linejoin": "round" });
    };
    parts.push(text(state.follows ?? "…", LEFT, 12, "start", "gs-curve-title"));
    let handle = TOP + METRIC / 2;
    if (known.length) {
      const all = [...known, ...(unsteered[0] === null ? [] : [unsteered[0]])];
      const [least, most] = [Math.min(...all), Math.max(...all)];
      const span = most - least || 1;
      const y = (v) => TOP + METRIC - (METRIC * (v - least)) / span;
      for (const tick of ticks(least, most, 3)) parts.push(line(y(tick), "line"), text(format(tick), LEFT - 8, y(tick) + 4, "end"));
      parts.push(path(metric, y));
      const here = valueAt(strengths, metric, strength) ?? (strength < low ? metric[0] : metric.at(-1));
      if (here !== null) handle = y(here);
    } else parts.push(line(handle, "line"));
    parts.push(text(why_not ? "" : "perplexity of the unsteered text", LEFT, TOP + METRIC + BETWEEN - 8, "start", "gs-curve-title"));
    const measured = perplexity.filter((v) => v !== null).map(Math.log);
    if (measured.length) {
      const [least, most] = [Math.min(...measured), Math.max(...measured)];
      const y = (v) => bottom - (PERPLEXITY * (Math.log(v) - least)) / (most - least || 1);
      for (const value of [Math.exp(least), Math.exp(most)]) parts.push(line(y(value), "line"), text(format(Number(value.toPrecision(2))), LEFT - 8, y(value) + 4, "end"));
      parts.push(path(perplexity, y));
    }
    for (const tick of ticks(low, high, 8)) parts.push(text(tick === 0 ? "0" : format(tick, true), x(tick), bottom + 20, "middle"));
    const now = x(Math.min(high, Math.max(low, strength)));
    parts.push(shape("line", { x1: x(0), x2: x(0), y1: TOP, y2: bottom, stroke: "var(--gs-faint)", "stroke-dasharray": "2 3" }));
    parts.push(shape("line", { x1: now, x2: now, y1: TOP, y2: bottom, stroke: "var(--gs-accent)" }), shape("circle", { class: "gs-handle", cx: now, cy: handle, r: 8, fill: "var(--gs-accent)", stroke: "var(--gs-ground)", "stroke-width": 2 }));
    host.replaceChildren(shape("svg", { "aria-hidden": "true", viewBox: `0 0 ${width} 248`, preserveAspectRatio: "none" }, ...parts));
    input.style.left = `${LEFT - 8}px`;
    input.style.width = `${width - LEFT - RIGHT + 16}px`;
    const measuredHere = valueAt(strengths, perplexity, strength);
    input.setAttribute("aria-valuetext", `strength ${format(strength, true)}: ${state.follows ?? ""} ${format(valueAt(strengths, metric, strength))}, perplexity ${format(measuredHere)}`);
  }
  const observer = new ResizeObserver(draw);
  observer.observe(element);
  /** Show what Python says again: the strength was changed in another way. */
  function release() {
    asked = null;
  }
  return { element, input, update, release, destroy: () => observer.disconnect() };
}
