// A prompt as text whose tokens are tinted by a number, with arcs from one token to those that it looks at.

import { CHARACTER_STYLE, joinedChips } from "./characters.js";
import { make } from "./page.js";
import { colour, css, inkOn } from "./scale.js";
import { shape } from "./shape.js";
import { legible } from "./tokens.js";

const LEAST_TINT = 0.005, LEAST_ARC = 0.02, MOST_SHOWN_ARCS = 12; // shares of a scale
const LONG = 40; // a text of more tokens is set close, with flat arcs

export const TEXT_STYLE = `${CHARACTER_STYLE}
.gs-flow{position:relative;padding-top:28px;max-height:264px;overflow:auto;line-height:44px}
.gs-flow.gs-close{line-height:28px;padding-top:16px}
.gs-flow>svg{position:absolute;left:0;top:0;pointer-events:none;overflow:visible}
.gs-flow path{fill:none;stroke:var(--gs-accent)}
.gs .gs-flow button.gs-chip{position:relative;border-color:transparent;padding:1px 3px;margin:0 1px;background:transparent;vertical-align:baseline}
.gs .gs-flow button.gs-special{border-width:1px;border-style:dotted;border-color:var(--gs-line)}
.gs .gs-flow button.gs-unseen{opacity:.4}
.gs .gs-flow button.gs-edge{border-left:2px solid var(--gs-accent)}
`;

/**
 * tokens: texts; special: which are control tokens; names: what is drawn for each, if not the token. bus: a tokenBus, by the
 * places in `positions` (all, in order, if there are none). close: with little room for arcs. Returns {element, tint({values, scale, at, unseen, edge, first}, colours)}:
 * values[i] by scale, arcs from token `at` to those with a value if arcs is true, unseen(i): faint, edge: the first token of
 * a window, or null; first: the token that a long text scrolls to in the beginning, `at` by default.
 */
export function tintedText(tokens, { bus, special = [], names = null, hints = null, positions = null, close = tokens.length > LONG, label = "prompt" } = {}) {
  const place = (i) => (positions ? positions[i] : i);
  const chips = tokens.map((token, i) => make("button", {
    type: "button", class: special[i] ? "gs-chip gs-special" : "gs-chip", "data-lm-suppress-shortcuts": "true",
    "data-pos": String(place(i)), title: hints ? hints[i] : `position ${place(i)}`, onfocus: () => bus?.point(place(i)), onblur: () => bus?.point(null),
  }, names ? names[i] : legible(token)));
  let scrolled = false;
  const picture = shape("svg", { "aria-hidden": "true" });
  const element = make("div", { class: close ? "gs-flow gs-close" : "gs-flow", role: "toolbar", "aria-label": label }, picture, ...joinedChips(chips, tokens));
  const tabTo = (chip) => chips.forEach((one) => (one.tabIndex = one === chip ? 0 : -1));
  tabTo(chips.at(-1));
  chips.forEach((chip, i) => bus?.wire(chip, place(i)));
  bus?.on(({ pinned }) => chips.forEach((chip, i) => chip.setAttribute("aria-pressed", String(pinned === place(i)))));
  element.addEventListener("keydown", (event) => {
    const i = chips.indexOf(document.activeElement);
    const to = { ArrowRight: i + 1, ArrowDown: i + 1, ArrowLeft: i - 1, ArrowUp: i - 1, Home: 0, End: chips.length - 1 }[event.key];
    if (to === undefined || i < 0) return;
    event.preventDefault();
    event.stopPropagation();
    const chip = chips[Math.min(chips.length - 1, Math.max(0, to))];
    chip.focus();
    tabTo(chip);
  });

  function arcsFrom(at, values, scale) {
    const middle = (chip) => [chip.offsetLeft + chip.offsetWidth / 2, chip.offsetTop];
    const sizes = Array.from(values, (value) => Math.abs(value) / Math.max(Math.abs(scale.low), Math.abs(scale.high)));
    // Between close lines arcs stay in their own, where they cross no other text.
    const drawable = (i) => i !== at && sizes[i] >= LEAST_ARC && (!close || chips[i].offsetTop === chips[at].offsetTop);
    const looked = chips.map((_, i) => i).filter(drawable).sort((a, b) => sizes[b] - sizes[a]).slice(0, MOST_SHOWN_ARCS);
    const [endX, endY] = middle(chips[at]);
    const highest = close ? 14 : 34;
    return looked.reverse().map((i) => {
      const [x, y] = middle(chips[i]);
      const rise = y === endY ? Math.min(highest, 8 + Math.abs(endX - x) * 0.1) : highest;
      const ink = scale.low < 0 ? { style: `stroke:var(--gs-${values[i] < 0 ? "negative" : "positive"})` } : {};
      return shape("path", { d: `M${x},${y} C${x},${y - rise} ${endX},${endY - rise} ${endX},${endY}`, "stroke-width": (1 + 2 * sizes[i]).toFixed(2), "stroke-opacity": (0.2 + 0.8 * Math.min(1, sizes[i])).toFixed(2), ...ink });
    });
  }
  /** Scroll a long text to the token that it shows first; from then on the reader scrolls. */
  function scrollTo(at) {
    if (at === null || scrolled || !element.clientHeight) return;
    scrolled = true;
    const { offsetTop: top, offsetHeight: high } = chips[at];
    if (top < element.scrollTop || top + high > element.scrollTop + element.clientHeight) element.scrollTop = top + high + 8 - element.clientHeight;
  }
  return {
    element,
    tint({ values = null, scale, at = null, arcs = false, unseen = () => false, edge = null, first = at }, colours) {
      chips.forEach((chip, i) => {
        const rgb = values && Math.abs(values[i]) > LEAST_TINT * scale.high ? colour(values[i], scale, colours.dark) : null;
        chip.style.background = rgb ? css(rgb) : "";
        chip.style.color = rgb ? inkOn(rgb) : "";
        chip.style.boxShadow = i === at ? "0 0 0 2px var(--gs-ink)" : "";
        chip.classList.toggle("gs-unseen", unseen(i));
        chip.classList.toggle("gs-edge", i === edge);
      });
      scrollTo(first);
      const drawn = arcs && at !== null && values ? arcsFrom(at, values, scale) : [];
      picture.setAttribute("width", element.clientWidth);
      picture.setAttribute("height", element.scrollHeight);
      picture.replaceChildren(...drawn);
    },
  };
}
