// The two prompts as the heads of the grid's columns: equal tokens once, differing ones one above the other. A click on a
// token opens a small form that writes another in its place.

import { button } from "../live.js";
import { make } from "../page.js";
import { labelOf } from "../matrix.js";
import { byteText, charactersOf, legible } from "../tokens.js";

// Pixels: a character of a token, the height of a line, columns too narrow for any text that is not upright and wide enough for
// the start of every text, the room of an upright token, and between the middles of two.
const HEAD_CHAR = 7.3, HEAD_LINE = 20, NARROW = 24, WIDE = 44, UPRIGHT = 76, APART = 15;
const SIDES = ["clean", "corrupt"];

/**
 * The columns with the characters whose bytes their tokens are: each token has a character, {text, nth, of, columns: over how
 * many columns}, or null.
 */
export function withCharacters(columns) {
  const made = columns.map((column) => ({ ...column }));
  for (const side of SIDES) {
    const places = columns.map((_, c) => c).filter((c) => columns[c][side]);
    charactersOf(places.map((c) => columns[c][side].text)).forEach((found, i) => {
      const over = found && places[i - found.nth + found.of - 1] - places[i - found.nth] + 1;
      made[places[i]][side] = { ...columns[places[i]][side], character: found && { ...found, columns: over } };
    });
  }
  return made;
}

/** The words of a token, with the character that it is a byte of. */
export function tokenText(token) {
  if (!token) return "nothing";
  return legible(token.text) + (token.character ? `, ${byteText(token.character)}` : "");
}

/** The words of a column for screen readers. */
export function columnText({ clean, corrupt, same }) {
  return same ? tokenText(clean) : `differs: clean ${tokenText(clean)}, corrupted ${tokenText(corrupt)}`;
}

/** Whether a column has one line: bytes of two characters have two, even where both begin alike. */
const isOneLine = ({ clean, corrupt, same }) => same && clean?.character?.text === corrupt?.character?.text;

/** What is drawn of a token: a character at the first of its bytes. */
const drawnText = (token) => (!token ? "–" : !token.character ? legible(token.text) : token.character.nth ? "" : legible(token.character.text));

/** Columns that differ go before others, and those before the bytes of a character that stands at its first. */
const weightOf = (column) => (!column ? 0 : !column.same ? 2 : drawnText(column.clean) ? 1 : 0);

/**
 * Which of the columns have a head, so that upright heads stay apart: those that weigh most first, then from the left, as far
 * as there is room. cw: pixels of a column. A set of indices.
 */
export function uprightColumns(weights, cw) {
  const shown = [];
  const order = weights.map((_, c) => c).sort((a, b) => weights[b] - weights[a] || a - b);
  for (const c of order) if (shown.every((other) => Math.abs(other - c) * cw >= APART)) shown.push(c);
  return new Set(shown);
}

/**
 * bus: a tokenBus. swap(position, {clean?, corrupt?}): write other tokens. Returns {element, draw({layout, tokens, labels, whole}),
 * chips(tokens): the prompts as a line of chips, for grids without positions}.
 */
