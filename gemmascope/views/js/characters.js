// Chips of tokens that are the bytes of one character: the character once, over all of them. Each chip stays a token's own.

import { make } from "./page.js";
import { byteText, charactersOf, legible } from "./tokens.js";

export const CHARACTER_STYLE = `
.gs-character{display:inline-grid;grid-auto-flow:column;align-items:center;line-height:normal;vertical-align:middle}
.gs-character>*{grid-row:1}
.gs .gs-character>button.gs-chip{min-width:12px;padding-left:0;padding-right:0;margin:0}
.gs .gs-character>button.gs-chip:not(:first-child){border-left-style:dotted;border-top-left-radius:0;border-bottom-left-radius:0}
.gs .gs-character>button.gs-chip:not(:nth-last-child(2)){border-right-width:0;border-top-right-radius:0;border-bottom-right-radius:0}
.gs-character>.gs-character-text{grid-column:1/-1;place-self:center;pointer-events:none;z-index:1;padding:0 4px}
`;

/** Chips in their order, those of one character's bytes in an element with the character. texts: the tokens. */
export function joinedChips(chips, texts) {
  const nodes = [];
  charactersOf(texts).forEach((character, i) => {
    if (!character) return nodes.push(chips[i]);
    const says = `${legible(texts[i])}, ${byteText(character)}`;
    chips[i].title = `${chips[i].title}: ${says}`;
    chips[i].setAttribute("aria-label", says);
    chips[i].textContent = "\u00a0";
    if (character.nth === 0) nodes.push(make("span", { class: "gs-character" }));
    nodes.at(-1).append(chips[i]);
    if (character.nth === character.of - 1) nodes.at(-1).append(make("span", { class: "gs-character-text", "aria-hidden": "true", dir: "auto" }, legible(character.text)));
  });
  return nodes;
}
