// The live head lab: patterns and lens of a prompt, heads that are switched off or scaled with a click, and the answer that moves.

import { unpacked } from "./arrays.js";
import { attention, layersOf } from "./attention.js";
import { answers, trouble } from "./answers.js";
import { copied } from "./copied.js";
import { lens } from "./lens.js";
import { hideStill, make, paint, rootIn } from "./page.js";
import { format } from "./scale.js";
import { talk } from "./talk.js";
import { onTheme, theme } from "./theme.js";
import { legible } from "./tokens.js";

const FACTORS = [[0, "Ablate (× 0)"], [0.5, "× 0.5"], [1, "× 1, as it is"], [2, "× 2"]];

const HEAD_STYLE = `
.gs-moved{font-weight:600;margin:4px 0}
.gs input[type=number]{font:inherit;width:5.5em;color:inherit;background:transparent;border:1px solid var(--gs-line);border-radius:4px;padding:1px 4px}
`;

export function render({ model, el }) {
  const root = rootIn(el, { title: "" });
  hideStill(root, model);
  root.append(make("style", {}, HEAD_STYLE));
  const wrong = trouble();
  const found = answers();
  const moved = make("div", { class: "gs-moved", role: "status", "aria-live": "polite" });
  const tools = make("div", { class: "gs-bar", role: "toolbar", "aria-label": "scale the head that is large below" });
  const changed = make("div", { class: "gs-bar", role: "group", "aria-label": "heads that are scaled" });
  const status = make("div", { class: "gs-note", role: "status" });
  const hosts = [make("div"), make("div")];
  root.append(wrong.element, moved, found.element, changed, tools, ...hosts, status);
  let at = null;
  let drawn = -1;
  let looks = [];
  let drawing = 0;

  const which = make("b");
  const buttons = FACTORS.map(([by, name]) => make("button", { type: "button", onclick: () => scaled(by) }, name));
  const other = make("input", { type: "number", step: "0.1", "aria-label": "another factor", onchange: () => other.value !== "" && scaled(Number(other.value)) });
  const python = make("button", { type: "button", onclick: () => copied(root, model.get("state").code, status, "The Python of this was copied.") }, "Copy Python");
  tools.append(which, ...buttons, make("label", {}, "or × ", other), python);

  function scaled(by) {
    if (at) talking.send("scale", { ...at, by });
  }
  function chosen(layer, head) {
    at = { layer, head };
    drawTools();
  }
  function factorAt() {
    return at ? (model.get("state").scaled.find((one) => one.layer === at.layer && one.head === at.head)?.by ?? 1) : 1;
  }
  function drawTools() {
    which.textContent = at ? `layer ${at.layer}, head ${at.head}: ` : "";
    const now = factorAt();
    FACTORS.forEach(([by], i) => {
      buttons[i].setAttribute("aria-pressed", String(by === now));
      buttons[i].disabled = !at;
    });
    other.disabled = !at;
    if (document.activeElement !== other) other.value = String(now);
  }
  function drawChanged(state) {
    const said = JSON.stringify(state.scaled);
    if (changed.dataset.said === said) return;
    changed.dataset.said = said;
    const chip = ({ layer, head, by }) =>
      make("button", { type: "button", title: "leave this head as it is", onclick: () => talking.send("scale", { layer, head, by: 1 }) }, `layer ${layer} head ${head} × ${format(by)} ✕`);
    const reset = make("button", { type: "button", onclick: () => talking.send("reset") }, "Reset all");
    changed.replaceChildren(...(state.scaled.length ? ["scaled:", ...state.scaled.map(chip), reset] : ["No head is scaled: choose one below, then ablate or scale it."]));
  }
  function drawMoved(state) {
    if (!state.moved) return;
    const { name, before, after } = state.moved;
    const change = after - before;
    const arrow = change === 0 ? "=" : change > 0 ? "▲" : "▼";
    moved.textContent = `${legible(name).replaceAll("·", " ")}: ${format(before)} before, ${format(after)} after (${arrow} ${format(change, true)})`;
  }

  /** Draw new pictures beside the old ones and put them in their place, with the layer and head that were looked at. */
  async function drawViews() {
    const pictures = model.get("pictures");
    if (pictures.number === drawn) return;
    drawn = pictures.number;
    const turn = ++drawing;
    const fresh = hosts.map(() => make("div"));
    const made = [];
    for (const [i, view] of pictures.views.entries()) {
      const spec = { ...view.spec };
      if (spec.view === "attention" && at) {
        spec.layer = Math.max(0, spec.layers.findIndex((layer) => layer.index === at.layer));
        spec.head = Math.max(0, spec.heads.indexOf(at.head));
      }
      const data = await unpacked(view.arrays);
      const look = spec.view === "attention" ? attention(fresh[i], spec, layersOf(spec, data, "first"), null, chosen) : lens(fresh[i], spec, data);
      made.push(look);
    }
    if (turn !== drawing) return made.forEach((look) => look.destroy());
    const focus = placeOfFocus();
    looks.forEach((look) => look.destroy());
    looks = made;
    hosts.forEach((host, i) => host.replaceChildren(...(pictures.views[i] ? [fresh[i]] : [])));
    if (focus) focusable(hosts[focus.host])[focus.at]?.focus({ preventScroll: true });
    el.dataset.gemmascopePictures = String(drawn);
  }
  const focusable = (host) => [...host.querySelectorAll("button,select,input,canvas[tabindex]")];
  function placeOfFocus() {
    const host = hosts.findIndex((one) => one.contains(document.activeElement));
    return host < 0 ? null : { host, at: focusable(hosts[host]).indexOf(document.activeElement) };
  }

  function refresh() {
    const state = model.get("state");
    wrong.update(state.error);
    found.update(state);
    drawMoved(state);
    drawChanged(state);
    drawTools();
    drawViews();
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
    drawing += 1;
    talking.stop();
    stop();
    looks.forEach((look) => look.destroy());
  };
}
