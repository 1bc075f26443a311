// The lens view: a grid of layers by positions with the top token in every cell, and below it one cell's tokens and the way
// of the answer through the layers.
//
// spec: a grid's, with tokens: [those that occur], top: how many each cell shows, held: how many it has, follows: the answer's
//   text or null, finals: for each column the run's own answer, an index of tokens, leads: the row where it first leads or
//   null, echo: why early layers answer with their own token, or "", prompt: the tokens, null if the columns are all of them,
//   positions: of the columns, colours: [{name, unit, scale, decimals?, array: its name in data}]
// data: the arrays of colours, ids (indices into tokens) and probs, each [layer, position, top], more_ids and more_probs, the
//   rest of what is held, and final_rank [layer, position]

import { linkedGrid } from "./linked_grid.js";
import { make, paint } from "./page.js";
import { format, percent } from "./scale.js";
import { sparkline } from "./sparkline.js";
import { bars } from "./system/bars.js";
import { card, strip } from "./system/card.js";
import { wordMenu } from "./system/menus.js";
import { tokenBus } from "./system/token_bus.js";
import { onTheme, theme } from "./theme.js";
import { legible, legibleLine } from "./tokens.js";

const LENS_STYLE = `
.gs-lens{padding:16px 24px}
.gs-cell{display:grid;gap:16px 32px;grid-template-columns:minmax(0,1fr);padding:16px 24px;border-top:1px solid var(--gs-line);background:var(--gs-pane)}
.gs-cell>div{min-width:0}
.gs-cell .gs-title{margin-bottom:8px}
.gs-cell .gs-bars{min-height:236px;align-content:start}
@container (min-width:900px){.gs-cell{grid-template-columns:minmax(0,2fr) minmax(0,2fr) minmax(0,1fr)}}
`;

/** Each cell's token, its tooltip, and whether it is that of the row below. */
export function cellsOf(spec, data) {
  const columns = spec.columns.length;
  const at = (row, column) => row * columns + column;
  const topOf = (row, column) => data.ids[at(row, column) * spec.top];
  const texts = spec.rows.map((_, r) => spec.columns.map((_, c) => spec.tokens[topOf(r, c)]));
  const hover = (row, column) => {
    const i = at(row, column);
    const lines = Array.from({ length: spec.top }, (_, k) => `${legible(spec.tokens[data.ids[i * spec.top + k]])}  ${format(data.probs[i * spec.top + k], false, 4)}`);
    if (spec.follows !== null) lines.push(`answer ${legible(spec.follows)}: ${format(data.prob[i], false, 4)}, rank ${data.rank[i]}`);
    return lines;
  };
  const faded = (row, column) => row > 0 && topOf(row, column) === topOf(row - 1, column);
  const outlined = (spec.leads ?? []).flatMap((row, column) => (row === null ? [] : [[row, column]]));
  return { texts, hover, faded, outlined };
}

/** The tokens that a cell has, [{id, probability}], the likeliest first. */
export function heldTokens(spec, data, row, column) {
  const i = row * spec.columns.length + column;
  const more = spec.held - spec.top;
  const first = Array.from({ length: spec.top }, (_, k) => ({ id: data.ids[i * spec.top + k], probability: data.probs[i * spec.top + k] }));
  const rest = Array.from({ length: more }, (_, k) => ({ id: data.more_ids[i * more + k], probability: data.more_probs[i * more + k] }));
  return [...first, ...rest];
}

/** Since when an answer leads, in words. rows: their names; ranks: by row, from the first. */
export function leadText(rows, ranks) {
  const leads = ranks.map((rank) => rank === 0);
  const first = leads.indexOf(true);
  if (first < 0) return "it never leads";
  const last = leads.lastIndexOf(false);
  if (last < first) return first === 0 ? "it leads from the start" : `it leads from ${rows[first]} on`;
  return last === leads.length - 1 ? `it leads first at ${rows[first]}, and not at the end` : `it leads first at ${rows[first]}, and from ${rows[last + 1]} on`;
}

