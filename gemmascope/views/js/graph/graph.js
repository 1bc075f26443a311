// The page of an attribution graph: a sentence with the slider of influence, the graph, the node that is pinned, and groups.
//
// spec: {tokens: [{label, special}], layers, basis, scores: [replacement, completeness], nodes: [{id, kind, pos, layer?, number?,
//   site?, text?, weight?, label?}], groups: {name: ids}, left_out: ids of groups that the page has no room for,
//   carried?: {edge: [[layer, head, value]]}, raises?: {node: [[token, logits]]}, result?: what changes do, as in results.js}
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
import { RESULTS_STYLE, resultsPart } from "./results.js";
import { pageWith, pythonOf, scriptOf, subgraph } from "./save.js";
import { GRAPH_STYLE } from "./style.js";
import { factorText, SWITCH_STYLE, switchOf } from "./switches.js";

const DIRECTIONS = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };
const DRAG = 5, FIRST_SHARE = 0.8; // pixels that make a click a drag; the share that is seen at first
const NO_NODE = "No node. Arrow keys go from node to node, Enter opens one, Escape closes it.";

/**
 * Draw a graph in an element. live: what a lab does about it: {scale(name, factor), named({groups, labels, factors}), look(id)}; null
 * for a page without a kernel. Returns {destroy(), update({groups, labels, changes, result}), detail({node, carried, raises}),
 * exports: entries of an exportMenu}.
 */
