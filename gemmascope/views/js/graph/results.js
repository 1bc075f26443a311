// What changes of nodes do: outputs before, predicted and true, and for every later node in view predicted beside true.

import { make } from "../page.js";
import { format } from "../scale.js";
import { shape } from "../shape.js";
import { bars } from "../system/bars.js";
import { legible, legibleLine } from "../tokens.js";

const SIDE = 240, EDGE = 12, GUTTER = 24, MOST_OUTPUTS = 10;

export const RESULTS_STYLE = `
.gs-results{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,272px),1fr));gap:16px 32px;min-height:344px;padding:8px 0}
.gs-results.gs-old{opacity:.5}
.gs-results h4{margin:0 0 8px;font-size:14px;line-height:20px;font-weight:600}
.gs-outcome{margin-bottom:8px}
.gs-outcome>:first-child{display:flex;flex-wrap:wrap;gap:0 16px;align-items:baseline;justify-content:space-between}
.gs-outcome .gs-bars{grid-template-columns:64px minmax(64px,1fr) 56px}
.gs-scatter{display:block;max-width:100%}
.gs-scatter .gs-frame{fill:none;stroke:var(--gs-line)}
.gs-scatter line{stroke:var(--gs-faint);stroke-width:1}
.gs-scatter .gs-zero{stroke:var(--gs-line)}
.gs-scatter circle{fill:var(--gs-accent);fill-opacity:.55;cursor:pointer}
.gs-scatter circle:hover{fill-opacity:1}
.gs-scatter text{font-size:12px;fill:var(--gs-faint)}
`;

/** Pearson's correlation; null for fewer than two points, or where one side does not vary. */
export function correlationOf(pairs) {
  const n = pairs.length;
  if (n < 2) return null;
  const mean = [0, 1].map((i) => pairs.reduce((sum, pair) => sum + pair[i], 0) / n);
  let [xy, xx, yy] = [0, 0, 0];
  for (const pair of pairs) {
    const [x, y] = [pair[0] - mean[0], pair[1] - mean[1]];
    [xy, xx, yy] = [xy + x * y, xx + x * x, yy + y * y];
  }
  return xx && yy ? xy / Math.sqrt(xx * yy) : null;
}

/**
 * graph, state: of the page; names(index): what a node is called; acts: {pin, look}.
 * Returns {element, update(result or null, isChanged), draw()}.
 * result: {outputs: [{name, isToken, before, predicted, true}], nodes: [[id, predicted, true]], hold}
 */
