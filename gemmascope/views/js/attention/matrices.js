// One head's whole patterns, side by side for two prompts, with a crosshair; long ones can be magnified.

import { linkedGrid } from "../linked_grid.js";
import { make } from "../page.js";
import { format } from "../scale.js";

const ZOOM_FROM = 80; // tokens from which a pattern can be magnified
const LEAST_SIDE = 16; // cells of a magnified part
const MATRIX_STYLE = `
.gs-zoom{display:flex;gap:8px;align-items:center;min-height:32px;color:var(--gs-faint)}
`;

/** A part of a range of `n` positions, [first, last], as long as `side` or longer, that covers `wanted` around its middle. */
export function partAround([first, last], side, n) {
  const length = Math.min(n, Math.max(side, last - first + 1));
  const start = Math.min(n - length, Math.max(0, Math.round((first + last + 1 - length) / 2)));
  return [start, start + length - 1];
}

/**
 * labels: by panel. buses: by panel, which the crosshairs follow. Returns {show({layer, head, bos, towards}), destroy()}.
 */
export function matrices(host, spec, patterns, labels, { buses }) {
  const { panels, names } = patterns;
  const longest = Math.max(...panels.map(patterns.lengthOf));
  const row = make("div", { class: "gs-panels" });
  row.style.setProperty("--gs-least", `${panels.length === 1 ? 320 : Math.max(320, Math.min(560, 3 * longest + 230))}px`);
  const said = make("span", { "aria-live": "polite" });
  const whole = make("button", { type: "button", onclick: () => zoomTo(null) }, "Whole pattern");
  const closer = make("button", { type: "button", onclick: () => magnify() }, "Zoom in");
  const tools = make("div", { class: "gs-zoom gs-small" }, closer, whole, said);
  host.append(make("style", {}, MATRIX_STYLE), row);
  if (longest >= ZOOM_FROM) host.prepend(tools);
  const drawn = panels.map((name) => {
    const element = make("div");
    row.append(element);
    return { name, element, grid: null };
  });
  let shown = null; // what show was given
  let part = null; // {rows: [first, last], columns: [first, last]}

  const partOf = (name) => {
    const last = patterns.lengthOf(name) - 1;
    return part && part.rows[1] <= last && part.columns[1] <= last ? part : { rows: [0, last], columns: [0, last] };
  };
  function specOf(name) {
    const { layer: l, head, bos } = shown;
    const layer = spec.layers[l];
    const { rows, columns } = partOf(name);
    const window = patterns.windowOf(name, l);
    const cut = (list, [first, last]) => list.slice(first, last + 1);
    return {
      title: panels.length > 1 ? `${names[name]}, head ${layer.index}.${spec.heads[head]}` : `Who looks at whom, head ${layer.index}.${spec.heads[head]}`,
      rows: cut(labels[name], rows), columns: cut(labels[name], columns), from: [rows[0], columns[0]],
      square: true, window: layer.window, row_axis: "query", column_axis: "key",
      unit: panels.length > 1 ? "" : "probability", measure: panels.length > 1 ? names[name] : "probability", decimals: 4,
      scale: patterns.scaleOf(name, l, head, bos),
      outside: (r, c) => {
        const [q, k] = [r + rows[0], c + columns[0]];
        return k > q ? "a later position: not seen" : q - k >= window ? "outside the window: not seen" : null;
      },
      hover: spec.same ? (r, c) => beside(name, r + rows[0], c + columns[0]) : undefined,
    };
  }
  /** The values of the other panels in the same cell. */
  function beside(name, q, k) {
    const i = q * spec.tokens.length + k;
    return panels.filter((one) => one !== name).map((one) => `${names[one]} ${format(patterns.square(one, shown.layer, shown.head)[i], one === "difference", 4)}`);
  }
  function valuesOf(name) {
    const values = patterns.square(name, shown.layer, shown.head);
    const n = patterns.lengthOf(name);
    const { rows, columns } = partOf(name);
    if (!part) return values;
    const width = columns[1] - columns[0] + 1;
    const cut = new Float32Array((rows[1] - rows[0] + 1) * width);
    for (let q = rows[0]; q <= rows[1]; q++) cut.set(values.subarray(q * n + columns[0], q * n + columns[1] + 1), (q - rows[0]) * width);
    return cut;
  }
  const together = (name) => drawn.filter((one) => one.grid && (one.name === name || spec.same));

  function zoomTo(next) {
    part = next;
    drawn.forEach(draw);
  }
  /** Magnify the brushed part, or the surroundings of the selected cell. */
  function magnify(rows, columns) {
    const { rows: nowRows, columns: nowColumns } = partOf(drawn[0].name);
    const selection = drawn[0].grid.selection();
    const around = (brushed, at, [first, last]) => (brushed ? brushed.map((i) => i + first) : partAround([at + first, at + first], Math.ceil((last - first + 1) / 2), longest));
    const brush = rows ? { rows, columns } : selection.brush;
    const n = Math.min(...panels.map(patterns.lengthOf));
    zoomTo({
      rows: partAround(around(brush?.rows, selection.picked ? selection.row : nowRows[1] - nowRows[0], nowRows), LEAST_SIDE, n),
      columns: partAround(around(brush?.columns, selection.picked ? selection.column : nowColumns[1] - nowColumns[0], nowColumns), LEAST_SIDE, n),
    });
  }
  function draw(panel) {
    const { name } = panel;
    const next = { spec: specOf(name), values: valuesOf(name) };
    const { rows, columns } = partOf(name);
    whole.disabled = !part;
    closer.disabled = rows[1] - rows[0] < LEAST_SIDE && columns[1] - columns[0] < LEAST_SIDE;
    said.textContent = part ? `queries ${rows[0]} to ${rows[1]}, keys ${columns[0]} to ${columns[1]}` : "drag over a part to magnify it";
    if (panel.grid) return panel.grid.update(next);
    const absolute = (r, c) => [r + partOf(name).rows[0], c + partOf(name).columns[0]];
    const on = {
      select: (r, c) => {
        together(name).forEach((one) => one !== panel && one.grid.point(r, c));
        if (buses[name].state().pinned !== absolute(r, c)[0]) buses[name].pin(absolute(r, c)[0]);
      },
      hover: (r, c) => {
        buses[name].point(r === null ? null : absolute(r, c)[0]);
        together(name).forEach((one) => one !== panel && one.grid.cross(r, c));
      },
      brush: (r, c, byKey) => longest >= ZOOM_FROM && !byKey && magnify(r, c),
      activate: () => longest >= ZOOM_FROM && magnify(),
    };
    panel.grid = linkedGrid(panel.element, next.spec, { values: next.values }, on, { most: 28, least: panels.length > 1 ? 2 : 3 });
    if (longest >= ZOOM_FROM) panel.element.style.minHeight = `${panel.element.offsetHeight}px`;
  }
  /** Lines along the row of the token that another part points at, or its column where the text shows what looks at it. */
  function follow(name) {
    const { at } = buses[name].state();
    const { rows, columns } = partOf(name);
    const none = at === null || at >= patterns.lengthOf(name);
    const cross = none ? [null, null] : shown.towards === "keys" ? [at - rows[0], null] : [null, at - columns[0]];
    drawn.filter((one) => one.name === name && one.grid).forEach((one) => one.grid.cross(...cross));
  }
  const stops = panels.map((name) => buses[name].on(() => follow(name)));
  return {
    show(state) {
      shown = state;
      drawn.forEach(draw);
    },
    destroy() {
      stops.forEach((stop) => stop());
      drawn.forEach((one) => one.grid.destroy());
    },
  };
}
