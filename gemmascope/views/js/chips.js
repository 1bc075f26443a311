// A prompt's tokens as chips, which are lit and pinned with the tokens of the other parts of a page.

import { CHARACTER_STYLE, joinedChips } from "./characters.js";
import { make } from "./page.js";
import { tokenBus } from "./system/token_bus.js";
import { legible } from "./tokens.js";

/**
 * clicked(position, event): called instead of pinning the token. marked(position): whether a chip is shown as pressed.
 * Returns {element, bus(), update(tokens), mark()}. followed({at, pinned}): called when a token is pointed at or pinned.
 */
export function tokenChips(label, followed, clicked = null) {
  const element = make("div", { class: "gs-bar gs-chips", role: "group", "aria-label": label });
  let bus = tokenBus([]);
  let drawn = "";
  let chips = [];
  function update(tokens) {
    const key = JSON.stringify(tokens);
    if (key === drawn) return;
    drawn = key;
    bus.stop();
    bus = tokenBus(tokens.map((token) => token.label));
    bus.on(followed);
    chips = tokens.map((token, pos) => {
      const chip = make("button", { type: "button", class: token.special ? "gs-chip gs-special" : "gs-chip", title: `position ${pos}`, dir: "auto" }, legible(token.label));
      chip.addEventListener("focus", () => bus.point(pos));
      chip.addEventListener("blur", () => bus.point(null));
      if (clicked) {
        chip.addEventListener("pointerenter", () => bus.point(pos));
        chip.addEventListener("pointerleave", () => bus.point(null));
        chip.addEventListener("click", (event) => clicked(pos, event));
        bus.on(({ at }) => chip.classList.toggle("gs-lit", at === pos));
      } else bus.wire(chip, pos);
      return chip;
    });
    element.replaceChildren(make("style", {}, CHARACTER_STYLE), ...joinedChips(chips, tokens.map((token) => token.label)));
  }
  return {
    element,
    update,
    bus: () => bus,
    mark: (marked) => chips.forEach((chip, pos) => chip.setAttribute("aria-pressed", String(marked(pos)))),
    destroy: () => bus.stop(),
  };
}