export function graphPage(el, spec, data, live = null) {
  const still = [...el.childNodes].map((node) => node.cloneNode(true));
  const graph = graphOf(spec, data);
  const state = firstState(el, spec, graph);
  const root = card(el, spec);
  root.append(make("style", {}, GRAPH_STYLE + RESULTS_STYLE + SWITCH_STYLE));
  const labels = () => state.labels;
  const named = (index) => nodeName(graph, graph.nodes[index], labels());

  // The strip.
  const slider = make("input", { type: "range", min: 1, max: mostOf(graph), value: Math.round(100 * state.share), "aria-label": "share of the influence that nodes hold", oninput: () => look({ share: slider.value / 100 }) });
  const shown = make("output", {});
  const count = make("span", { class: "gs-faint" });
  const exports = [
    { label: "Groups as JSON", name: "json", act: () => saveAs("groups.json", new Blob([JSON.stringify(subgraph(graph, state), null, 1)], { type: "application/json" })) },
    { label: "Picture (PNG)", name: "png", act: () => picture().toBlob((blob) => saveAs("graph.png", blob)) },
  ];
  const menu = live ? null : exportMenu([
    { label: "Save this page", name: "page", act: () => saveAs("graph.html", new Blob([pageWith(el, spec.title, still, kept())], { type: "text/html" })), disabled: scriptOf(el) === null, hint: "with your groups and names" },
    ...exports,
    { label: "Copy Python", name: "python", act: () => copyText(root, pythonOf(graph, state, given)).then(() => say("the Python of these groups and names was copied")) },
  ]);
  strip(root, { sentence: ["Nodes that hold ", make("span", { class: "gs-influence" }, slider, shown), " of the influence ", count], end: menu ? [menu.element] : [] });

  // The graph.
  const { left, right } = panes(root);
  const canvases = [make("canvas", { "aria-hidden": "true" }), make("canvas", { "aria-hidden": "true" }), make("canvas", { tabindex: 0, role: "application", "aria-label": "nodes of the graph", "aria-roledescription": "graph" })];
  const stage = make("div", { class: "gs-stage" }, ...canvases);
  const wide = make("div", { class: "gs-wide" }, stage);
  const spoken = make("div", { class: "gs-live", "aria-live": "polite" });
  const sign = (name, text) => make("span", {}, make("i", { class: name }), text);
  left.append(wide, make("div", { class: "gs-legend" }, sign("", graph.neurons ? "neuron, larger with influence" : "feature, larger with influence"), ...(graph.nodes.some((node) => node.kind === "error") ? [sign("gs-error", "what features miss")] : []), sign("gs-square", "token or output"), sign("gs-line", "adds"), sign("gs-line gs-minus", "takes away")), spoken);
  const top = canvases[2];
  const tip = tooltip(root);
  const given = { groups: spec.groups, labels: Object.fromEntries(graph.nodes.filter((node) => node.label).map((node) => [node.id, node.label])) };
  let [layout, colours, contexts] = [null, theme(), []];
  let drag = null;
  let isOfBus = false;

  const bus = tokenBus(spec.tokens.map((token) => token.label));
  bus.on(() => drawPart("frame"));

  // The node that is pinned, and the groups.
  const acts = { pin, point: (edge) => change({ edge }), look: (at) => change({ at }), name: rename, move, groupOf, rename: renameGroup, switchFor };
  const pane = nodePane(graph, spec, state, acts);
  right.append(pane.element);
  const shelf = groupShelf(graph, state, acts);
  const leftOut = spec.left_out.length ? [make("p", { class: "gs-small gs-faint" }, `Groups hold ${spec.left_out.length} more nodes that this page has no room for: most= of gs.graph_view says how many it shows. Copy Python leaves them out.`)] : [];
  const results = live || spec.result ? resultsPart(graph, state, named, acts) : null;
  if (results) {
    results.update(spec.result ?? null);
    below(root, results.element);
  }
  below(root, shelf.element, ...leftOut);

  const focus = () => state.at ?? state.pinned;
  const drawState = () => ({ seen: state.seen, focus: focus(), pinned: state.pinned, edge: state.edge, factor: factorOf, tint: (node) => (groupOf(node) < 0 ? null : groupTint(groupOf(node))) });
  const kept = () => ({ share: state.share, labels: state.labels, pinned: state.pinned, groups: state.groups.map(({ name, nodes }) => [name, nodes]) });

  function groupOf(node) {
    return state.groups.findIndex(({ nodes }) => nodes.includes(node));
  }
  /** What a node is multiplied by, by itself or with its group; undefined for one that is as it was. */
  function factorOf(node) {
    return state.changes[graph.nodes[node].id] ?? state.changes[state.groups[groupOf(node)]?.name];
  }
  /** The switch of a node or group by id or name; in a page without a kernel what was done to it. */
  function switchFor(key, name) {
    const by = state.changes[key] ?? 1;
    const group = key === name ? undefined : state.groups.find(({ name: one, nodes }) => one in state.changes && nodes.some((index) => graph.nodes[index].id === key));
    if (group && by === 1) return [make("div", { class: "gs-small" }, `${factorText(state.changes[group.name])} with ${group.name}`)];
    if (live) return [switchOf(name, by, (factor) => live.scale(key, factor))];
    return by === 1 ? [] : [make("div", { class: "gs-small" }, factorText(by))];
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
    spoken.textContent = readable(text);
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
    if (node !== null) live?.look(graph.nodes[node].id);
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
    results?.draw();
    drawPart("seen");
  }
  function tell() {
    shown.textContent = `${Math.round(100 * state.share)}%`;
    slider.setAttribute("aria-valuetext", shown.textContent);
    const n = state.seen.reduce((a, b) => a + b, 0);
    count.textContent = ` · ${n.toLocaleString("en")} of ${graph.nodes.length.toLocaleString("en")} nodes`;
  }
  function redraw() {
    pane.show(state.pinned);
    shelf.draw();
    drawPart("seen");
  }
  function regrouped() {
    redraw();
    const groups = Object.fromEntries(state.groups.map(({ name, nodes, outside = [] }) => [name, [...nodes.map((one) => graph.nodes[one].id), ...outside]]));
    live?.named({ groups: { ...groups, ...state.outside }, labels: state.labels, factors: state.changes });
  }
  function move(node, to) {
    if (graph.nodes[node].kind !== "feature") return say("Only features and neurons are grouped.");
    const held = state.groups[to];
    for (const group of state.groups) if (group !== held) group.nodes = group.nodes.filter((one) => one !== node);
    if (held && !held.nodes.includes(node)) held.nodes.push(node);
    if (to === state.groups.length) state.groups.push({ name: freeName(graph, state.groups, `group ${to + 1}`), nodes: [node] });
    const gone = state.groups.filter(({ nodes }) => !nodes.length);
    for (const { name } of gone) delete state.changes[name];
    state.groups = state.groups.filter(({ nodes }) => nodes.length);
    regrouped();
    const at = groupOf(node);
    say(at < 0 ? `${named(node)} is in no group` : `${named(node)} is in ${state.groups[at].name}`);
  }
  function renameGroup(i, name) {
    const others = state.groups.filter((_, k) => k !== i);
    if (name) {
      const { name: before } = state.groups[i];
      const now = freeName(graph, others, name);
      state.groups[i].name = now;
      state.changes = Object.fromEntries(Object.entries(state.changes).map(([key, by]) => [key === before ? now : key, by]));
    }
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
  let drawn = "";
  /** What the lab says: groups by ids, labels, changes and what they do. */
  function update({ groups, labels, changes, result }) {
    const key = JSON.stringify([groups, labels, changes]);
    if (key !== drawn) {
      drawn = key;
      const isTyped = root.contains(document.activeElement) && document.activeElement.matches("input[type=text]");
      const known = new Map(graph.nodes.map((node) => [node.id, node.index]));
      // Nodes that the page has no room for stay in their groups.
      const next = Object.entries(groups).map(([name, ids]) => ({ name, nodes: ids.filter((id) => known.has(id)).map((id) => known.get(id)), outside: ids.filter((id) => !known.has(id)) }));
      Object.assign(state, {
        labels: { ...labels }, changes: { ...changes }, groups: next.filter(({ nodes }) => nodes.length),
        outside: Object.fromEntries(next.filter(({ nodes }) => !nodes.length).map(({ name, outside }) => [name, outside])),
      });
      if (isTyped) drawPart("seen");
      else keepingFocus(root, redraw);
    }
    results?.update(result, Object.keys(changes).length > 0);
  }
  function detail({ node, carried, raises }) {
    const at = graph.nodes.find(({ id }) => id === node);
    if (!at || spec.raises[at.index] !== undefined || spec.looked?.[node]) return;
    Object.assign(spec.carried, carried);
    Object.assign(spec.raises, raises);
    spec.looked = { ...spec.looked, [node]: true };
    if (state.pinned === at.index && !document.activeElement?.matches(".gs-node-pane input")) keepingFocus(root, () => pane.show(state.pinned));
  }
  return { destroy: () => { stop(); bus.stop(); }, update, detail, exports };
}

/** Draw parts anew, and give the button at the same place the focus that one of them had. */
function keepingFocus(root, draw) {
  const had = document.activeElement;
  const list = had && root.contains(had) ? [...root.querySelectorAll("button,select,input")].indexOf(had) : -1;
  draw();
  if (list >= 0 && !had.isConnected) root.querySelectorAll("button,select,input")[list]?.focus({ preventScroll: true });
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
    changes: { ...spec.result?.changes },
  };
}