export function lens(el, spec, data) {
  const root = card(el);
  root.setAttribute("aria-label", legibleLine(spec.title));
  const bus = tokenBus(spec.prompt ?? spec.columns.map((column) => column.label));
  const cells = cellsOf(spec, data);
  const nColumns = spec.columns.length;
  const names = spec.rows.map((row) => (/^\d+$/.test(row.label) ? `layer ${row.label}` : legibleLine(row.label)));
  const specFor = (colour) => ({ ...spec, ...cells, ...colour, title: "", name: spec.title, note: "", framed: false, measure: colour.name });
  const values = (colour) => data[colour.array];
  let colour = spec.colours[0];
  const pick = wordMenu("what the colour says", spec.colours.map(({ name }) => ({ value: name, label: `colour: ${name}`, word: name })), colour.name, (name) => {
    colour = spec.colours.find((one) => one.name === name);
    lensGrid.update({ spec: specFor(colour), values: values(colour) });
  });
  strip(root, { sentence: [make("div", { class: "gs-title" }, legibleLine(spec.title)), "Each cell: the likeliest next token; colour: the ", pick.element] });
  const host = make("div", { class: "gs-lens" });
  const tokensHead = make("div", { class: "gs-title" });
  const tokensBars = bars([], { label: "likeliest tokens" });
  const wayHead = make("div", { class: "gs-title" });
  const ways = make("div");
  const legend = make("div", { class: "gs-small gs-faint" }, "Outlined: where the run's own answer first leads. Faint: the same token as in the row below.");
  const cell = make("div", { class: "gs-cell" },
    make("div", {}, tokensHead, tokensBars.element), make("div", {}, wayHead, ways),
    make("div", { class: "gs-small" }, ...[spec.echo, spec.note].filter(Boolean).map((text) => make("p", { style: "margin:0 0 8px" }, text)), legend));
  root.append(make("style", {}, LENS_STYLE), host, cell);

  let at = { row: spec.rows.length - 1, column: nColumns - 1 };
  const columnName = (column) => `${legible(spec.columns[column].label)} (${spec.positions?.[column] ?? column})`;
  const listed = (array, column) => spec.rows.map((_, row) => array[row * nColumns + column]);
  /** The ways through the layers that are drawn: the run's own answer, and the one that is followed if it is another. */
  function waysAt(column) {
    const own = spec.tokens[spec.finals[column]];
    const all = [{ token: own, ranks: listed(data.final_rank, column) }];
    if (spec.follows !== null && spec.follows !== own) all.push({ token: spec.follows, ranks: listed(data.rank, column) });
    return all;
  }
  function showCell() {
    const { row, column } = at;
    tokensHead.textContent = `${names[row][0].toUpperCase()}${names[row].slice(1)} after ${columnName(column)}`;
    const held = heldTokens(spec, data, row, column);
    const rows = held.map(({ id, probability }) => ({ name: legible(spec.tokens[id]), value: probability, token: true, text: probability === 0 ? "0" : percent(probability) }));
    tokensBars.update(rows);
    wayHead.textContent = `Rank of the answer after ${columnName(column)}`;
    ways.replaceChildren(...waysAt(column).map(({ token, ranks }) => {
      const line = sparkline({ values: ranks, names, at: row, label: `rank of ${legible(token)}` });
      return make("div", { style: "margin-bottom:16px" }, make("div", { class: "gs-small" }, make("span", { class: "gs-token" }, legible(token)), `: ${leadText(names, ranks)}`), line);
    }));
  }
  const columnOf = (pos) => (pos === null ? null : (spec.positions ?? spec.columns.map((_, i) => i)).indexOf(pos));
  const posOf = (column) => spec.positions?.[column] ?? column;
  const lensGrid = linkedGrid(host, specFor(colour), { values: values(colour) }, {
    hover: (row, column) => bus.point(column === null ? null : posOf(column)),
    select: (row, column) => {
      at = { row, column };
      if (bus.state().pinned !== posOf(column)) bus.pin(posOf(column));
      showCell();
    },
  });
  const stopBus = bus.on(({ at: pointed, pinned }) => {
    const column = columnOf(pointed);
    lensGrid.cross(null, column === -1 ? null : column);
    const kept = columnOf(pinned);
    if (kept === null || kept < 0 || kept === at.column) return;
    at = { ...at, column: kept };
    showCell();
  });
  const painted = () => paint(root, theme());
  const stopTheme = onTheme(painted);
  painted();
  showCell();
  lensGrid.reveal(at.column);
  el.dataset.gemmascopeReady = "1";
  const destroy = () => {
    stopTheme();
    stopBus();
    bus.stop();
    lensGrid.destroy();
  };
  return { ...lensGrid, destroy };
}
