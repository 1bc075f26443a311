// A small line through the layers: ranks on a logarithmic scale, the best on top.

import { shape } from "./shape.js";

const WIDTH = 280, HEIGHT = 80, SIDE = 8, TOP = 24, BOTTOM = 24;

/** Where ranks are drawn: [[x, y]], from the first layer at the left. */
export function sparkPoints(values) {
  const worst = Math.log1p(Math.max(1, ...values));
  const step = (WIDTH - 2 * SIDE) / Math.max(1, values.length - 1);
  return values.map((rank, i) => [SIDE + i * step, TOP + ((HEIGHT - TOP - BOTTOM) * Math.log1p(rank)) / worst]);
}

/** values: the ranks, 0 for the likeliest; names: of the layers; at: the one that is marked; label: what it is, for screen readers. */
export function sparkline({ values, names, at, label }) {
  const points = sparkPoints(values);
  const first = values.indexOf(0);
  const dot = ([x, y], r, style) => shape("circle", { cx: x, cy: y, r, style });
  const text = (i, y, anchor, content) => shape("text", { x: points[i][0], y, "text-anchor": anchor, style: "fill:var(--gs-faint)" }, content);
  const last = values.length - 1;
  const parts = [
    shape("polyline", { points: points.map((point) => point.join()).join(" "), style: "fill:none;stroke:var(--gs-accent);stroke-width:1.5" }),
    ...points.map((point, i) => dot(point, i === at ? 4 : 2, "fill:var(--gs-accent)")),
    ...(first < 0 ? [] : [dot(points[first], 6, "fill:none;stroke:#c77700;stroke-width:2")]),
    text(0, points[0][1] - 8, "start", String(values[0])), text(last, points[last][1] - 10, "end", String(values[last])),
    text(0, HEIGHT - 4, "start", names[0]), ...(last ? [text(last, HEIGHT - 4, "end", names[last])] : []),
  ];
  const says = values.map((rank, i) => `${names[i]}: ${rank}`).join(", ");
  const picture = shape("svg", { width: WIDTH, height: HEIGHT, viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${label} by layer: ${says}`, style: "display:block;max-width:100%;font-size:12px" }, ...parts);
  return picture;
}
