// Named groups of nodes, into which nodes are dragged: cards with their nodes, and what a group gives to others directly.

import { make } from "../page.js";
import { format } from "../scale.js";
import { legible } from "../tokens.js";
import { nodeName, outputText } from "./data.js";
import { nameField } from "./names.js";

// Tell groups apart in both themes; names do so too.
const GROUP_TINTS = ["#1b9e77", "#d95f02", "#8c7bd9", "#e7298a", "#66a61e", "#c99a00", "#a6761d", "#4aa3c7"];

/** The colour of a group. */
export function groupTint(i) {
  return GROUP_TINTS[i % GROUP_TINTS.length];
}

/** What groups give to one another and to the outputs: [{from, to: name, weight}], direct edges added up. */
export function flowsOf(graph, groups, seen) {
  const ends = [...groups.map(({ name, nodes }) => ({ name, nodes })), ...graph.nodes.filter((node) => node.kind === "logit").map((node) => ({ name: outputText(node), nodes: [node.index] }))];
  const flows = [];
  groups.forEach((group, from) =>
    ends.forEach(({ name, nodes }, to) => {
      if (to === from) return;
      const takes = new Set(nodes.filter((node) => seen[node]));
      const edges = group.nodes.filter((node) => seen[node]).flatMap((node) => graph.nodes[node].outputs.filter((edge) => takes.has(graph.target[edge])));
      if (edges.length) flows.push({ from, to: name, weight: edges.reduce((sum, edge) => sum + graph.weight[edge], 0) });
    }));
  return flows;
}

/** A name that no group and no node has. */
export function freeName(graph, groups, wanted) {
  const taken = new Set([...groups.map(({ name }) => name), ...graph.nodes.map(({ id }) => id)]);
  let name = wanted;
  for (let n = 2; taken.has(name); n++) name = `${wanted} ${n}`;
  return name;
}

/** acts: {pin, look, move(node, -1), rename(group, text)}. Returns {element, draw(), at(x, y): a group's index or null, over(i)}. */
export function groupShelf(graph, state, acts) {
  const element = make("div", { class: "gs-groups", role: "group", "aria-label": "groups of nodes" });
  function card(group, i, flows) {
    const name = nameField(group.name, `name of group ${i + 1}`, (text) => acts.rename(i, text));
    const items = group.nodes.map((node) => {
      const text = nodeName(graph, graph.nodes[node], state.labels);
      const open = make("button", { type: "button", class: state.seen[node] ? "" : "gs-faint", onclick: () => acts.pin(node), onpointerenter: () => acts.look(node), onpointerleave: () => acts.look(null) }, text, make("span", { class: "gs-token gs-faint" }, ` ${legible(graph.tokens[graph.nodes[node].pos].label)}`));
      return make("li", {}, open, make("button", { type: "button", "aria-label": `take ${text} out of the group`, title: "take out", onclick: () => acts.move(node, -1) }, "×"));
    });
    const lines = flows.filter(({ from }) => from === i).map(({ to, weight }) => make("div", { class: "gs-flow" }, `gives ${to} ${format(weight, true)}`));
    return make("div", { class: "gs-group", "data-gs-group": i, style: `--gs-tint:${groupTint(i)}` }, name, ...acts.switchFor(group.name, group.name), make("ul", {}, ...items), ...lines);
  }
  function draw() {
    const flows = flowsOf(graph, state.groups, state.seen);
    const fresh = make("div", { class: "gs-group gs-new", "data-gs-group": state.groups.length }, make("div", {}, "Drag nodes here"), make("div", {}, "to make a group"));
    element.replaceChildren(...state.groups.map((group, i) => card(group, i, flows)), fresh);
  }
  const under = (x, y) => document.elementsFromPoint(x, y).map((one) => one.closest("[data-gs-group]")).find((one) => one && element.contains(one)) ?? null;
  return {
    element,
    draw,
    at(x, y) {
      const found = under(x, y);
      return found ? Number(found.dataset.gsGroup) : null;
    },
    over(i) {
      for (const one of element.children) one.classList.toggle("gs-over", Number(one.dataset.gsGroup) === i);
    },
  };
}
