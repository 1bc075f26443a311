// The live graph lab: the question as a sentence, the graph as it is built, what changes of its nodes do beside what the graph
// predicts, and the graphs so far below.

import { answers } from "./answers.js";
import { graphPage } from "./graph/graph.js";
import { button, drawIfChanged, livePage, undoKeys } from "./live.js";
import { unpacked } from "./packed.js";
import { make } from "./page.js";
import { format } from "./scale.js";
import { below, strip } from "./system/card.js";
import { exportMenu, wordMenu } from "./system/menus.js";
import { saveAs } from "./take_away.js";
import { cut, legible, legibleLine } from "./tokens.js";
import { MESSAGES_STYLE, typedField, TYPED_STYLE } from "./typed.js";

const LAB_STYLE = `
${TYPED_STYLE}${MESSAGES_STYLE}
.gs-graph-lab>.gs-strip{grid-template-columns:minmax(0,1fr) auto}
.gs-graph-lab>.gs-strip>.gs-sentence{grid-column:1/-1}
.gs-graph-lab .gs-card .gs-strip{position:static;min-height:48px;padding:8px 24px;border-radius:0}
.gs-about{display:flex;flex-wrap:wrap;gap:4px 16px;align-items:center;padding:8px 24px 0;font-size:12px;line-height:16px;color:var(--gs-faint)}
.gs-about .gs-messages{flex:1 1 200px;padding:0}
.gs-build{display:flex;gap:8px;align-items:center;min-height:32px;flex:0 1 380px}
.gs-build progress{width:96px}
.gs-graph-place{min-height:560px}
.gs-graph-place.gs-waits{opacity:.4}
.gs-graph-runs{display:flex;flex-wrap:wrap;gap:8px}
.gs .gs-graph-runs button{display:grid;text-align:left;max-width:280px;font-size:12px;line-height:16px;border-color:var(--gs-line)}
.gs .gs-graph-runs button[aria-pressed=true]{border-color:var(--gs-accent)}
.gs-graph-runs span{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
@media print{.gs-about,.gs-graph-runs{display:none}}
`;

