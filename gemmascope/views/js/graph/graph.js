// The page of an attribution graph: a sentence with the slider of influence, the graph, the node that is pinned, and groups.
//
// spec: {tokens: [{label, special}], layers, basis, scores: [replacement, completeness], nodes: [{id, kind, pos, layer?, number?,
//   site?, text?, weight?, label?}], groups: {name: ids}, left_out: ids of groups that the page has no room for,
//   carried?: {edge: [[layer, head, value]]}, raises?: {node: [[token, logits]]}}
// data: influence, before, activation, input, bias, rest: [node]; target, source, weight: [edge]

import { make, paint, redrawOnResize, sized, tooltip } from "../page.js";
import { format, percent } from "../scale.js";
import { below, card, panes, strip } from "../system/card.js";
import { exportMenu } from "../system/menus.js";
import { tokenBus } from "../system/token_bus.js";
import { copyText, saveAs } from "../take_away.js";
import { LIGHT, onTheme, theme } from "../theme.js";
import { readable } from "../tokens.js";
import { graphOf, nodeName, nodePlace, seenAt } from "./data.js";
import { drawFocus, drawFrame, drawSeen } from "./draw.js";
import { freeName, groupShelf, groupTint } from "./groups.js";
import { graphLayout, nodeAt, nodeBeside, TOKEN_FONT } from "./layout.js";
import { nodePane } from "./pane.js";
import { pageWith, pythonOf, scriptOf, subgraph } from "./save.js";
import { GRAPH_STYLE } from "./style.js";

const DIRECTIONS = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };
const DRAG = 5, FIRST_SHARE = 0.8; // pixels that make a click a drag; the share that is seen at first
const NO_NODE = "No node. Arrow keys go from node to node, Enter opens one, Escape closes it.";