export function columnHeads({ bus, swap }) {
  const element = make("div", { class: "gs-heads", role: "list", "aria-label": "the two prompts, token by token" });
  const form = make("form", { class: "gs-swap", hidden: true, onsubmit: submit, onkeydown: (event) => event.key === "Escape" && (event.stopPropagation(), close()) });
  let stops = [];
  let opened = null; // {position, fields, opener}

  function close() {
    const back = opened?.opener;
    opened = null;
    form.hidden = true;
    back?.focus({ preventScroll: true });
  }
  function open(column, opener) {
    const { clean, corrupt, same } = column;
    const position = (clean ?? corrupt).pos;
    const field = (name, label, token) => {
      const input = make("input", { type: "text", name, size: "10", value: token.text, "aria-label": `${label}, position ${position}`, autocomplete: "off", spellcheck: "false" });
      return make("label", {}, make("small", {}, label), input);
    };
    const fields = same ? [field("both", "token", clean)] : [field("clean", "clean", clean), field("corrupt", "corrupted", corrupt)];
    form.replaceChildren(...fields, make("button", { type: "submit" }, "Swap"), button("Cancel", close));
    opened = { position, column, opener };
    const host = form.offsetParent ?? form.parentElement;
    form.hidden = false;
    const [box, frame] = [opener.getBoundingClientRect(), host.getBoundingClientRect()];
    form.style.left = `${Math.max(0, Math.min(box.left - frame.left, frame.width - 300))}px`;
    form.style.top = `${box.bottom - frame.top + 4}px`;
    form.querySelector("input").select();
  }
  function submit(event) {
    event.preventDefault();
    const { position, column } = opened;
    const typed = (name) => form.elements.namedItem(name)?.value;
    const both = typed("both");
    const changed = Object.entries({ clean: both ?? typed("clean"), corrupt: both ?? typed("corrupt") }).filter(([side, text]) => text !== undefined && text !== column[side].text);
    close();
    if (changed.length) swap(position, Object.fromEntries(changed));
  }

  /** The button of a token, which lights with it everywhere. */
  function tokenButton(column, more = {}) {
    const { clean, corrupt, same } = column;
    const token = clean ?? corrupt;
    const position = token.pos;
    const line = (one, side) => {
      const { nth, columns } = one?.character ?? {};
      const style = nth === 0 ? `--gs-columns:${columns}` : null;
      const drawn = make("span", { class: `gs-chip${one?.special ? " gs-special" : ""}${same ? "" : ` gs-of-${side}`}${one?.character ? " gs-byte" : ""}`, dir: "auto", style }, drawnText(one));
      if (!drawn.textContent) drawn.textContent = "\u00a0"; // as high as the others; make() would spell it out
      return drawn;
    };
    const lines = isOneLine(column) ? [line(clean, "both")] : [line(clean, "clean"), line(corrupt, "corrupt")];
    const canSwap = clean && corrupt && !token.special;
    const head = make("button", { type: "button", class: `gs-tok${same ? "" : " gs-differs"}`, title: `position ${position}: ${columnText(column)}${canSwap ? "\nclick to swap" : ""}`, "aria-disabled": String(!canSwap), onclick: () => canSwap && open(column, head), ...more }, ...lines);
    head.addEventListener("pointerenter", () => bus.point(position));
    head.addEventListener("pointerleave", () => bus.point(null));
    stops.push(bus.on(({ at }) => head.classList.toggle("gs-lit", at === position)));
    return make("span", { role: "listitem", class: `gs-pair${same ? "" : " gs-differs"}`, "aria-label": `${position}: ${columnText(column)}` }, head);
  }

  return {
    element,
    form,
    draw({ layout, tokens, labels, whole, unfold }) {
      stops.forEach((stop) => stop());
      stops = [];
      close();
      const texts = tokens ? tokens.flatMap((one) => [one.clean, one.corrupt]).filter(Boolean).map(drawnText) : labels.map(labelOf);
      const widthOf = (text) => Array.from(text).length * HEAD_CHAR;
      const longest = Math.max(...texts.map(widthOf)) + 8;
      const widths = labels.map((label, c) => {
        const column = tokens?.[whole(c)];
        if (!column || label.folded) return label.folded ? 0 : widthOf(labelOf(label));
        const of = (token) => (token ? widthOf(drawnText(token)) / (token.character?.columns ?? 1) : 0);
        return Math.max(of(column.clean), of(column.corrupt)) + (column.same ? 0 : 4);
      });
      // A text may be wider than its column where it does not reach the text beside it.
      const isFree = layout.cw >= NARROW && widths.every((width, c) => width + (widths[c + 1] ?? 0) + 2 <= 2 * layout.cw);
      const isUpright = !isFree && layout.cw < Math.max(NARROW, Math.min(longest, WIDE));
      const stacked = tokens?.some((one) => !one.same);
      const along = (text) => Math.min(UPRIGHT, widthOf(text) + 16);
      const tall = labels.map((label, c) => {
        const column = tokens?.[whole(c)];
        if (!column || label.folded) return label.folded ? 0 : along(labelOf(label));
        return along(drawnText(column.clean)) + (isOneLine(column) ? 0 : along(drawnText(column.corrupt)));
      });
      const height = isUpright ? Math.max(...tall) + 8 : HEAD_LINE * (stacked ? 2 : 1) + 12;
      element.classList.toggle("gs-upright", isUpright);
      element.classList.toggle("gs-free", isFree);
      Object.assign(element.style, { height: `${height}px`, width: `${layout.width}px` });
      element.style.setProperty("--gs-column", `${layout.cw}px`);
      const isShown = isUpright ? uprightColumns(labels.map((_, c) => weightOf(tokens?.[whole(c)])), layout.cw) : null;
      const placed = (node, c, wide) => {
        Object.assign(node.style, { left: `${layout.left + (c + 0.5) * layout.cw - wide / 2}px`, width: `${wide}px` });
        return node;
      };
      const nodes = labels.map((label, c) => {
        const column = tokens?.[whole(c)];
        if (label.folded) {
          const node = button(`… ${label.folded} alike`, unfold, { class: "gs-folded", title: "show these columns" });
          const box = { left: layout.left + c * layout.cw, width: layout.cw - 1, top: height + layout.top, height: layout.rows * layout.ch - 1 };
          for (const [side, pixels] of Object.entries(box)) node.style[side] = `${pixels}px`;
          return node;
        }
        if (isShown && !isShown.has(c)) return column && !column.same ? placed(make("span", { class: "gs-too-close", title: columnText(column) }), c, layout.cw) : null;
        const node = column ? tokenButton(column) : make("span", { role: "listitem", class: "gs-pair" }, make("span", { class: "gs-ph" }, labelOf(label)));
        return placed(node, c, isUpright ? Math.max(layout.cw, APART) : layout.cw);
      });
      element.replaceChildren(...nodes.filter(Boolean));
    },
    /** The prompts as a line of chips. */
    chips: (tokens) => tokens.map((column) => tokenButton(column)),
  };
}
