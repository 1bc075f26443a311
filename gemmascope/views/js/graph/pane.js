// What is said of the pinned node: its numbers, what it reads and writes to, the heads that carried that, the tokens it raises.

import { exampleRow } from "../examples.js";
import { make } from "../page.js";
import { format, percent } from "../scale.js";
import { bars } from "../system/bars.js";
import { wordMenu } from "../system/menus.js";
import { theme } from "../theme.js";
import { legible } from "../tokens.js";
import { nodeName, nodePlace } from "./data.js";
import { nameField } from "./names.js";

const MOST_ROWS = 8, STRONGEST = 12, NONE = "-", NEW = "+";

/**
 * state: {labels, groups, seen}; acts: {pin(node), point(node, edge), name(node, text), move(node, group), groupOf(node)}.
 * spec: carried, raises, examples and scores. Returns {element, show(node or null)}.
 */
export function nodePane(graph, spec, state, acts) {
  const element = make("div", { class: "gs-node-pane" });
  const named = (index) => nodeName(graph, graph.nodes[index], state.labels);
  const placed = (index) => {
    const node = graph.nodes[index];
    return ["logit", "embedding"].includes(node.kind) ? "" : ` ${legible(graph.tokens[node.pos].label)}`;
  };

  function edgeRow(edge, other, most, isInput) {
    const weight = graph.weight[edge];
    const bar = make("span", { class: "gs-track", "aria-hidden": "true" }, make("i", { style: `left:0;width:${(100 * Math.abs(weight)) / most}%;background:var(--gs-${weight < 0 ? "negative" : "positive"})` }));
    const row = make("button", { type: "button", class: "gs-edge", "data-gs-edge": edge, onclick: () => acts.pin(other), onpointerenter: () => acts.point(edge), onpointerleave: () => acts.point(null), onfocus: () => acts.point(edge), onblur: () => acts.point(null), title: `${nodePlace(graph, graph.nodes[other])}: open` },
      make("span", {}, named(other), make("span", { class: "gs-token gs-faint" }, placed(other))), bar, make("span", {}, format(weight, true)));
    const heads = isInput ? spec.carried?.[edge] : null;
    if (!heads) return [row];
    const says = heads.length ? heads.map(([layer, head, value]) => `${layer}.${head} ${format(Number(value.toPrecision(3)), true)}`).join(" · ") : "none: it went around attention";
    return [row, make("div", { class: "gs-heads", title: "Layer and head, and how much of the edge went through it. An edge may go through heads of several layers, one after the other." }, `heads ${says}`)];
  }

  function edgeList(title, edges, end, isInput) {
    const seen = edges.filter((edge) => state.seen[end[edge]]);
    const most = seen.length ? Math.abs(graph.weight[seen[0]]) : 1;
    const rows = seen.slice(0, MOST_ROWS).flatMap((edge) => edgeRow(edge, end[edge], most, isInput));
    const more = seen.length > MOST_ROWS ? ` · ${MOST_ROWS} of ${seen.length.toLocaleString("en")}` : "";
    if (!rows.length) return [];
    return [make("h4", {}, title, make("small", { class: "gs-faint" }, more)), ...rows];
  }

  function facts(node) {
    const one = (value, name, big) => make("div", {}, make("span", { class: big ? "gs-big" : "gs-head" }, value), make("small", { class: "gs-faint" }, name));
    const all = [];
    if (node.kind === "logit") all.push(one(format(node.input, true), "before the soft cap", true), one(format(node.weight), "weight"));
    else all.push(one(percent(node.influence), "of the outputs goes through it", true));
    if (node.kind === "feature") all.push(one(format(node.activation), "activation"));
    return make("div", { class: "gs-facts" }, ...all);
  }

  function groupLine(node) {
    if (node.kind !== "feature") return [];
    const options = [{ value: NONE, label: "no group" }, ...state.groups.map(({ name }, i) => ({ value: String(i), label: name })), { value: NEW, label: "a new group" }];
    const at = acts.groupOf(node.index);
    const menu = wordMenu("group of this node", options, at < 0 ? NONE : String(at), (value) => acts.move(node.index, value === NEW ? state.groups.length : value === NONE ? -1 : Number(value)));
    return [make("div", { class: "gs-in" }, "In ", menu.element)];
  }

  function sums(node) {
    if (Number.isNaN(node.input)) return node.kind === "feature" ? [make("p", { class: "gs-small gs-faint" }, "What it reads was not asked for: max_nodes of gs.attribution_graph says for how many nodes that is found.")] : [];
    return [make("p", { class: "gs-small gs-faint", "data-gs-sums": node.index }, `Adds up to its input, ${format(node.input, true)}, with the bias, ${format(node.bias, true)}, and edges not shown on this page, ${format(node.rest, true)}.`)];
  }

  function tokens(node) {
    const all = spec.raises?.[node.index];
    if (!all) return [];
    const most = Math.max(...all.map(([, value]) => Math.abs(value)), 1e-12);
    const rows = all.map(([text, value]) => ({ name: legible(text), value, token: true }));
    return [make("h4", {}, "Tokens it raises and lowers by itself", make("small", { class: "gs-faint" }, " · logits")), bars(rows, { most, signed: true, label: "tokens" }).element];
  }

  function texts(node) {
    const rows = spec.examples?.[node.index];
    if (!rows) return [];
    const high = Math.max(...rows.flatMap(({ values }) => values.map((one) => Math.abs(one ?? 0))), 1e-12);
    const signed = rows.some(({ values }) => values.some((one) => one < 0));
    const drawn = rows.map(exampleRow);
    for (const { row, tint } of drawn) tint(row.values, { kind: signed ? "diverging" : "sequential", low: signed ? -high : 0, high }, theme().dark);
    return [make("h4", {}, "Texts on which it is strongest"), ...drawn.map(({ element }) => element)];
  }

  function overview() {
    const strongest = graph.nodes.filter((node) => state.seen[node.index] && node.kind !== "logit").sort((a, b) => b.influence - a.influence).slice(0, STRONGEST);
    const most = strongest[0]?.influence || 1;
    const rows = strongest.map((node) => make("button", { type: "button", class: "gs-edge", onclick: () => acts.pin(node.index), onpointerenter: () => acts.look(node.index), onpointerleave: () => acts.look(null) },
      make("span", {}, named(node.index), make("span", { class: "gs-token gs-faint" }, placed(node.index))),
      make("span", { class: "gs-track", "aria-hidden": "true" }, make("i", { style: `left:0;width:${(100 * node.influence) / most}%` })), make("span", {}, percent(node.influence))));
    const [replacement, completeness] = spec.scores;
    return [
      make("div", { class: "gs-head" }, "Strongest nodes"),
      make("p", { class: "gs-small gs-faint" }, "The share of the outputs that goes through a node, along all paths. Click a node to open it."),
      ...rows,
      spec.basis === "neuron" ? "" : make("p", { class: "gs-small gs-faint" }, `Replacement score ${replacement === null ? "unknown" : percent(replacement)}, completeness ${percent(completeness)}: how much goes through features and not through what they miss.`),
    ];
  }

  function show(index) {
    if (index === null) return element.replaceChildren(...overview());
    const node = graph.nodes[index];
    const plain = nodeName(graph, node, {});
    const name = nameField(state.labels[node.id] ?? "", "name of this node", (text) => acts.name(node, text), { placeholder: plain });
    element.replaceChildren(
      node.kind === "feature" ? name : make("div", { class: "gs-head" }, plain),
      make("div", { class: "gs-faint" }, nodePlace(graph, node)), ...groupLine(node), ...(node.kind === "feature" ? acts.switchFor(node.id, plain) : []), facts(node),
      ...edgeList("Reads", node.inputs, graph.source, true), ...sums(node),
      ...edgeList("Writes to", node.outputs, graph.target, false), ...tokens(node), ...texts(node),
    );
  }
  return { element, show };
}
