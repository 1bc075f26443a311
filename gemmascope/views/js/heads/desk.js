// The mixing desk of a head lab: every head is a channel with its pattern, what it writes towards the answer, mute, solo and
// gain. Layer 0 is at the bottom. Models with many heads have small channels, whose knobs are those of the selected head.

import { make, sized } from "../page.js";
import { colour, css, format } from "../scale.js";
import { theme } from "../theme.js";

export const DESK_STYLE = `
.gs-desk{display:grid;gap:8px 8px;overflow-x:auto;padding:2px}
.gs-desk-label{font-size:12px;line-height:16px;color:var(--gs-faint);align-self:center;text-align:right;padding-right:4px;white-space:nowrap;position:sticky;left:0;background:var(--gs-ground)}
.gs-channel{position:relative;display:grid;grid-template-columns:48px minmax(0,1fr);gap:2px 8px;align-items:center;padding:4px;border:1px solid var(--gs-line);border-radius:4px;min-width:0}
.gs-channel:has([aria-current=true]){border-color:var(--gs-accent);box-shadow:0 0 0 1px var(--gs-accent)}
.gs .gs-channel .gs-look{grid-row:span 3;position:relative;padding:0;min-height:0;width:48px;height:48px;border-radius:2px;border:0;overflow:hidden;background:var(--gs-pane)}
.gs-channel .gs-look canvas{width:48px;height:48px}
.gs-channel-top{display:flex;align-items:center;gap:2px;font-size:12px;line-height:16px;white-space:nowrap}
.gs-channel-top b{flex:1;font-weight:600;overflow:hidden;text-overflow:ellipsis}
.gs .gs-knob{min-height:18px;min-width:20px;padding:0 3px;font-size:12px;line-height:14px;border:1px solid var(--gs-line)}
.gs .gs-knob[aria-pressed=true]{background:var(--gs-accent);border-color:var(--gs-accent);color:var(--gs-on-accent)}
.gs .gs-knob.gs-mute[aria-pressed=true]{background:var(--gs-negative);border-color:var(--gs-negative);color:var(--gs-ground)}
.gs-meter{position:relative;height:6px;border-radius:3px;background:var(--gs-line);overflow:hidden}
.gs-meter i{position:absolute;top:0;bottom:0}
.gs-meter b{position:absolute;top:0;bottom:0;width:2px;margin-left:-1px;background:var(--gs-ink)}
.gs-meter u{position:absolute;top:0;bottom:0;left:50%;width:1px;background:var(--gs-faint)}
.gs .gs-gain{width:100%;height:12px;margin:0;min-width:0}
.gs-silent{opacity:.55}
.gs-silent .gs-channel-top b{text-decoration:line-through}
.gs-silent .gs-look::after,.gs-small-channel.gs-silent::after{content:"";position:absolute;inset:0;background:linear-gradient(to top right,transparent calc(50% - 1.5px),var(--gs-negative) calc(50% - 1px),var(--gs-negative) calc(50% + 1px),transparent calc(50% + 1.5px))}
.gs .gs-small-channel{position:relative;min-height:24px;min-width:24px;padding:0;font-size:12px;border:1px solid var(--gs-line);border-radius:4px;overflow:hidden}
.gs .gs-small-channel[aria-current=true]{box-shadow:0 0 0 2px var(--gs-accent)}
.gs-small-channel.gs-soloed{outline:2px solid var(--gs-accent);outline-offset:-3px}
`;
const MOST_WIDE = 8; // heads of a layer with knobs of their own
const MOST_GAIN = 2;

/** What a desk holds of a head: {gain, muted, soloed, factor}. */
export function channelOf(state, layer, head) {
  const is = ([l, h]) => l === layer && h === head;
  const { gains, muted, soloed } = state.desk;
  return { gain: gains.find(is)?.[2] ?? 1, muted: muted.some(is), soloed: soloed.some(is), factor: state.factors.find(is)?.[2] ?? 1 };
}

