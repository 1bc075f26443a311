// What is taken away from a graph's page: its groups and names as JSON and as Python, the page itself, and a picture.

import { make } from "../page.js";

const POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'";
const INVISIBLE = /[\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;

/** The groups and names by ids, and the nodes and edges of the groups with the outputs. */
export function subgraph(graph, state) {
  const inside = new Set(state.groups.flatMap(({ nodes }) => nodes));
  for (const node of graph.nodes) if (node.kind === "logit") inside.add(node.index);
  const edges = [...graph.weight.keys()].filter((edge) => inside.has(graph.source[edge]) && inside.has(graph.target[edge]));
  const idOf = (index) => graph.nodes[index].id;
  return {
    supernodes: Object.fromEntries(state.groups.map(({ name, nodes }) => [name, nodes.map(idOf)])),
    labels: state.labels,
    share: state.share,
    nodes: [...inside].sort((a, b) => a - b).map(idOf),
    edges: edges.map((edge) => ({ target: idOf(graph.target[edge]), source: idOf(graph.source[edge]), weight: graph.weight[edge] })),
  };
}

/** Lines of Python that give `graph` these groups and names. before: the groups and names that it has. */
export function pythonOf(graph, state, before) {
  const lines = state.groups.map(({ name, nodes }) => `graph.group(${literal(name)}, [${nodes.map((index) => literal(graph.nodes[index].id)).join(", ")}])`);
  for (const name of Object.keys(before.groups)) if (!state.groups.some((group) => group.name === name)) lines.unshift(`graph.group(${literal(name)}, [])`);
  for (const id of new Set([...Object.keys(before.labels), ...Object.keys(state.labels)]))
    if (before.labels[id] !== state.labels[id]) lines.push(`graph.label(${literal(id)}, ${literal(state.labels[id] ?? "")})`);
  return lines.join("\n") + "\n";
}

/** A text as a Python literal with nothing invisible in it. */
function literal(text) {
  return JSON.stringify(text).replace(INVISIBLE, (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

/** The script that drew a view, which a saved page needs again; null where a front end took it out of the page. */
export function scriptOf(el) {
  const next = el.nextElementSibling;
  return next?.tagName === "SCRIPT" && next.textContent.includes(el.dataset.gs) ? next.textContent : null;
}

/** A page with the view as it is now. still: what stands in the view's place where scripts do not run. */
export function pageWith(el, title, still, state) {
  const page = document.implementation.createHTMLDocument(title);
  page.documentElement.lang = "en";
  page.head.prepend(make("meta", { charset: "utf-8" }), make("meta", { name: "viewport", content: "width=device-width" }), make("meta", { "http-equiv": "Content-Security-Policy", content: POLICY }));
  page.head.append(make("style", {}, "body{margin:16px;background:#fff;color:#1a1a1a;font-family:system-ui,sans-serif}\n@media (prefers-color-scheme:dark){body{background:#111316;color:#ececec}}"));
  const place = make("div", { "data-gs": el.dataset.gs, "data-gs-state": JSON.stringify(state) });
  place.append(...still.map((node) => node.cloneNode(true)));
  const script = make("script", { type: "module" });
  script.textContent = scriptOf(el);
  page.body.append(place, "\n", script);
  return `<!doctype html>\n${page.documentElement.outerHTML}\n`;
}
