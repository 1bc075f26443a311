// The live head lab: patterns and lens of a prompt, heads that are ablated or scaled with a click, and the answer that moves.

import { answers } from "./answers.js";
import { unpacked } from "./arrays.js";
import { attention, layersOf } from "./attention.js";
import { lens } from "./lens.js";
import { button, drawIfChanged, livePage } from "./live.js";
import { make } from "./page.js";
import { format } from "./scale.js";
import { legible } from "./tokens.js";

const FACTORS = [[0, "Ablate (× 0)"], [0.5, "× 0.5"], [1, "× 1, as it is"], [2, "× 2"]];

const HEAD_STYLE = `
.gs-moved{font-weight:600;margin:4px 0}
.gs input[type=number]{font:inherit;width:5.5em;color:inherit;background:transparent;border:1px solid var(--gs-line);border-radius:4px;padding:1px 4px}
`;

export function render({ model, el }) {
  const page = livePage({ model, el }, HEAD_STYLE);
  const answerPanel = answers();
  const moved = make("div", { class: "gs-moved", role: "status", "aria-live": "polite" });
  const tools = make("div", { class: "gs-bar", role: "toolbar", "aria-label": "scale the head that is large below" });
  const scaledHeads = make("div", { class: "gs-bar", role: "group", "aria-label": "heads that are scaled" });
  const hosts = [make("div"), make("div")];
  page.root.append(page.error, moved, answerPanel.element, scaledHeads, tools, ...hosts, page.status);
  let selected = null; // {layer, head}
  let drawnNumber = -1;
  let views = [];
  let turn = 0;

  const name = make("b");
  const buttons = FACTORS.map(([by, label]) => button(label, () => scale(by)));
  const factor = make("input", { type: "number", step: "0.1", "aria-label": "another factor", onchange: () => factor.value !== "" && scale(Number(factor.value)) });
  tools.append(name, ...buttons, make("label", {}, "or × ", factor), page.copyButton());

  function scale(by) {
    if (selected) page.send("scale", { ...selected, by });
  }
  function select(layer, head) {
    selected = { layer, head };
    drawTools();
  }
  function selectedFactor() {
    const isSelected = (one) => one.layer === selected?.layer && one.head === selected?.head;
    return model.get("state").scaled.find(isSelected)?.by ?? 1;
  }
  function drawTools() {
    name.textContent = selected ? `layer ${selected.layer}, head ${selected.head}: ` : "";
    const now = selectedFactor();
    FACTORS.forEach(([by], i) => {
      buttons[i].setAttribute("aria-pressed", String(by === now));
      buttons[i].disabled = !selected;
    });
    factor.disabled = !selected;
    if (document.activeElement !== factor) factor.value = String(now);
  }
  function drawScaledHeads({ scaled }) {
    const chip = ({ layer, head, by }) =>
      button(`layer ${layer} head ${head} × ${format(by)} ✕`, () => page.send("scale", { layer, head, by: 1 }), { title: "leave this head as it is" });
    const reset = button("Reset all", () => page.send("reset"));
    scaledHeads.replaceChildren(...(scaled.length ? ["scaled:", ...scaled.map(chip), reset] : ["No head is scaled: choose one below, then ablate or scale it."]));
  }
  function drawMoved(state) {
    if (!state.moved) return;
    const { name, before, after } = state.moved;
    const change = after - before;
    const arrow = change === 0 ? "=" : change > 0 ? "▲" : "▼";
    moved.textContent = `${legible(name).replaceAll("·", " ")}: ${format(before)} before, ${format(after)} after (${arrow} ${format(change, true)})`;
  }

  /** Draw new pictures aside, then put them in the place of the old ones, with the same layer and head selected. */
  async function drawViews() {
    const pictures = model.get("pictures");
    if (pictures.number === drawnNumber) return;
    drawnNumber = pictures.number;
    const mine = ++turn;
    const fresh = hosts.map(() => make("div"));
    const drawn = [];
    for (const [i, view] of pictures.views.entries()) {
      const spec = { ...view.spec };
      if (spec.view === "attention" && selected) {
        spec.layer = Math.max(0, spec.layers.findIndex((layer) => layer.index === selected.layer));
        spec.head = Math.max(0, spec.heads.indexOf(selected.head));
      }
      const data = await unpacked(view.arrays);
      drawn.push(spec.view === "attention" ? attention(fresh[i], spec, layersOf(spec, data, "first"), null, select) : lens(fresh[i], spec, data));
    }
    if (mine !== turn) return drawn.forEach((view) => view.destroy());
    const focus = placeOfFocus();
    views.forEach((view) => view.destroy());
    views = drawn;
    hosts.forEach((host, i) => host.replaceChildren(...(pictures.views[i] ? [fresh[i]] : [])));
    if (focus) focusable(hosts[focus.host])[focus.index]?.focus({ preventScroll: true });
    el.dataset.gemmascopePictures = String(drawnNumber);
  }
  const focusable = (host) => [...host.querySelectorAll("button,select,input,canvas[tabindex]")];
  function placeOfFocus() {
    const host = hosts.findIndex((one) => one.contains(document.activeElement));
    return host < 0 ? null : { host, index: focusable(hosts[host]).indexOf(document.activeElement) };
  }

  function draw(state) {
    answerPanel.update(state);
    drawMoved(state);
    drawIfChanged(scaledHeads, state.scaled, () => drawScaledHeads(state));
    drawTools();
    drawViews();
  }
  function stopped() {
    turn += 1;
    views.forEach((view) => view.destroy());
  }
  return page.start(["state", "pictures"], draw, { stopped });
}
