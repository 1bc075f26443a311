// The live steering lab: what a vector's strength, set with a slider of ipywidgets, does to answers and text.

import { answers } from "./answers.js";
import { livePage } from "./live.js";
import { make } from "./page.js";
import { readable } from "./tokens.js";

export function render({ model, el }) {
  const page = livePage({ model, el });
  const answerPanel = answers();
  const note = make("div", { class: "gs-note" });
  page.root.append(page.error, note, answerPanel.element, make("div", { class: "gs-bar" }, page.copyButton()), page.status);

  return page.start(["state", "pictures"], (state) => {
    note.textContent = readable(state.note);
    answerPanel.update(state);
  });
}
