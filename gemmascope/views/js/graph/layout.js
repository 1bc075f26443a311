// Where the nodes of a graph stand: tokens to the right, layers upwards, those of one place side by side and in lines.

import { charactersOf, cut, legible } from "../tokens.js";

export const FONT = "12px system-ui, sans-serif", TOKEN_FONT = "12px ui-monospace, monospace";
const PITCH = 16, LEFT = 64, RIGHT = 16, TOP = 8, ROW = 32, LOW_ROW = 24, MANY_LAYERS = 16, FEW_TOKENS = 24, LONGEST_TOKEN = 14;

/** measure: pixels of a text in TOKEN_FONT. {width, height, x, y, r: of each node, columns, rows, tokens: their top, upright} */
export function graphLayout(graph, layers, width, measure) {
  const { nodes, tokens } = graph;
  const used = new Set(nodes.map((node) => node.pos));
  const positions = [...tokens.keys()].filter((pos) => tokens.length <= FEW_TOKENS || used.has(pos));
  const columnOf = new Map(positions.map((pos, i) => [pos, i]));
  const rowOf = (node) => (node.kind === "logit" ? layers + 1 : node.kind === "embedding" ? 0 : node.layer + 1);
  const cells = new Map();
  for (const node of [...nodes].sort((a, b) => b.influence - a.influence)) {
    const key = rowOf(node) * positions.length + columnOf.get(node.pos);
    cells.set(key, [...(cells.get(key) ?? []), node.index]);
  }
  const outputs = nodes.filter((node) => node.kind === "logit").map((node) => node.index);
  const most = positions.map((_, c) => Math.max(1, ...Array.from({ length: layers + 1 }, (_, row) => cells.get(row * positions.length + c)?.length ?? 0)));
  const characters = charactersOf(positions.map((pos) => tokens[pos].label));
  const texts = positions.map((pos, c) => (characters[c]?.nth ? "" : cut(legible(characters[c]?.text ?? tokens[pos].label), LONGEST_TOKEN)));
  const wide = texts.map((text) => measure(text) + 12);
  const room = Math.max(240, width - LEFT - RIGHT);
  const sum = (values) => values.reduce((a, b) => a + b, 0);
  const upright = sum(wide) > 0.9 * room;
  const least = upright ? positions.map(() => PITCH + 8) : wide;
  const widths = (cap) => least.map((one, c) => Math.max(one, Math.min(cap, most[c]) * PITCH + 8));
  let cap = 1;
  while (cap < Math.max(...most) && sum(widths(cap + 1)) <= room) cap++;
  const spare = Math.max(0, room - sum(widths(cap))) / positions.length;
  const columns = [];
  let at = LEFT;
  widths(cap).forEach((one, c) => {
    columns.push({ pos: positions[c], left: at, width: one + spare, text: texts[c], skips: c > 0 && positions[c] !== positions[c - 1] + 1 });
    at += one + spare;
  });
  const inLine = (c) => Math.max(1, Math.floor((columns[c].width - 8) / PITCH));
  const low = layers > MANY_LAYERS ? LOW_ROW : ROW;
  const [x, y] = [new Float64Array(nodes.length), new Float64Array(nodes.length)];
  const rows = [];
  let top = TOP;
  for (let row = layers + 1; row >= 0; row--) {
    const linesOf = (c) => Math.ceil((cells.get(row * positions.length + c)?.length ?? 0) / inLine(c));
    const lines = row === layers + 1 ? outputs.length : Math.max(1, ...columns.map((_, c) => linesOf(c)));
    const height = Math.max(low, lines * PITCH + 16);
    rows.push({ row, top, height, name: row === 0 ? "tokens" : row > layers ? "output" : String(row - 1) });
    columns.forEach((column, c) => {
      const here = row > layers ? (c === columnOf.get(nodes[outputs[0]]?.pos) ? outputs : []) : cells.get(row * positions.length + c) ?? [];
      const n = row > layers ? 1 : inLine(c);
      const used = Math.ceil(here.length / n);
      here.forEach((node, i) => {
        const line = Math.floor(i / n);
        const inThis = Math.min(n, here.length - line * n);
        x[node] = column.left + column.width / 2 + ((i % n) - (inThis - 1) / 2) * PITCH;
        y[node] = top + height / 2 + (line - (used - 1) / 2) * PITCH;
      });
    });
    top += height;
  }
  const strongest = Math.max(...nodes.filter((node) => node.kind === "feature").map((node) => node.influence), 1e-12);
  const r = Float64Array.from(nodes, (node) => (node.kind === "feature" ? 3 + 4 * Math.sqrt(Math.min(1, Math.max(0, node.influence) / strongest)) : 4));
  const tall = upright ? Math.max(...texts.map(measure)) + 12 : 24;
  return { width: Math.ceil(at + RIGHT), height: Math.ceil(top + tall), x, y, r, columns, rows, tokens: top, upright };
}

/** The node at a point, among those that are seen; null for none near. */
export function nodeAt(layout, seen, px, py) {
  let [best, near] = [null, 10];
  for (let i = 0; i < layout.x.length; i++) {
    if (!seen[i]) continue;
    const away = Math.hypot(layout.x[i] - px, layout.y[i] - py);
    if (away < near) [best, near] = [i, away];
  }
  return best;
}

/** The next node in a direction from another: within a cone about it, and near. null for none. */
export function nodeBeside(layout, seen, from, [dx, dy]) {
  let [best, near] = [null, Infinity];
  for (let i = 0; i < layout.x.length; i++) {
    if (!seen[i] || i === from) continue;
    const [x, y] = [layout.x[i] - layout.x[from], layout.y[i] - layout.y[from]];
    const [along, across] = [x * dx + y * dy, Math.abs(x * dy) + Math.abs(y * dx)];
    if (along < 1) continue;
    const away = along + 2 * across;
    if (away < near) [best, near] = [i, away];
  }
  return best;
}
