// The live steering lab: what a vector's strength, set with a slider of ipywidgets, does to answers and text.

import { answers, trouble } from "./answers.js";
import { copied } from "./copied.js";
import { hideStill, make, paint, rootIn } from "./page.js";
import { talk } from "./talk.js";
import { onTheme, theme } from "./theme.js";
import { readable } from "./tokens.js";

export function render({ model, el }) {
  const root = rootIn(el, { title: "" });
  hideStill(root, model);
  const wrong = trouble();
  const found = answers();
  const said = make("div", { class: "gs-note" });
  const status = make("div", { class: "gs-note", role: "status" });
  const python = make("button", { type: "button", onclick: () => copied(root, model.get("state").code, status, "The Python of this was copied.") }, "Copy Python");
  root.append(wrong.element, said, found.element, make("div", { class: "gs-bar" }, python), status);

  function refresh() {
    const state = model.get("state");
    wrong.update(state.error);
    said.textContent = readable(state.said);
    found.update(state);
    el.dataset.gemmascopeReady = "1";
    el.dataset.gemmascopeBusy = String(state.busy);
  }
  const known = () => ({ number: model.get("state").number, pictures: model.get("pictures").number });
  const talking = talk(model, ["state", "pictures"], status, { changed: refresh, poll: known });
  const painted = () => paint(root, theme());
  const stop = onTheme(painted);
  painted();
  refresh();
  return () => {
    talking.stop();
    stop();
  };
}
