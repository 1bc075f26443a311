// The live steering lab: the strength as a slider on its curve, the text at five strengths, and the tokens that are steered.

import { answers } from "./answers.js";
import { tokenChips } from "./chips.js";
import { button, drawIfChanged, livePage, undoKeys } from "./live.js";
import { make } from "./page.js";
import { format, percent } from "./scale.js";
import { CURVE_STYLE, strengthCurve } from "./steering/curve.js";
import { LADDER_STYLE, textLadder } from "./steering/ladder.js";
import { below, panes, strip } from "./system/card.js";
import { exportMenu } from "./system/menus.js";
import { legibleLine, readable } from "./tokens.js";
import { MESSAGES_STYLE, typedField, TYPED_STYLE } from "./typed.js";

const STEER_STYLE = `
${TYPED_STYLE}${MESSAGES_STYLE}${CURVE_STYLE}${LADDER_STYLE}
.gs-where{display:flex;flex-wrap:wrap;gap:8px;align-items:center;font-size:12px;line-height:16px;min-height:32px;color:var(--gs-faint)}
.gs-steer-notes{display:flex;flex-wrap:wrap;gap:0 24px;min-height:32px;margin:4px 0 8px}
.gs-shade{display:inline-block;width:16px;height:12px;margin-right:8px;vertical-align:-1px;border:1px solid var(--gs-line)}
.gs-shade::before{content:"";display:block;height:100%;background:var(--gs-warn);opacity:.25}
.gs-part-title{font-weight:600;margin:16px 0 4px}
`;

export function render({ model, el }) {
  const page = livePage({ model, el }, STEER_STYLE);
  const { send } = page;
  const typed = (name, label, options) => typedField(name, label, (setting, text) => send("set", { name: setting, text }), options);
  const fields = {
    prompt: typed("prompt", "prompt", { wide: true }),
    answer: typed("answer", "answer", { placeholder: "the likeliest token" }),
    against: typed("against", "against", { placeholder: "nothing" }),
  };
  const top = strip(page.root);
  top.sentence.append("Steer the prompt below; follow ", fields.answer.element, " against ", fields.against.element);
  top.element.append(make("div", { class: "gs-prompt" }, fields.prompt.element));
  const effect = make("div", { class: "gs-effect", role: "status", "aria-live": "polite" });
  top.aside.append(effect);
  function change(type, more) {
    curve.release();
    send(type, more);
  }
  const undo = button("Undo", () => change("undo"), { "aria-keyshortcuts": "Control+Z" });
  const redo = button("Redo", () => change("redo"));
  top.end.append(undo, redo, exportMenu([{ label: "Copy Python", act: () => page.copy() }]).element);
  top.element.append(make("div", { class: "gs-messages" }, page.error, page.status));

  const { left, right } = panes(page.root);
  const chips = tokenChips("tokens of the prompt: click to steer there alone or there too, shift-click to steer from there on", () => {}, (position, event) => send("where", { position, on: event.shiftKey }));
  const where = make("span");
  const everywhere = button("Everywhere", () => send("everywhere"));
  const curve = strengthCurve((strength) => send("strength", { by: strength }));
  const note = make("div", { class: "gs-small" });
  const shade = make("div", { class: "gs-small" });
  const notes = make("div", { class: "gs-steer-notes gs-faint" }, note, shade);
  const ladder = textLadder((strength) => change("strength", { by: strength }));
  left.append(chips.element, make("div", { class: "gs-where" }, where, everywhere), curve.element, notes, make("div", { class: "gs-part-title" }, "The text at five strengths"), ladder.element);
  const answerPanel = answers();
  right.append(answerPanel.element);
  below(page.root, page.root.querySelector(".gs-models"));
  undoKeys(page.root, change);

  function drawEffect({ moved, follows, strength, is_share: isShare }) {
    if (!moved) return effect.replaceChildren();
    const says = isShare ? percent : format;
    effect.replaceChildren(make("span", { class: "gs-big" }, strength === 0 ? "× 0" : `× ${format(strength, true)}`), make("span", {}, `${says(moved[0])} before, ${says(moved[1])} after`), make("span", { class: "gs-faint" }, legibleLine(follows)));
  }
  /** What is added, and what the shaded ground means, or why there is no perplexity. */
  function drawNotes({ note: added, curve: { why_not: whyNot, collapse, unsteered } }) {
    note.textContent = readable(added);
    const text = whyNot ? readable(whyNot) : unsteered[1] === null ? "" : `the text collapses: its perplexity is above ${format(collapse)} times the unsteered ${format(unsteered[1])}`;
    drawIfChanged(shade, [text, Boolean(whyNot)], () => shade.replaceChildren(...(text && !whyNot ? [make("i", { class: "gs-shade" })] : []), text));
  }
  function draw(state) {
    for (const [key, field] of Object.entries(fields)) field.update(state.typed[key]);
    drawEffect(state);
    undo.disabled = !state.can_undo;
    redo.disabled = !state.can_redo;
    chips.update(state.tokens);
    chips.mark((position) => state.positions.includes(position));
    where.textContent = `Steered: ${state.where}. Click a token to steer at it, shift-click for it and all that comes after.`;
    everywhere.disabled = state.onward && state.positions.length === state.tokens.length;
    curve.update(state);
    drawNotes(state);
    ladder.update(state);
    answerPanel.update(state);
  }
  return page.start(["state", "pictures"], draw, {
    stopped() {
      curve.destroy();
      chips.destroy();
    },
  });
}
