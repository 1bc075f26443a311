// The wall of an attention view: a small picture of every head, layers upwards or the heads with the highest score first.

import { make, sized } from "../page.js";
import { colourAt, css, format, fractionAt } from "../scale.js";
import { downsample, rankedHeads } from "./patterns.js";

const LABEL = 40, HEADING = 20, CAPTION = 20; // pixels for the names of layers, of heads, and below a ranked picture
const SMALLEST = 10, LARGEST_PICTURE = 72, HIGHEST_WALL = 480, TILE_PITCH = 76, FRAME = 2; // a ranked picture with its score; the outline of a picture

export const WALL_STYLE = `
.gs-wall{position:relative;overflow:auto}
.gs-stage{position:relative}
.gs-stage>*{position:absolute}
.gs-stage>span{font-size:12px;line-height:16px;color:var(--gs-faint);white-space:nowrap}
.gs-stage>span[role=rowheader]{text-align:right}
.gs .gs-wall button.gs-thumb{display:block;min-height:0;padding:0;border:0;border-radius:2px;background:transparent}
.gs .gs-wall button.gs-thumb:hover{outline:2px solid var(--gs-accent);outline-offset:0}
.gs .gs-wall button.gs-thumb[aria-pressed=true]{outline:2px solid var(--gs-ink);outline-offset:0}
.gs .gs-wall button.gs-thumb:focus-visible{outline:2px solid var(--gs-accent);outline-offset:1px}
.gs-legend{display:flex;gap:8px;align-items:center;font-size:12px;line-height:16px;color:var(--gs-faint);margin-top:8px}
.gs-legend i{width:96px;height:8px;border-radius:4px;border:1px solid var(--gs-line);flex:none}
`;

/**
 * Where the pictures are, for so many layers and heads in a width. ranked: a list of [layer, head], or null for layers upwards.
 * Returns {size, width, height, room and shown: the width and height that are seen, columns, at(layer, head): [x, y], order: [[layer, head]]}.
 */
export function wallLayout(nLayers, nHeads, width, ranked) {
  const least = Math.max(28, Math.floor(HIGHEST_WALL / nLayers) - 4);
  const each = Math.floor((width - LABEL - FRAME) / nHeads);
  const gap = each >= 40 ? 4 : 2;
  const size = Math.max(SMALLEST, Math.min(LARGEST_PICTURE, least, each - gap));
  const pitch = size + gap;
  const shown = HEADING + nLayers * pitch;
  const full = LABEL + nHeads * pitch + FRAME;
  const room = Math.max(full, Math.min(width, 4 * TILE_PITCH)); // as wide in either order, so that nothing beside it moves
  if (!ranked) {
    const order = Array.from({ length: nLayers * nHeads }, (_, i) => [nLayers - 1 - Math.floor(i / nHeads), i % nHeads]);
    const at = (layer, head) => [LABEL + head * pitch, HEADING + (nLayers - 1 - layer) * pitch];
    return { size, room, width: full, height: shown, shown, columns: nHeads, at, order };
  }
  const columns = Math.max(1, Math.floor(room / TILE_PITCH));
  const tile = Math.max(44, Math.min(56, size));
  const places = new Map(ranked.map(([layer, head], i) => [layer * nHeads + head, [FRAME + (i % columns) * TILE_PITCH, FRAME + Math.floor(i / columns) * (tile + CAPTION + 4)]]));
  const height = FRAME + Math.ceil(ranked.length / columns) * (tile + CAPTION + 4);
  return { size: tile, room, width: columns * TILE_PITCH, height, shown, columns, at: (layer, head) => places.get(layer * nHeads + head), order: ranked };
}

/** The head that an arrow key leads to from the i-th of an order in so many columns; null for other keys. */
export function headAfterKey(i, key, columns, n) {
  const to = { ArrowRight: i + 1, ArrowLeft: i - 1, ArrowDown: i + columns, ArrowUp: i - columns, Home: i - (i % columns), End: i - (i % columns) + columns - 1 }[key];
  return to === undefined ? null : to < 0 || to >= n ? i : to;
}

/**
 * The wall: {element, update({name, bos, sort, layer, head, width}, colours)}. name: the panel that is drawn. sort: null for
 * layers upwards, or {name, score(layer, head), text(score), short(score)}. choose(layer, head): called with indices.
 */