/** Draw a graph in an element. */
export function graphPage(el, spec, data) {
  const still = [...el.childNodes].map((node) => node.cloneNode(true));
  const graph = graphOf(spec, data);
  const state = firstState(el, spec, graph);
  const root = card(el, spec);
  root.append(make("style", {}, GRAPH_STYLE));
  const labels = () => state.labels;
  const named = (index) => nodeName(graph, graph.nodes[index], labels());

  // The strip.
  const slider = make("input", { type: "range", min: 1, max: mostOf(graph), value: Math.round(100 * state.share), "aria-label": "share of the influence that nodes hold", oninput: () => look({ share: slider.value / 100 }) });
  const shown = make("output", {});
  const count = make("span", { class: "gs-faint" });
  const menu = exportMenu([
    { label: "Save this page", name: "page", act: () => saveAs("graph.html", new Blob([pageWith(el, spec.title, still, kept())], { type: "text/html" })), disabled: scriptOf(el) === null, hint: "with your groups and names" },
    { label: "Groups as JSON", name: "json", act: () => saveAs("groups.json", new Blob([JSON.stringify(subgraph(graph, state), null, 1)], { type: "application/json" })) },
    { label: "Picture (PNG)", name: "png", act: () => picture().toBlob((blob) => saveAs("graph.png", blob)) },
    { label: "Copy Python", name: "python", act: () => copyText(root, pythonOf(graph, state, given)).then(() => say("the Python of these groups and names was copied")) },
  ]);
  strip(root, { sentence: ["Nodes that hold ", make("span", { class: "gs-influence" }, slider, shown), " of the influence ", count], end: [menu.element] });

  // The graph.
  const { left, right } = panes(root);
  const canvases = [make("canvas", { "aria-hidden": "true" }), make("canvas", { "aria-hidden": "true" }), make("canvas", { tabindex: 0, role: "application", "aria-label": "nodes of the graph", "aria-roledescription": "graph" })];
  const stage = make("div", { class: "gs-stage" }, ...canvases);
  const wide = make("div", { class: "gs-wide" }, stage);
  const live = make("div", { class: "gs-live", "aria-live": "polite" });
  const sign = (name, text) => make("span", {}, make("i", { class: name }), text);
  left.append(wide, make("div", { class: "gs-legend" }, sign("", graph.neurons ? "neuron, larger with influence" : "feature, larger with influence"), ...(graph.nodes.some((node) => node.kind === "error") ? [sign("gs-error", "what features miss")] : []), sign("gs-square", "token or output"), sign("gs-line", "adds"), sign("gs-line gs-minus", "takes away")), live);
  const top = canvases[2];
  const tip = tooltip(root);
  const given = { groups: spec.groups, labels: Object.fromEntries(graph.nodes.filter((node) => node.label).map((node) => [node.id, node.label])) };
  let [layout, colours, contexts] = [null, theme(), []];
  let drag = null;
  let isOfBus = false;

  const bus = tokenBus(spec.tokens.map((token) => token.label));
  bus.on(() => drawPart("frame"));

  // The node that is pinned, and the groups.
  const acts = { pin, point: (edge) => change({ edge }), look: (at) => change({ at }), name: rename, move, groupOf, rename: renameGroup };
  const pane = nodePane(graph, spec, state, acts);
  right.append(pane.element);
  const shelf = groupShelf(graph, state, acts);
  const leftOut = spec.left_out.length ? [make("p", { class: "gs-small gs-faint" }, `Groups hold ${spec.left_out.length} more nodes that this page has no room for: most= of gs.graph_view says how many it shows. Copy Python leaves them out.`)] : [];
  below(root, shelf.element, ...leftOut);

  const focus = () => state.at ?? state.pinned;
  const drawState = () => ({ seen: state.seen, focus: focus(), pinned: state.pinned, edge: state.edge, tint: (node) => (groupOf(node) < 0 ? null : groupTint(groupOf(node))) });
  const kept = () => ({ share: state.share, labels: state.labels, pinned: state.pinned, groups: state.groups.map(({ name, nodes }) => [name, nodes]) });

  function groupOf(node) {
    return state.groups.findIndex(({ nodes }) => nodes.includes(node));
  }
  function drawPart(...parts) {
    if (!layout) return;
    if (parts.includes("frame")) drawFrame(contexts[0], graph, layout, colours, bus.state());
    if (parts.includes("seen")) drawSeen(contexts[1], graph, layout, colours, drawState());
    drawFocus(contexts[2], graph, layout, colours, drawState());
    stage.classList.toggle("gs-looks", focus() !== null);
  }
  function draw() {
    colours = theme();
    paint(root, colours);
    const measure = canvases[0].getContext("2d");
    measure.font = TOKEN_FONT;
    layout = graphLayout(graph, spec.layers, wide.clientWidth, (text) => measure.measureText(text).width);
    contexts = canvases.map((canvas) => sized(canvas, layout.width, layout.height));
    drawPart("frame", "seen");
  }
  function say(text) {
    live.textContent = readable(text);
  }
  /** A change of what is pointed at: only the top canvas is drawn. */
  function change(part) {
    if (Object.entries(part).every(([name, value]) => state[name] === value)) return;
    Object.assign(state, part);
    if ("at" in part) bus.point(part.at === null ? null : graph.nodes[part.at].pos);
    drawPart();
  }
  function pin(node) {
    Object.assign(state, { pinned: node, at: null, edge: null });
    pane.show(node);
    say(node === null ? NO_NODE : describe(node));
    drawPart();
  }
  function describe(index) {
    const node = graph.nodes[index];
    const number = node.kind === "feature" ? `\nactivation ${format(node.activation)}` : node.kind === "logit" ? `\n${format(node.input, true)} before the soft cap` : "";
    return `${named(index)}\n${nodePlace(graph, node)}${node.kind === "logit" ? "" : `\ninfluence ${percent(node.influence)}`}${number}`;
  }
  /** A new share of the influence. */
  function look({ share }) {
    state.share = share;
    state.seen = seenAt(graph, share);
    if (state.pinned !== null && !state.seen[state.pinned]) state.pinned = null;
    state.at = null;
    tell();
    pane.show(state.pinned);
    shelf.draw();
    drawPart("seen");
  }
  function tell() {
    shown.textContent = `${Math.round(100 * state.share)}%`;
    slider.setAttribute("aria-valuetext", shown.textContent);
    const n = state.seen.reduce((a, b) => a + b, 0);
    count.textContent = ` · ${n.toLocaleString("en")} of ${graph.nodes.length.toLocaleString("en")} nodes`;
  }
  function regrouped() {
    pane.show(state.pinned);
    shelf.draw();
    drawPart("seen");
  }
  function move(node, to) {
    if (graph.nodes[node].kind !== "feature") return say("Only features and neurons are grouped.");
    const held = state.groups[to];
    for (const group of state.groups) if (group !== held) group.nodes = group.nodes.filter((one) => one !== node);
    if (held && !held.nodes.includes(node)) held.nodes.push(node);
    if (to === state.groups.length) state.groups.push({ name: freeName(graph, state.groups, `group ${to + 1}`), nodes: [node] });
    state.groups = state.groups.filter(({ nodes }) => nodes.length);
    regrouped();
    const at = groupOf(node);
    say(at < 0 ? `${named(node)} is in no group` : `${named(node)} is in ${state.groups[at].name}`);
  }
  function renameGroup(i, name) {
    const others = state.groups.filter((_, k) => k !== i);
    if (name) state.groups[i].name = freeName(graph, others, name);
    regrouped();
  }
  function rename(node, text) {
    if (text) state.labels[node.id] = text;
    else delete state.labels[node.id];
    regrouped();
  }
  function picture() {
    const page = document.createElement("canvas");
    const out = sized(page, layout.width, layout.height);
    const part = document.createElement("canvas");
    const ctx = sized(part, layout.width, layout.height);
    out.fillStyle = LIGHT.ground;
    out.fillRect(0, 0, layout.width, layout.height);
    for (const paintPart of [drawFrame, drawSeen, drawFocus]) {
      paintPart(ctx, graph, layout, LIGHT, paintPart === drawFrame ? { at: null, pinned: null } : { ...drawState(), focus: state.pinned });
      out.drawImage(part, 0, 0, layout.width, layout.height);
    }
    return page;
  }

  // The pointer and the keys.
  const under = (event) => {
    const box = top.getBoundingClientRect();
    return nodeAt(layout, state.seen, event.clientX - box.left, event.clientY - box.top);
  };
  top.addEventListener("pointermove", (event) => {
    if (drag) return dragged(event);
    const node = under(event);
    stage.classList.toggle("gs-points", node !== null);
    change({ at: node });
    const box = root.getBoundingClientRect();
    if (node === null) tip.hide();
    else tip.show(describe(node), event.clientX - box.left, event.clientY - box.top);
  });
  top.addEventListener("pointerleave", () => {
    tip.hide();
    if (!drag) change({ at: null });
  });
  top.addEventListener("pointerdown", (event) => {
    const node = under(event);
    if (event.button !== 0) return;
    drag = { node, x: event.clientX, y: event.clientY, ghost: null };
    if (node !== null) top.setPointerCapture(event.pointerId);
  });
  function dragged(event) {
    if (drag.node === null || (!drag.ghost && Math.hypot(event.clientX - drag.x, event.clientY - drag.y) < DRAG)) return;
    if (!drag.ghost) {
      tip.hide();
      drag.ghost = make("div", { class: "gs-dragged" }, named(drag.node));
      root.append(drag.ghost);
    }
    drag.ghost.style.left = `${event.clientX + 8}px`;
    drag.ghost.style.top = `${event.clientY + 8}px`;
    shelf.over(shelf.at(event.clientX, event.clientY));
  }
  function dropped(event, isDone) {
    if (!drag) return;
    const { node, ghost } = drag;
    drag = null;
    shelf.over(null);
    ghost?.remove();
    if (!isDone) return;
    if (!ghost) return pin(node === state.pinned ? null : node);
    const group = shelf.at(event.clientX, event.clientY);
    if (group !== null) move(node, group);
  }
  top.addEventListener("pointerup", (event) => dropped(event, true));
  top.addEventListener("pointercancel", (event) => dropped(event, false));
  top.addEventListener("keydown", (event) => {
    const { key } = event;
    if (DIRECTIONS[key]) {
      const from = focus();
      const next = from === null ? strongestSeen() : nodeBeside(layout, state.seen, from, DIRECTIONS[key]);
      if (next !== null) {
        change({ at: next });
        say(describe(next));
      }
    } else if (key === "Enter" || key === " ") pin(state.at ?? strongestSeen());
    else if (key === "Escape") {
      if (drag) dropped(event, false);
      tip.hide();
      pin(null);
    } else return;
    event.preventDefault();
    event.stopPropagation();
  });
  top.addEventListener("blur", () => change({ at: null }));
  const strongestSeen = () => graph.nodes.filter((node) => state.seen[node.index]).reduce((best, node) => (node.kind === "logit" || (best !== null && graph.nodes[best].kind !== "logit" && graph.nodes[best].influence >= node.influence) ? best ?? node.index : node.index), null);

  tell();
  pane.show(state.pinned);
  shelf.draw();
  draw();
  const stop = redrawOnResize(root, onTheme, draw);
  el.dataset.gemmascopeReady = "1";
  return { destroy: () => { stop(); bus.stop(); } };
}

/** The least whole percentage at which all nodes are seen. */
function mostOf(graph) {
  const last = Math.max(0, ...graph.nodes.filter(({ kind }) => kind === "feature" || kind === "error").map(({ before }) => before));
  return Math.min(100, Math.floor(100 * last) + 1);
}

/** The state in a saved page, or the first one. */
function firstState(el, spec, graph) {
  const numberOf = new Map(graph.nodes.map((node) => [node.id, node.index]));
  const saved = el.dataset.gsState ? JSON.parse(el.dataset.gsState) : {};
  const share = saved.share ?? Math.min(FIRST_SHARE, mostOf(graph) / 100);
  const groups = saved.groups ?? Object.entries(spec.groups).map(([name, ids]) => [name, ids.map((id) => numberOf.get(id))]);
  return {
    share, seen: seenAt(graph, share), at: null, edge: null, pinned: saved.pinned ?? null,
    labels: saved.labels ?? Object.fromEntries(graph.nodes.filter((node) => node.label).map((node) => [node.id, node.label])),
    groups: groups.map(([name, nodes]) => ({ name, nodes: [...nodes] })).filter(({ nodes }) => nodes.length),
  };
}
