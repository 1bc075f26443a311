// The numbers of an attribution graph, by node and edge, and the part that holds a share of the influence.

import { legible, legibleLine } from "../tokens.js";

const ALWAYS = ["embedding", "logit"];

/**
 * Nodes with their numbers and their edges as indices: {nodes: [{...spec.nodes[i], index, influence, before, activation,
 * input, bias, rest, inputs, outputs}], target, source, weight, score}. score: how much of its target's input an edge is,
 * times what the target counts for the outputs; what is drawn first.
 */
export function graphOf(spec, data) {
  const nodes = spec.nodes.map((node, index) => ({
    ...node, index, influence: data.influence[index], before: data.before[index], activation: data.activation[index],
    input: data.input[index], bias: data.bias[index], rest: data.rest[index], inputs: [], outputs: [],
  }));
  const { target, source, weight } = data;
  const total = new Float64Array(nodes.length);
  for (let edge = 0; edge < weight.length; edge++) {
    nodes[target[edge]].inputs.push(edge);
    nodes[source[edge]].outputs.push(edge);
    total[target[edge]] += Math.abs(weight[edge]);
  }
  const reach = nodes.map((node) => node.influence + (node.weight ?? 0));
  const score = Float64Array.from(weight, (w, edge) => (Math.abs(w) / (total[target[edge]] || 1)) * reach[target[edge]]);
  const bySize = (a, b) => Math.abs(weight[b]) - Math.abs(weight[a]);
  for (const node of nodes) {
    node.inputs.sort(bySize);
    node.outputs.sort(bySize);
  }
  const strongest = Array.from(weight.keys()).sort((a, b) => score[b] - score[a]);
  return { nodes, target, source, weight, score, strongest, tokens: spec.tokens, neurons: spec.basis === "neuron" };
}

/**
 * Which nodes are seen at a share of the influence: the fewest that hold it, embeddings and outputs; but no node without a
 * way to an output, and no feature without an input. As prune(share, edges=1) in Python. Returns a Uint8Array.
 */
export function seenAt(graph, share) {
  const { nodes, target, source, weight } = graph;
  let seen = Uint8Array.from(nodes, (node) => ALWAYS.includes(node.kind) || node.before < share);
  for (;;) {
    const [gives, takes] = [new Uint8Array(nodes.length), new Uint8Array(nodes.length)];
    for (let edge = 0; edge < weight.length; edge++) {
      if (!weight[edge] || !seen[target[edge]] || !seen[source[edge]]) continue;
      gives[source[edge]] = 1;
      takes[target[edge]] = 1;
    }
    const next = Uint8Array.from(nodes, (node, i) => seen[i] && (ALWAYS.includes(node.kind) || gives[i]) && (node.kind !== "feature" || takes[i]));
    if (next.every((one, i) => one === seen[i])) return seen;
    seen = next;
  }
}

/** What an output is called: a token, or a difference or direction in words. */
export function outputText(node) {
  return (node.isToken ? legible : legibleLine)(node.text);
}

/** What to call a node: its label, or what it is. */
export function nodeName(graph, node, labels) {
  const label = labels[node.id];
  if (label) return legibleLine(label);
  if (node.kind === "logit") return outputText(node);
  if (node.kind === "embedding") return `embedding ${legible(graph.tokens[node.pos].label)}`;
  const site = node.site ? `${node.site} ` : "";
  if (node.kind === "error") return `error of ${site}layer ${node.layer}`;
  return `${graph.neurons ? "neuron" : "feature"} ${site}${node.layer}.${node.number}`;
}

/** Where a node is, in words. */
export function nodePlace(graph, node) {
  const token = `${legible(graph.tokens[node.pos].label)}, position ${node.pos}`;
  if (node.kind === "logit") return `output, read at ${token}`;
  return node.kind === "embedding" ? token : `layer ${node.layer}, at ${token}`;
}