export function wall(spec, patterns, choose) {
  const [nLayers, nHeads] = [spec.layers.length, spec.heads.length];
  const canvas = make("canvas", { "aria-hidden": "true" });
  const stage = make("div", { class: "gs-stage", role: "toolbar", "aria-label": "heads" }, canvas);
  const scroller = make("div", { class: "gs-wall" }, stage);
  const bar = make("i", { "aria-hidden": "true" });
  const [low, high] = [make("span"), make("span")];
  const legend = make("div", { class: "gs-legend" }, low, bar, high, make("span", {}, "one scale for all heads"));
  const element = make("div", {}, scroller, legend);
  const buttons = spec.layers.map((layer, l) => spec.heads.map((head, h) =>
    make("button", { type: "button", class: "gs-thumb", onclick: () => choose(l, h), "data-lm-suppress-shortcuts": "true", "data-head": `${layer.index}.${head}` })));
  let layout = null;
  let placed = "", painted = "";
  let pressed = null;

  stage.addEventListener("keydown", (event) => {
    const i = layout.order.findIndex(([layer, head]) => buttons[layer][head] === document.activeElement);
    const to = i < 0 ? null : headAfterKey(i, event.key, layout.columns, layout.order.length);
    if (to === null) return;
    event.preventDefault();
    event.stopPropagation();
    const [layer, head] = layout.order[to];
    buttons[layer][head].focus();
    choose(layer, head);
  });

  const label = (text, x, y, width, role) => {
    const span = make("span", role ? { role } : {}, text);
    Object.assign(span.style, { left: `${x}px`, top: `${y}px`, width: `${width}px`, textAlign: role ? "right" : "center" });
    return span;
  };
  function place(sort) {
    const { size } = layout;
    Object.assign(scroller.style, { width: `${layout.room}px`, maxWidth: "100%", height: `${layout.shown}px` });
    Object.assign(stage.style, { width: `${layout.width}px`, height: `${layout.height}px` });
    const parts = [canvas];
    for (const [layer, head] of layout.order) {
      const [x, y] = layout.at(layer, head);
      const name = `layer ${spec.layers[layer].index}, head ${spec.heads[head]}`;
      const button = buttons[layer][head];
      Object.assign(button.style, { left: `${x}px`, top: `${y}px`, width: `${size}px`, height: `${size}px` });
      button.setAttribute("aria-label", sort ? `${name}, ${sort.name} ${sort.text(sort.score(layer, head))}` : name);
      parts.push(button);
      if (sort) parts.push(label(`${spec.layers[layer].index}.${spec.heads[head]} ${sort.short(sort.score(layer, head))}`, x - 8, y + size + 2, size + 16));
    }
    if (!sort) {
      const every = Math.ceil(18 / size);
      spec.heads.forEach((head, h) => h % every || parts.push(label(String(head), layout.at(0, h)[0] - 4, 0, size + 8)));
      spec.layers.forEach((layer, l) => {
        const [, y] = layout.at(l, 0);
        if (l % every === 0) parts.push(label(`${layer.index}${layer.kind === "global" ? " ◆" : ""}`, 0, y + size / 2 - 8, LABEL - 8, "rowheader"));
      });
    }
    stage.replaceChildren(...parts);
  }
  function paintPictures(name, scale, colours) {
    const ctx = sized(canvas, layout.width, layout.height);
    ctx.imageSmoothingEnabled = false;
    const steps = Array.from({ length: 256 }, (_, i) => colourAt(i / 255, scale, colours.dark));
    const dot = document.createElement("canvas");
    for (const [layer, head] of layout.order) {
      const n = patterns.lengthOf(name);
      const { size, values } = downsample(patterns.visible(name, layer, head), n, patterns.windowOf(name, layer), layout.size);
      const picture = new ImageData(size, size);
      for (let q = 0; q < size; q++) for (let k = 0; k <= q; k++) {
        picture.data.set(steps[Math.round(255 * fractionAt(values[q * size + k], scale))], 4 * (q * size + k));
        picture.data[4 * (q * size + k) + 3] = 255;
      }
      [dot.width, dot.height] = [size, size];
      dot.getContext("2d").putImageData(picture, 0, 0);
      const [x, y] = layout.at(layer, head);
      ctx.drawImage(dot, x, y, layout.size, layout.size);
      ctx.strokeStyle = colours.line;
      ctx.strokeRect(x + 0.5, y + 0.5, layout.size - 1, layout.size - 1);
    }
  }
  function drawLegend(name, scale, colours) {
    const stops = Array.from({ length: 9 }, (_, i) => css(colourAt(i / 8, scale, colours.dark)));
    bar.style.background = `linear-gradient(to right,${stops.join(",")})`;
    low.textContent = format(scale.low);
    high.textContent = format(scale.high, scale.low < 0);
  }
  return {
    element,
    update({ name, bos, sort, layer, head, width }, colours) {
      const scale = patterns.scaleOfAll(name, bos);
      const order = sort && rankedHeads(nLayers, nHeads, sort.score);
      layout = wallLayout(nLayers, nHeads, width, order);
      const where = [layout.size, layout.width, sort?.name].join();
      if (where !== placed) place(sort);
      const look = [where, name, bos, colours.dark, window.devicePixelRatio].join();
      if (look !== painted) paintPictures(name, scale, colours);
      if (look !== painted) drawLegend(name, scale, colours);
      [placed, painted] = [where, look];
      if (!pressed) buttons.flat().forEach((button) => Object.assign(button, { tabIndex: -1 }).setAttribute("aria-pressed", "false"));
      if (pressed) Object.assign(pressed, { tabIndex: -1 }).setAttribute("aria-pressed", "false");
      pressed = buttons[layer][head];
      Object.assign(pressed, { tabIndex: 0 }).setAttribute("aria-pressed", "true");
      return layout;
    },
  };
}
