// Which model a lab runs: a list of those on this machine, which Python looks for when the list is first opened.

import { make } from "./page.js";
import { legibleLine } from "./tokens.js";

const MODELS_STYLE = `
.gs-models label{display:inline-flex;align-items:baseline;max-width:100%;gap:8px}
.gs-models select{min-width:0;text-overflow:ellipsis}
`;

/** The list, and what is said of one that is loading: {element, update(choice)}. send(type, more): sends Python a message. */
export function modelList(send) {
  const select = make("select", { onchange: choose, onfocus: look, onpointerenter: look });
  const note = make("span", { role: "status", "aria-live": "polite" });
  const keep = make("button", { type: "button", onclick: () => send("keep_model"), title: "end the loading" }, "Cancel loading");
  const element = make("div", { class: "gs-bar gs-models" }, make("style", {}, MODELS_STYLE), make("label", {}, make("span", {}, "model"), select), note, keep);
  let asked = false;
  let drawn = "";

  function choose() {
    drawn = ""; // the list shows what its user chose, so even the choice that was drawn last is news to it
    send("choose_model", { load: select.value });
  }
  function look() {
    if (!asked) send("find_models");
    asked = true;
  }

  return {
    element,
    update(choice) {
      const { name, present, options, looked, loading } = choice;
      const key = JSON.stringify(choice);
      if (key === drawn) return;
      drawn = key;
      asked ||= looked;
      const listed = options.map(({ load, label }) => make("option", { value: load }, label));
      if (asked && !looked) listed.push(make("option", { disabled: true }, "looking for models on this machine …"));
      select.replaceChildren(...listed);
      select.value = options.some(({ load }) => load === loading) ? loading : present;
      note.textContent = loading === null ? "" : `loading …, until then this lab goes on with ${legibleLine(name)}`;
      keep.hidden = loading === null;
    },
  };
}
