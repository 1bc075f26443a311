// Draws a graph on three canvases: the frame, what is seen, and on top what is pointed at. Only the last changes with the pointer.

import { FONT, TOKEN_FONT } from "./layout.js";
import { cut } from "../tokens.js";
import { outputText } from "./data.js";

// Edges of the resting picture, and characters of an output's name.
const MOST_EDGES = 400, LONGEST_OUTPUT = 40;

/** The rows with their names, the tokens, and the outputs' names. at, pinned: positions of tokens that are lit. */
export function drawFrame(ctx, graph, layout, colours, { at, pinned }) {
  ctx.clearRect(0, 0, layout.width, layout.height);
  ctx.textBaseline = "middle";
  for (const { pos, left, width } of layout.columns) {
    if (pos !== at && pos !== pinned) continue;
    ctx.fillStyle = colours.highlight;
    ctx.globalAlpha = 0.3;
    ctx.fillRect(left, 0, width, layout.tokens);
    ctx.globalAlpha = 1;
    ctx.fillRect(left, layout.tokens, width, layout.height - layout.tokens);
  }
  ctx.strokeStyle = colours.line;
  ctx.lineWidth = 1;
  ctx.font = FONT;
  for (const { top, height, name } of layout.rows) {
    ctx.fillStyle = colours.faint;
    ctx.textAlign = "right";
    ctx.fillText(name, 52, top + height / 2);
    line(ctx, 60, Math.round(top + height) + 0.5, layout.width - 8);
  }
  ctx.font = TOKEN_FONT;
  for (const { pos, left, width, text, skips } of layout.columns) {
    const middle = left + width / 2;
    ctx.fillStyle = graph.tokens[pos].special ? colours.faint : colours.ink;
    ctx.save();
    ctx.translate(middle, layout.tokens + (layout.upright ? 6 : 13));
    if (layout.upright) ctx.rotate(-Math.PI / 2);
    ctx.textAlign = layout.upright ? "right" : "center";
    ctx.fillText(text, 0, 0);
    ctx.restore();
    ctx.textAlign = "center";
    if (skips) ctx.fillText("…", left, layout.tokens + 10);
  }
  ctx.fillStyle = colours.ink;
  for (const node of graph.nodes) {
    if (node.kind !== "logit") continue;
    const onLeft = layout.x[node.index] > layout.width / 2;
    ctx.textAlign = onLeft ? "right" : "left";
    ctx.fillText(cut(outputText(node), LONGEST_OUTPUT), layout.x[node.index] + (onLeft ? -12 : 12), layout.y[node.index]);
  }
}

/** The strongest edges, faint, and the nodes that are seen. */
export function drawSeen(ctx, graph, layout, colours, state) {
  ctx.clearRect(0, 0, layout.width, layout.height);
  const edges = [];
  for (const edge of graph.strongest) {
    if (edges.length === MOST_EDGES) break;
    if (state.seen[graph.target[edge]] && state.seen[graph.source[edge]]) edges.push(edge);
  }
  const top = edges.length ? graph.score[edges[0]] : 1;
  ctx.strokeStyle = colours.faint;
  for (const edge of edges.reverse()) {
    const part = Math.sqrt(graph.score[edge] / top);
    ctx.globalAlpha = 0.06 + 0.44 * part;
    ctx.lineWidth = 0.5 + 1.5 * part;
    curve(ctx, graph, layout, edge);
  }
  ctx.globalAlpha = 1;
  for (const node of graph.nodes) if (state.seen[node.index]) drawNode(ctx, node, layout, colours, state.tint(node.index));
  for (const { index, kind } of graph.nodes) if (kind === "feature" && state.seen[index]) drawChange(ctx, layout, colours, index, state.factor(index));
}

/** The mark of a node that is changed: struck out where it is off, else a ring. */
function drawChange(ctx, layout, colours, index, factor) {
  if (factor === undefined) return;
  const [x, y, r] = [layout.x[index], layout.y[index], layout.r[index] + 3];
  ctx.strokeStyle = colours.ink;
  ctx.lineWidth = 1.5;
  ctx.beginPath();
  if (factor === 0) for (const d of [-1, 1]) { ctx.moveTo(x - r, y - d * r); ctx.lineTo(x + r, y + d * r); }
  else ctx.arc(x, y, r, 0, 7);
  ctx.stroke();
}

/** The edges of the node that is looked at, in colours, with the nodes at their ends; the pinned node, and the keyboard's. */
export function drawFocus(ctx, graph, layout, colours, state) {
  ctx.clearRect(0, 0, layout.width, layout.height);
  const { focus, pinned, edge: lit } = state;
  if (focus !== null) {
    const node = graph.nodes[focus];
    for (const all of [node.inputs, node.outputs]) {
      const edges = all.filter((edge) => state.seen[graph.target[edge]] && state.seen[graph.source[edge]]);
      const top = edges.length ? Math.abs(graph.weight[edges[0]]) : 1;
      for (const edge of edges.reverse()) {
        const part = Math.abs(graph.weight[edge]) / top;
        ctx.strokeStyle = graph.weight[edge] < 0 ? colours.negative : colours.positive;
        ctx.globalAlpha = lit !== null && lit !== edge ? 0.1 : 0.08 + 0.92 * part;
        ctx.lineWidth = 0.5 + 3.5 * part;
        curve(ctx, graph, layout, edge);
        ctx.globalAlpha = Math.max(0.35, ctx.globalAlpha);
        const other = graph.nodes[graph.target[edge] === focus ? graph.source[edge] : graph.target[edge]];
        drawNode(ctx, other, layout, colours, state.tint(other.index));
      }
    }
    ctx.globalAlpha = 1;
    drawNode(ctx, node, layout, colours, state.tint(focus) ?? colours.accent);
  }
  ctx.strokeStyle = colours.accent;
  for (const [one, width] of [[focus, 1], [pinned, 2]]) {
    if (one === null || !state.seen[one]) continue;
    ctx.lineWidth = width;
    ctx.beginPath();
    ctx.arc(layout.x[one], layout.y[one], layout.r[one] + 3, 0, 7);
    ctx.stroke();
  }
}

function drawNode(ctx, { kind, index }, layout, colours, tint) {
  const [x, y, r] = [layout.x[index], layout.y[index], layout.r[index]];
  ctx.beginPath();
  if (kind === "error") ctx.rect(x - r + 0.5, y - r + 0.5, 2 * r - 1, 2 * r - 1);
  else if (kind === "feature") ctx.arc(x, y, r, 0, 7);
  else ctx.roundRect(x - r - 1, y - r, 2 * r + 2, 2 * r, 2);
  ctx.fillStyle = kind === "error" ? colours.ground : tint ?? (kind === "feature" ? colours.faint : colours.ink);
  ctx.fill();
  ctx.strokeStyle = kind === "error" ? tint ?? colours.faint : colours.ground;
  ctx.lineWidth = 1;
  ctx.stroke();
}

function curve(ctx, graph, layout, edge) {
  const [from, to] = [graph.source[edge], graph.target[edge]];
  const middle = (layout.y[from] + layout.y[to]) / 2;
  ctx.beginPath();
  ctx.moveTo(layout.x[from], layout.y[from]);
  ctx.bezierCurveTo(layout.x[from], middle, layout.x[to], middle, layout.x[to], layout.y[to]);
  ctx.stroke();
}

function line(ctx, left, y, right) {
  ctx.beginPath();
  ctx.moveTo(left, y);
  ctx.lineTo(right, y);
  ctx.stroke();
}
