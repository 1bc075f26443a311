// The live head lab: heads on a mixing desk, the effect on the answer in sight, and a head's pattern and the lens beside it.

import { answers } from "./answers.js";
import { numbers } from "./arrays.js";
import { tokenChips } from "./chips.js";
import { channelOf, desk, DESK_STYLE, gainSlider } from "./heads/desk.js";
import { headDetail, lensFrom, patternFrom } from "./heads/detail.js";
import { button, drawIfChanged, livePage, undoKeys } from "./live.js";
import { make } from "./page.js";
import { format, rounded } from "./scale.js";
import { below, panes, strip } from "./system/card.js";
import { exportMenu } from "./system/menus.js";
import { legible, legibleLine } from "./tokens.js";
import { MESSAGES_STYLE, typedField, TYPED_STYLE } from "./typed.js";

const HEAD_STYLE = `
${TYPED_STYLE}${MESSAGES_STYLE}${DESK_STYLE}
.gs-one{display:flex;gap:8px;align-items:center;min-height:32px;margin-bottom:8px}
.gs-one .gs-head,.gs-one .gs-knob{flex:none;white-space:nowrap}
.gs-one .gs-gain{flex:1 1 48px;width:48px;max-width:160px}
.gs-one output{min-width:40px;font-size:12px}
.gs-others{display:flex;flex-wrap:wrap;gap:8px;font-size:12px}
.gs-legend{font-size:12px;line-height:16px;margin:8px 0 16px;color:var(--gs-faint)}
`;

export function render({ model, el }) {
  const page = livePage({ model, el }, HEAD_STYLE);
  const { send } = page;
  const typed = (name, label, options) => typedField(name, label, (setting, text) => send("set", { name: setting, text }), options);
  const fields = {
    answer: typed("answer", "answer", { placeholder: "the likeliest token" }),
    against: typed("against", "against", { placeholder: "nothing" }),
    prompt: typed("prompt", "prompt", { wide: true }),
  };
  const top = strip(page.root);
  top.sentence.append("Follow ", fields.answer.element, " against ", fields.against.element, " after");
  top.element.append(make("div", { class: "gs-prompt" }, fields.prompt.element));
  const effect = make("div", { class: "gs-effect", role: "status", "aria-live": "polite" });
  top.aside.append(effect);
  const undo = button("Undo", () => send("undo"), { "aria-keyshortcuts": "Control+Z" });
  const redo = button("Redo", () => send("redo"));
  const reset = button("Reset", () => send("reset"), { title: "leave every head as it is" });
  top.end.append(undo, redo, reset, exportMenu([{ label: "Copy Python", act: () => page.copy() }]).element);
  top.element.append(make("div", { class: "gs-messages" }, page.error, page.status));

  const { left, right } = panes(page.root);
  const chips = tokenChips("tokens of the prompt: point at one to see it everywhere, click to see where it looks", (now) => detail.follow(now));
  const others = make("div", { class: "gs-others", role: "group", "aria-label": "edits beside the heads", hidden: true });
  const mixer = desk(send, select);
  const legend = make("div", { class: "gs-legend" }, "Bar: what the head writes towards the answer, in logits before the soft cap; the tick: before the changes. M mutes, S plays alone, the slider turns; ◆ a global layer.");
  const answerPanel = answers();
  left.append(chips.element, others, mixer.element, legend, answerPanel.element);

  const detail = headDetail(() => chips.bus());
  below(page.root, detail.lens);
  below(page.root, page.root.querySelector(".gs-models"));
  const name = make("span", { class: "gs-head" });
  const knob = (type, label) => button(label, () => toggle(type), { class: `gs-knob gs-${type}` });
  const [mute, solo] = [knob("mute", "Mute"), knob("solo", "Solo")];
  const gain = gainSlider("gain of the selected head", (by) => send("scale", { layer: selected[0], head: selected[1], by }));
  const says = make("output");
  right.append(make("div", { class: "gs-one" }, name, mute, solo, gain.element, says), detail.element);

  let selected = [0, 0];
  let asked = null; // the head that was selected here, until Python knows
  let drawnNumber = -1;
  let drawnPattern = null;
  let pictures = {};
  let lens = null;

  function select(layer, head) {
    asked = [layer, head];
    selected = asked;
    send("select", { layer, head });
    draw(model.get("state"));
  }
  function toggle(type) {
    const now = channelOf(model.get("state"), ...selected);
    send(type, { layer: selected[0], head: selected[1], on: !(type === "mute" ? now.muted : now.soloed) });
  }
  undoKeys(page.root, send);

  function drawEffect({ moved }) {
    if (!moved) return effect.replaceChildren();
    const change = rounded(moved.after - moved.before, { low: moved.before, high: moved.after });
    const arrow = change === 0 ? "as it was" : `${change > 0 ? "▲" : "▼"} ${format(Math.abs(change))}`;
    effect.replaceChildren(make("span", { class: "gs-big" }, format(moved.after, true)), make("span", {}, `${format(moved.before)} before, ${format(moved.after)} after`), make("span", { class: "gs-faint" }, `${arrow} · ${legibleLine(moved.name)}`));
  }
  function drawOthers(state) {
    others.hidden = !state.others.length;
    const one = (text, index) => button(`${text} ✕`, () => send("remove", { position: index }), { class: "gs-chip", title: "take this edit out" });
    others.replaceChildren("also:", ...state.others.map((text, i) => one(text.length > 80 ? `${text.slice(0, 79)}…` : text, i)));
  }
  function readPictures() {
    const now = model.get("pictures");
    if (now.number === drawnNumber) return;
    drawnNumber = now.number;
    const floats = (bytes) => (bytes?.byteLength ? [...numbers(bytes, "float32")] : null);
    pictures = { before: floats(now.written_before), after: floats(now.written_after), size: now.size, dots: now.pictures_after?.byteLength ? numbers(now.pictures_after, "uint8") : null };
    lens = lensFrom(now.lens);
    el.dataset.gemmascopePictures = String(drawnNumber);
  }

  function draw(state) {
    if (asked && state.selected.join() === asked.join()) asked = null;
    selected = asked ?? state.selected;
    for (const [key, field] of Object.entries(fields)) field.update(state.typed[key]);
    drawEffect(state);
    undo.disabled = !state.can_undo;
    redo.disabled = !state.can_redo;
    reset.disabled = !state.factors.length && !state.desk.gains.length;
    chips.update(state.tokens);
    drawIfChanged(others, state.others, () => drawOthers(state));
    readPictures();
    mixer.update({ ...state, selected }, pictures);
    answerPanel.update(state);
    drawSelected(state);
  }
  function drawSelected(state) {
    const channel = channelOf(state, ...selected);
    name.textContent = `Layer ${selected[0]} · head ${selected[1]}`;
    mute.setAttribute("aria-pressed", String(channel.muted));
    solo.setAttribute("aria-pressed", String(channel.soloed));
    gain.update(channel.gain);
    says.textContent = `× ${format(channel.factor)}`;
    const trait = model.get("pattern");
    const key = `${drawnNumber} ${state.seq}`;
    if (!trait?.before || (drawnPattern?.trait === trait && drawnPattern.key === key)) return;
    drawnPattern = { trait, key };
    const pattern = patternFrom(trait);
    if ((state.tokens.length - pattern.first) ** 2 === pattern.after.length) detail.update({ tokens: state.tokens, kinds: state.kinds, pattern, lens });
  }
  return page.start(["state", "pictures", "pattern"], draw, {
    stopped() {
      detail.destroy();
      chips.destroy();
    },
  });
}
