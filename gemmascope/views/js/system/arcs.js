// Attention of one query as arcs over the tokens, as an image that prints sharply. Long prompts leave out what is not looked at.

import { make } from "../page.js";
import { percent } from "../scale.js";
import { byteText, charactersOf, cut, legible } from "../tokens.js";
import { shape } from "../shape.js";

export { shape } from "../shape.js";

// Pixels of a character of 12 pixels monospaced, between tokens, and of the mark for tokens left out; characters of a token.
const CHAR = 7.3, GAP = 6, SKIP = 15, LONGEST_TOKEN = 16, BYTE_WIDTH = 8;
const LEAST = 0.02, MOST_ARCS = 12; // weights below this are no arc

/** The positions up to the query that fit into so many pixels: the query, the first, and those with the largest weights. */
export function keptPositions(weights, query, widths, room) {
  const all = Array.from({ length: query + 1 }, (_, i) => i);
  const order = new Set([query, 0, ...[...all].sort((a, b) => weights[b] - weights[a])]);
  let kept = [];
  for (const pos of order) {
    const more = [...kept, pos].sort((a, b) => a - b);
    const used = more.reduce((sum, one, i) => sum + widths[one] + (i && more[i - 1] !== one - 1 ? SKIP : 0), 0);
    if (used > room && kept.length > 2) continue;
    kept = more;
  }
  return kept;
}

/**
 * tokens: texts; query: the position that looks; weights: its attention to each position. bus: a tokenBus, or nothing.
 * Returns {element, update({tokens, query, weights})}.
 */
export function arcs(values, { bus = null, width = 400, height = 56 } = {}) {
  const element = make("div", { class: "gs-arcs" });
  let stops = [];
  function update({ tokens, query, weights }) {
    stops.forEach((stop) => stop());
    const characters = charactersOf(tokens);
    const texts = tokens.map((token, i) => cut(legible(characters[i]?.text ?? token), LONGEST_TOKEN));
    const widths = texts.map((text, i) => (characters[i] ? BYTE_WIDTH : Array.from(text).length * CHAR) + GAP);
    const room = Math.max(element.clientWidth || width, 200);
    const kept = keptPositions(Array.from(weights), query, widths, room);
    const place = new Map();
    const gaps = [];
    let x = 0;
    kept.forEach((pos, i) => {
      if (i && pos !== kept[i - 1] + 1) {
        gaps.push(x);
        x += SKIP;
      }
      place.set(pos, { left: x, width: widths[pos], middle: x + (widths[pos] - GAP) / 2 });
      x += widths[pos];
    });
    const looked = kept.filter((pos) => weights[pos] >= LEAST).sort((a, b) => weights[b] - weights[a]).slice(0, MOST_ARCS);
    const top = looked.length ? weights[looked[0]] : 1;
    const end = place.get(query).middle;
    const arc = (pos) => {
      const start = place.get(pos).middle;
      const rise = Math.min(height - 8, 14 + Math.abs(end - start) * 0.18);
      const d = start === end ? `M${start - 4},${height} a4,6 0 1 1 8,0` : `M${start},${height} C${start},${height - rise * 1.3} ${end},${height - rise * 1.3} ${end},${height}`;
      return shape("path", { d, "stroke-width": (1 + 3 * (weights[pos] / top)).toFixed(2), "stroke-opacity": (0.25 + 0.75 * (weights[pos] / top)).toFixed(2) });
    };
    const token = (pos) => {
      const { left, width } = place.get(pos);
      const box = shape("rect", { x: left - 2, y: height + 2, width: width - GAP + 4, height: 18, rx: 4, fill: "var(--gs-accent)", "fill-opacity": (0.4 * weights[pos]).toFixed(3) });
      const byte = characters[pos];
      const isRepeated = byte && kept.some((one) => one < pos && pos - one <= byte.nth); // the character stands at its first byte
      const text = shape("text", { x: left, y: height + 15, "font-weight": pos === query ? 700 : 400 }, isRepeated ? "" : texts[pos]);
      const says = byte ? `${legible(tokens[pos])}, ${byteText(byte)}` : texts[pos];
      const group = shape("g", {}, shape("title", {}, `${pos}: ${says}  ${percent(weights[pos])}`), box, text);
      if (bus) stops.push(bus.wire(group, pos, box));
      return group;
    };
    stops = [];
    const says = looked.map((pos) => `${texts[pos]} ${percent(weights[pos])}`).join(", ");
    const label = `${texts[query]}, position ${query}, looks at: ${says || "nothing above 2%"}`;
    element.replaceChildren(shape("svg", { width: Math.ceil(x), viewBox: `0 0 ${Math.ceil(x)} ${height + 24}`, style: "max-width:100%", role: "img", "aria-label": label }, ...looked.reverse().map(arc), ...gaps.map((left) => shape("text", { x: left, y: height + 15 }, "…")), ...kept.map(token)));
  }
  if (values) update(values);
  return { element, update };
}