/** A head in words. */
export function channelText(layer, head, { factor, soloed, muted }, wrote) {
  const what = muted ? "muted" : factor === 0 ? "silent" : factor === 1 ? "as it is" : `× ${format(factor)}`;
  const writes = wrote === null ? "" : `, writes ${format(wrote.after, true)} towards the answer${wrote.after === wrote.before ? "" : `, ${format(wrote.before, true)} before`}`;
  return `layer ${layer} head ${head}: ${what}${soloed ? ", soloed" : ""}${writes}`;
}

/** A slider of a head's gain: {element, update(gain)}. turned(by) is called while it is moved, once a frame. */
export function gainSlider(label, turned) {
  let waiting = false;
  let moved = 1; // where it was moved to last: an older answer from Python may set it back before the next frame
  const element = make("input", { type: "range", class: "gs-gain", min: "0", max: String(MOST_GAIN), step: "0.05", "aria-label": label, title: "gain; a double click sets it to 1", "data-lm-suppress-shortcuts": "true" });
  let isHeld = false;
  element.addEventListener("pointerdown", () => (isHeld = true));
  element.addEventListener("pointerup", () => (isHeld = false));
  element.addEventListener("dblclick", () => { element.value = "1"; turned(1); });
  element.addEventListener("input", () => {
    moved = Number(element.value);
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; turned(moved); });
  });
  return {
    element,
    update(gain) {
      if (!isHeld) element.value = String(gain);
      element.setAttribute("aria-valuetext", `times ${format(gain)}`);
    },
  };
}