export function resultsPart(graph, state, names, acts) {
  const element = make("div", { class: "gs-results" });
  const indexOf = new Map(graph.nodes.map((node) => [node.id, node.index]));
  let shown = null;

  const moves = ({ before, predicted, true: found }) => [predicted, found].map((value) => (value === null ? null : value - before));

  function outcome(output, most) {
    const name = (output.isToken ? legible : legibleLine)(output.name);
    const rows = moves(output).map((value, i) => ({ name: ["predicted", "true"][i], value: value ?? 0, text: value === null ? "too large" : format(value, true) }));
    const from = `${format(output.before, true)} before, ${output.true === null ? "too large" : format(output.true, true)} now`;
    return make("div", { class: "gs-outcome" }, make("div", {}, make("span", { class: output.isToken ? "gs-token" : "" }, name), make("span", { class: "gs-small gs-faint" }, from)), bars(rows, { most, signed: true, label: `${name}: predicted and true change` }).element);
  }

  function outcomes({ outputs, hold }) {
    const listed = outputs.slice(0, MOST_OUTPUTS);
    const most = Math.max(1e-12, ...listed.flatMap((one) => moves(one).map((value) => Math.abs(value ?? 0))));
    const note = hold === "everything" ? "Predicted by the edges alone; true with everything held" : `Predicted along all paths; true with ${hold} held`;
    return make("div", {}, make("h4", {}, "How far outputs move", make("small", { class: "gs-faint" }, " · before the soft cap")), make("div", { class: "gs-scroll" }, ...listed.map((one) => outcome(one, most))), make("p", { class: "gs-small gs-faint" }, `${note}.`));
  }

  function scatter({ nodes }) {
    const points = nodes.map(([id, predicted, true_]) => [indexOf.get(id), predicted, true_]).filter(([index, x, y]) => index !== undefined && state.seen[index] && x !== null && y !== null);
    if (!points.length) return make("div", {}, make("h4", {}, "What later nodes read"), make("p", { class: "gs-small gs-faint", role: "status", "data-gs-correlation": "" }, "No later node is in view: only outputs read what was changed."));
    const r = correlationOf(points.map(([, x, y]) => [x, y]));
    const says = `${r === null ? "No correlation" : `Correlation ${r.toFixed(2)}`} over ${points.length.toLocaleString("en")} later ${points.length === 1 ? "node" : "nodes"} in view`;
    const bound = Math.max(1e-12, ...points.flatMap(([, x, y]) => [Math.abs(x), Math.abs(y)]));
    const ends = [-bound, bound].map((value) => format(Number(value.toPrecision(2)), true));
    const at = (value) => EDGE + ((value / bound + 1) / 2) * (SIDE - 2 * EDGE);
    const picture = shape("svg", { class: "gs-scatter", width: SIDE + GUTTER, height: SIDE + GUTTER, viewBox: `${-GUTTER} 0 ${SIDE + GUTTER} ${SIDE + GUTTER}`, role: "img", "aria-label": `${says}; predicted to the right, true upwards, from ${ends[0]} to ${ends[1]}` },
      shape("rect", { class: "gs-frame", x: 0.5, y: 0.5, width: SIDE - 1, height: SIDE - 1, rx: 4 }),
      shape("line", { class: "gs-zero", x1: at(0), x2: at(0), y1: 0, y2: SIDE }), shape("line", { class: "gs-zero", x1: 0, x2: SIDE, y1: SIDE - at(0), y2: SIDE - at(0) }),
      shape("line", { x1: at(-bound), y1: SIDE - at(-bound), x2: at(bound), y2: SIDE - at(bound), "stroke-dasharray": "3 3" }));
    for (const [index, x, y] of points) {
      const one = shape("circle", { cx: at(x), cy: SIDE - at(y), r: 3.5, "data-gs-point": graph.nodes[index].id });
      one.append(shape("title", {}, `${names(index)}: predicted ${format(x, true)}, true ${format(y, true)}`));
      one.addEventListener("pointerenter", () => acts.look(index));
      one.addEventListener("pointerleave", () => acts.look(null));
      one.addEventListener("click", () => acts.pin(index));
      picture.append(one);
    }
    const places = [[0, "start", ends[0]], [SIDE / 2, "middle", "0"], [SIDE, "end", ends[1]]];
    for (const [x, anchor, value] of places) {
      picture.append(shape("text", { x, y: SIDE + 16, "text-anchor": anchor }, value));
      picture.append(shape("text", { x, y: -8, "text-anchor": anchor, transform: `translate(0,${SIDE}) rotate(-90)` }, value));
    }
    picture.append(shape("text", { x: SIDE - EDGE, y: SIDE - EDGE, "text-anchor": "end" }, "predicted →"), shape("text", { x: EDGE, y: EDGE + 8 }, "true ↑"));
    return make("div", {}, make("h4", {}, "What later nodes read"), picture, make("p", { class: "gs-small gs-faint", role: "status", "data-gs-correlation": "" }, `${says}. On the dashed line the graph is right.`));
  }

  /** isChanged: whether nodes are changed; until what that does is known, the last that was known stays. */
  function update(result, isChanged = true) {
    const waits = !result && isChanged && shown !== null;
    element.classList.toggle("gs-old", waits);
    if (waits) return;
    shown = result;
    draw();
  }
  function draw() {
    if (!shown) {
      const text = "Switch a node or a group off, halve or double it: what the graph predicts then stands here beside what the model does.";
      element.replaceChildren(make("div", {}, make("h4", {}, "Predicted beside true"), make("p", { class: "gs-small gs-faint" }, text)));
    } else element.replaceChildren(outcomes(shown), scatter(shown));
  }
  return { element, update, draw };
}