export function render({ model, el }) {
  const page = livePage({ model, el }, LAB_STYLE);
  const { send } = page;
  page.root.classList.add("gs-graph-lab");
  const typed = (name, label, options) => typedField(name, label, (setting, text) => send("set", { name: setting, text }), options);
  const fields = { prompt: typed("prompt", "prompt", { wide: true }), against: typed("against", "against", { placeholder: "nothing" }) };
  const answer = make("span");
  const menu = (name, label) => wordMenu(label, [], "", (value) => send("set", { name, text: value }));
  const menus = { basis: menu("basis", "what the nodes are"), hold: menu("hold", "what the changed run holds") };
  const family = wordMenu("family of prompts", [], "", (value) => send("next", { family: value }));
  const top = strip(page.root);
  top.sentence.append("Explain ", answer, " against ", fields.against.element, " by ", menus.basis.element, "; hold ", menus.hold.element, make("div", {}, fields.prompt.element));
  const effect = make("div", { class: "gs-effect", role: "status", "aria-live": "polite" });
  top.aside.append(effect);
  const undo = button("Undo", () => send("undo"), { "aria-keyshortcuts": "Control+Z" });
  const redo = button("Redo", () => send("redo"));
  const reset = button("Reset", () => send("reset"), { title: "leave every node as it was" });
  const takeAway = exportMenu([], "Export the lab");
  top.end.append(undo, redo, reset, takeAway.element);

  const bar = make("progress", { "aria-label": "building the graph" });
  const soFar = make("span", { role: "status" });
  const stop = button("Stop", () => send("stop"), { title: "show the graph of the rows that are finished" });
  const resume = button("Continue", () => send("resume"), { title: "build the rows that are left" });
  const build = make("div", { class: "gs-build" }, bar, soFar, stop, resume);
  const next = make("span", {}, button("Next prompt", () => send("next")), " of ", family.element);
  page.root.append(make("div", { class: "gs-about" }, build, next, make("div", { class: "gs-messages" }, page.error, page.status)));
  const place = make("div", { class: "gs-graph-place" });
  page.root.append(place);
  const answerPanel = answers();
  below(page.root, answerPanel.element);
  const runs = make("div", { class: "gs-graph-runs", role: "list", "aria-label": "graphs so far" });
  below(page.root, runs);
  const models = page.root.querySelector(".gs-models");
  if (models) below(page.root, models);
  undoKeys(page.root, send);

  let shown = null; // the graph's page
  let shownNumber = null;
  let answerField = null;
  let answerHint = "";
  const live = { scale: (name, by) => send("factor", { name, by }), named: (names) => send("names", names), look: (node) => send("look", { node }) };

  async function drawGraph() {
    const picture = model.get("pictures");
    if (!picture.spec || picture.number === shownNumber) return;
    shownNumber = picture.number;
    const data = await unpacked(picture.arrays);
    if (shownNumber !== picture.number) return;
    shown?.destroy();
    const inner = make("div", {});
    place.replaceChildren(inner);
    const { number, spec } = picture;
    shown = graphPage(inner, { ...structuredClone(spec), title: "" }, data, live);
    drawMenu(true);
    tellGraph(model.get("state"));
    el.dataset.gemmascopePictures = String(number);
  }
  function tellGraph(state) {
    if (!shown || model.get("pictures").number !== shownNumber) return;
    shown.update(state);
    if (state.detail.node) shown.detail(state.detail);
  }

  function drawAnswer({ typed: now, explains }) {
    if (explains !== answerHint) {
      answerHint = explains;
      answerField = typed("answer", "answer", { placeholder: cut(legibleLine(explains), 40) });
      answer.replaceChildren(answerField.element);
    }
    answerField.update(now.answer);
  }
  function drawEffect({ result, changes }) {
    const n = Object.keys(changes).length;
    if (!n || !result) return effect.replaceChildren(make("span", { class: "gs-big" }, n ? "…" : "0"), make("span", {}, n ? "under way" : "nothing is changed"), make("span", { class: "gs-faint" }, "true change of the output"));
    const [first] = result.outputs;
    const [predicted, found] = [first.predicted, first.true].map((value) => (value === null ? null : value - first.before));
    const says = (value) => (value === null ? "too large" : format(value, true));
    effect.replaceChildren(make("span", { class: "gs-big" }, says(found)), make("span", {}, `predicted ${says(predicted)}, true ${says(found)}`), make("span", { class: "gs-faint" }, `change of ${cut((first.isToken ? legible : legibleLine)(first.name), 32)}`));
  }
  function drawProgress({ progress, has_graph: hasGraph, stopped, busy, runs: all }) {
    bar.hidden = stop.hidden = !progress;
    resume.hidden = Boolean(progress) || !stopped;
    if (progress) {
      bar.max = progress[1];
      bar.value = progress[0];
      soFar.textContent = `Building the graph: ${Math.floor(progress[0]).toLocaleString("en")} of ${progress[1].toLocaleString("en")} rows`;
    } else soFar.textContent = stopped ? "Stopped" : hasGraph ? `Graph ${all.findIndex((one) => one.now) + 1} of ${all.length}` : busy ? "Running the prompt …" : "No graph";
    place.classList.toggle("gs-waits", !hasGraph);
    place.inert = !hasGraph;
  }
  function drawRuns(all) {
    const one = (run, i) => make("div", { role: "listitem" }, button("", () => send("reopen", { index: i }), { "aria-pressed": String(run.now), title: legibleLine(run.prompt) }));
    runs.replaceChildren(...all.map(one));
    all.forEach((run, i) => runs.children[i].firstChild.append(make("b", {}, cut(legibleLine(run.explains), 36)), make("span", { dir: "auto" }, cut(legibleLine(run.prompt), 60)), make("span", { class: "gs-faint" }, run.says)));
  }
  function drawMenu(hasGraph) {
    const file = (what) => () => page.request("file", { what });
    takeAway.update([
      { label: "Copy Python", name: "python", act: () => page.copy() },
      { label: "Save the graph", name: "graph", act: file("graph"), disabled: !hasGraph, hint: "with its groups, for gs.open_graph" },
      { label: "Save this page", name: "html", act: file("html"), disabled: !hasGraph },
      ...(shown?.exports ?? []),
    ]);
  }
  function onMessage(message) {
    if (message.type !== "file") return;
    saveAs(message.name, new Blob([Uint8Array.from(atob(message.base64), (char) => char.charCodeAt(0))]));
    page.status.textContent = `${message.name} was saved by the browser`;
  }

  function draw(state) {
    for (const [key, field] of Object.entries(fields)) field.update(state.typed[key]);
    drawAnswer(state);
    for (const [key, one] of Object.entries(menus)) one.update(state[key]);
    family.update(state.family);
    drawEffect(state);
    drawProgress(state);
    undo.disabled = !state.can_undo;
    redo.disabled = !state.can_redo;
    reset.disabled = !Object.keys(state.changes).length;
    drawIfChanged(takeAway.element, state.has_graph, () => drawMenu(state.has_graph));
    drawIfChanged(runs, state.runs, () => drawRuns(state.runs));
    answerPanel.update(state);
    drawGraph();
    tellGraph(state);
  }
  return page.start(["state", "pictures"], draw, { onMessage, stopped: () => shown?.destroy() });
}