/** send(type, more): to Python; chosen(layer, head): a head was selected. Returns {element, update(state, pictures)}. */
export function desk(send, chosen) {
  const element = make("div", { class: "gs-desk", role: "group", "aria-label": "heads: arrow keys move, m mutes, s solos, plus and minus turn", "data-lm-suppress-shortcuts": "true" });
  let shape = "";
  let channels = []; // [layer][head]
  let state = null;

  const toggle = (type, layer, head) => {
    const now = channelOf(state, layer, head);
    send(type, { layer, head, on: !(type === "mute" ? now.muted : now.soloed) });
  };
  const turn = (layer, head, by) => send("scale", { layer, head, by: Math.max(0, Number(by.toFixed(3))) });

  function wide(layer, head) {
    const name = `layer ${layer} head ${head}`;
    const canvas = make("canvas", { "aria-hidden": "true" });
    const look = make("button", { type: "button", class: "gs-look", onclick: () => chosen(layer, head) }, canvas);
    const knob = (type, label) => make("button", { type: "button", class: `gs-knob gs-${type}`, "aria-pressed": "false", "aria-label": `${type} ${name}`, title: `${type} ${name}`, onclick: () => toggle(type, layer, head) }, label);
    const [mute, solo] = [knob("mute", "M"), knob("solo", "S")];
    const gain = gainSlider(`gain of ${name}`, (by) => turn(layer, head, by));
    const meter = make("div", { class: "gs-meter", "aria-hidden": "true" });
    const box = make("div", { class: "gs-channel" }, look, make("div", { class: "gs-channel-top" }, make("b", {}, `${layer}.${head}`), mute, solo), meter, gain.element);
    return { box, look, canvas, mute, solo, gain, meter };
  }
  function small(layer, head) {
    const look = make("button", { type: "button", class: "gs-small-channel", onclick: () => chosen(layer, head) }, String(head));
    return { box: look, look };
  }
  function build([layers, heads], kinds) {
    const make_ = heads <= MOST_WIDE ? wide : small;
    element.style.gridTemplateColumns = `max-content repeat(${heads},minmax(${heads <= MOST_WIDE ? 112 : 24}px,1fr))`;
    channels = Array.from({ length: layers }, (_, layer) => Array.from({ length: heads }, (_, head) => make_(layer, head)));
    const rows = channels.map((row, layer) => [make("div", { class: "gs-desk-label", title: `layer ${layer} (${kinds[layer]})` }, `${layer}${kinds[layer] === "global" ? " ◆" : ""}`), ...row.map((one) => one.box)]);
    element.replaceChildren(...rows.reverse().flat());
  }

  element.addEventListener("keydown", (event) => {
    if (event.target.tagName === "INPUT" || event.ctrlKey || event.metaKey || event.altKey) return;
    const [layer, head] = state.selected;
    const step = { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (step) {
      const next = channels[layer + step[0]]?.[head + step[1]];
      if (!next) return;
      chosen(layer + step[0], head + step[1]);
      next.look.focus();
    } else if (event.key === "m") toggle("mute", layer, head);
    else if (event.key === "s") toggle("solo", layer, head);
    else if (event.key === "+" || event.key === "-") turn(layer, head, channelOf(state, layer, head).gain + (event.key === "+" ? 0.1 : -0.1));
    else return;
    event.preventDefault();
    event.stopPropagation();
  });

  return {
    element,
    update(now, pictures) {
      state = now;
      if (String(now.shape) !== shape) build(now.shape, now.kinds);
      shape = String(now.shape);
      const colours = theme();
      const heads = now.shape[1];
      // Those of another model, whose heads are others, may come before the present ones.
      const { before, after, dots, size } = pictures.before?.length === now.shape[0] * heads ? pictures : {};
      const most = Math.max(1e-6, ...(before ?? []).map(Math.abs), ...(after ?? []).map(Math.abs));
      channels.forEach((row, layer) => row.forEach((one, head) => {
        const at = layer * heads + head;
        const channel = channelOf(now, layer, head);
        const wrote = after ? { before: before[at], after: after[at] } : null;
        const isSelected = now.selected[0] === layer && now.selected[1] === head;
        const says = channelText(layer, head, channel, wrote);
        one.look.setAttribute("aria-label", says);
        one.look.title = says;
        one.look.setAttribute("aria-current", String(isSelected));
        one.look.tabIndex = isSelected ? 0 : -1;
        one.box.classList.toggle("gs-silent", channel.factor === 0);
        one.box.classList.toggle("gs-soloed", channel.soloed);
        if (one.mute) {
          one.mute.setAttribute("aria-pressed", String(channel.muted));
          one.solo.setAttribute("aria-pressed", String(channel.soloed));
          one.gain.update(channel.gain);
          drawMeter(one.meter, wrote, most);
          drawDots(one.canvas, dots, at, size, colours);
        } else if (wrote) one.box.style.background = css(colour(wrote.after, { kind: "diverging", low: -most, high: most }, colours.dark));
      }));
    },
  };
}

/** What a head writes towards the answer, from a middle line; the tick is what it wrote before. */
function drawMeter(meter, wrote, most) {
  const at = (value) => 50 + (50 * value) / most;
  if (!wrote) return meter.replaceChildren();
  const [from, to] = [50, at(wrote.after)].sort((a, b) => a - b);
  const ink = wrote.after < 0 ? "--gs-negative" : "--gs-positive";
  meter.replaceChildren(make("i", { style: `left:${from}%;width:${to - from}%;background:var(${ink})` }), make("u"), ...(wrote.after === wrote.before ? [] : [make("b", { style: `left:${at(wrote.before)}%` })]));
}

function drawDots(canvas, dots, at, size, colours) {
  if (!dots) return;
  const picture = new ImageData(size, size);
  const scale = { kind: "sequential", low: 0, high: 255 };
  for (let i = 0; i < size * size; i++) picture.data.set([...colour(dots[at * size * size + i], scale, colours.dark), 255], 4 * i);
  const base = document.createElement("canvas");
  [base.width, base.height] = [size, size];
  base.getContext("2d").putImageData(picture, 0, 0);
  const ctx = sized(canvas, 48, 48);
  ctx.imageSmoothingEnabled = false;
  ctx.drawImage(base, 0, 0, 48, 48);
}
