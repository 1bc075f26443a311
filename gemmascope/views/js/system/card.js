// The frame of a view: a card, on it a strip that stays in sight, and two panes where there is room.

import { make, rootIn } from "../page.js";

/** A view's root in an emptied element: a card with its title and note. A card within a card has no frame of its own. */
export function card(el, spec = {}) {
  const root = rootIn(el, { ...spec, framed: false });
  root.classList.add("gs-card");
  return root;
}

/**
 * The line on top of a card, which stays in sight while the card scrolls: a sentence with wordMenus, what stands beside it
 * (a ruler, a number), and at the end the primary button and the exportMenu. Parts are elements or strings.
 * Returns {element, sentence, aside, end}. Its height is that of two lines of sentence, so one line more moves nothing.
 */
export function strip(root, { sentence = [], aside = [], end = [] } = {}) {
  const part = (name, children) => make("div", { class: name }, ...children);
  const parts = { sentence: part("gs-sentence", sentence), aside: part("gs-aside", aside), end: part("gs-strip-end", end) };
  const element = make("div", { class: "gs-strip" }, ...Object.values(parts));
  root.append(element);
  return { element, ...parts };
}

/** Two panes, side by side if the card is 900 pixels wide, else one below the other: {element, left, right}. */
export function panes(root) {
  const left = make("div", { class: "gs-main-pane" });
  const right = make("div", { class: "gs-side-pane" });
  const element = make("div", { class: "gs-panes" }, left, right);
  root.append(element);
  return { element, left, right };
}

/** A part below the panes, over the whole width. */
export function below(root, ...children) {
  const element = make("div", { class: "gs-below" }, ...children);
  root.append(element);
  return element;
}

/** The one filled button of a view. It has to say what it does and what that costs: "Run all exactly · 90 cells · 0.2 s". */
export function primary(label, onclick, attributes = {}) {
  return make("button", { type: "button", class: "gs-primary", onclick, ...attributes }, label);
}
