// The attention view: a wall of all heads, the text whose tokens show where one head looks, and the head's whole pattern; for
// two prompts both patterns and their difference.
//
// spec: {tokens, special, layers: [{index, kind, window}], heads: [numbers], layer, head: indices into those lists, bos,
//   kinds: {first, second?: [{name, meaning, unit, bound}]}: what heads are sorted by,
//   other?: {tokens, special}, same?: whether both prompts have as many tokens, names?: what is shown instead of two prompts,
//   each in colours of its own range, differ?: for each position its tokens and how many more there are, else null}
// first, second: the arrays of each panel, as layersOf returns them.

import { matrices } from "./attention/matrices.js";
import { patternsOf, windowSentence } from "./attention/patterns.js";
import { placeText, strongestPlaces, tokenText } from "./attention/words.js";
import { wall, WALL_STYLE } from "./attention/wall.js";
import { make, paint, redrawOnResize } from "./page.js";
import { format, percent } from "./scale.js";
import { bars } from "./system/bars.js";
import { card, strip } from "./system/card.js";
import { wordMenu } from "./system/menus.js";
import { tokenBus } from "./system/token_bus.js";
import { onTheme, theme } from "./theme.js";
import { TEXT_STYLE, tintedText } from "./tinted_text.js";
import { legible, legibleLine } from "./tokens.js";

const WIDE = 900; // pixels of a card from which parts stand side by side
const BESIDE = 32; // the most tokens of a pattern that stands beside the wall
const NAMED_KEYS = 4; // keys that the line below the text names

const ATTENTION_STYLE = `
.gs-att{display:grid;grid-template-columns:minmax(0,1fr)}
.gs-att>div{min-width:0;padding:16px 24px}
.gs-att>.gs-does{background:var(--gs-pane);border-top:1px solid var(--gs-line)}
.gs-att>.gs-patterns{border-top:1px solid var(--gs-line)}
.gs-att .gs-window{min-height:48px;color:var(--gs-faint);margin-top:4px}
.gs-att .gs-looks{height:20px;margin-top:8px;white-space:nowrap;overflow:hidden;text-overflow:ellipsis}
.gs-does .gs-bars{margin-top:8px;max-width:640px}
@container (min-width:900px){
.gs-att{grid-template-columns:auto minmax(0,1fr);grid-template-areas:"w t" "w d" "p p"}
.gs-att.gs-beside{grid-template-rows:auto auto 1fr;grid-template-areas:"w t" "w p" "d p"}
.gs-att>.gs-heads{grid-area:w;border-right:1px solid var(--gs-line)}
.gs-att>.gs-text-pane{grid-area:t}
.gs-att>.gs-patterns{grid-area:p}
.gs-att>.gs-does{grid-area:d}
.gs-att.gs-beside>.gs-does{border-right:1px solid var(--gs-line)}
}
`;

/** The tokens of a panel as labels for its rows and columns, with both tokens of a position where they differ. */
export function tokenLabels(spec, names, prompt, name) {
  return prompt.tokens.map((token, i) => {
    const twin = name === "difference" ? spec.other.tokens[i] : token;
    const [all, more] = spec.differ?.[i] ?? [twin === token ? [token] : [token, twin], 0];
    const hint = `${i}: ${all.map(legible).join(spec.differ ? ", " : " ≠ ")}${more ? ` and ${more} more` : ""}`;
    return { label: legible(token) + (all.length > 1 ? " ≠" : ""), special: prompt.special[i], hint };
  });
}

/** chosen(layer, head): called with their numbers when another head becomes large. */
export function attention(el, spec, first, second, chosen = () => {}) {
  const patterns = patternsOf(spec, first, second);
  const { names, prompts } = patterns;
  const labels = Object.fromEntries(patterns.panels.map((name) => [name, tokenLabels(spec, names, prompts[name], name)]));
  const state = { layer: spec.layer, head: spec.head, bos: spec.bos, show: "first", sort: "", towards: "keys" };
  const root = card(el);
  root.setAttribute("aria-label", legibleLine(spec.title));
  const shared = tokenBus(...(spec.same ? [spec.tokens, spec.other.tokens] : [spec.tokens]));
  // Positions of prompts of other lengths are not the same, so each has its own bus.
  const buses = { first: shared, difference: shared, second: spec.same || !second ? shared : tokenBus(spec.other.tokens) };

  const kinds = spec.kinds.first.map(({ name }, i) => ({ value: String(i), label: name, word: name }));
  const sorts = [{ value: "", label: "layer and head" }, ...kinds, ...(patterns.panels.includes("difference") ? [{ value: "moved", label: "change between the prompts" }] : [])];
  const sort = wordMenu("what heads are sorted by", sorts, "", (value) => choose({ sort: value }));
  const bos = wordMenu("whether colours take in the first position", [{ value: "", label: "without the first position", word: "leave out the first position" }, { value: "1", label: "with the first position", word: "take in the first position" }], state.bos ? "1" : "", (value) => choose({ bos: Boolean(value) }));
  const towards = wordMenu("what the text shows", [{ value: "keys", label: "what it looks at" }, { value: "queries", label: "what looks at it" }], "keys", (value) => choose({ towards: value }));
  const show = second && wordMenu("which panel the wall and the text show", patterns.panels.map((name) => ({ value: name, label: names[name] })), "first", (value) => choose({ show: value }));
  strip(root, { sentence: [make("div", { class: "gs-title" }, legibleLine(spec.title)), ...(show ? ["Of ", show.element, ": heads"] : ["Heads"]), " by ", sort.element, "; colours ", bos.element, "; a token shows ", towards.element] });
  const headsPane = make("div", { class: "gs-heads" });
  const textPane = make("div", { class: "gs-text-pane" });
  const patternsPane = make("div", { class: "gs-patterns" });
  const doesPane = make("div", { class: "gs-does" });
  const body = make("div", { class: "gs-att" }, make("style", {}, WALL_STYLE + TEXT_STYLE + ATTENTION_STYLE), headsPane, textPane, patternsPane, doesPane);
  root.append(body);
  const heads = wall(spec, patterns, (layer, head) => choose({ layer, head }));
  headsPane.append(heads.element);
  if (spec.note) headsPane.append(make("div", { class: "gs-note", style: "margin-top:8px" }, spec.note));
  const heading = make("div", { class: "gs-head" });
  const windowLine = make("div", { class: "gs-window gs-small", "aria-live": "polite" });
  const texts = Object.fromEntries(patterns.panels.map((name) =>
    [name, tintedText(prompts[name].tokens, { bus: buses[name], special: prompts[name].special, names: labels[name].map((label) => label.label), hints: labels[name].map((label) => label.hint), label: `tokens of the ${names[name]}` })]));
  const looks = make("div", { class: "gs-looks gs-small", "aria-live": "polite" });
  textPane.append(heading, windowLine, ...patterns.panels.map((name) => texts[name].element), looks);
  const does = bars([], { label: "what this head does" });
  const doesHead = make("div", { class: "gs-title" });
  doesPane.append(doesHead, does.element);
  const panels = matrices(patternsPane, spec, patterns, labels, { buses });
  let colours = theme();

  function choose(change) {
    Object.assign(state, change);
    render();
  }
  function sorting() {
    if (state.sort === "") return null;
    if (state.sort === "moved") return { name: "change", score: patterns.moved, text: percent, short: shortScore };
    const kind = Number(state.sort);
    const name = patterns.panels.includes(state.show) && state.show === "second" && spec.kinds.second?.[kind] ? "second" : "first";
    const { unit, bound, name: called } = spec.kinds[name][kind];
    return { name: called, score: (layer, head) => patterns.score(name, kind, layer, head), text: scoreText(unit), short: bound === 1 ? shortScore : (value) => format(value, false, 2) };
  }
  function drawText() {
    const { layer, head, show: name, towards: direction } = state;
    const n = patterns.lengthOf(name);
    const { at, pinned } = buses[name].state();
    const query = [at, pinned, n - 1].find((pos) => pos !== null && pos >= 0 && pos < n);
    const pattern = patterns.square(name, layer, head);
    const window = patterns.windowOf(name, layer);
    const out = direction === "keys";
    const value = (i) => (out ? pattern[query * n + i] : pattern[i * n + query]);
    const unseen = out ? (i) => i > query || query - i >= window : (i) => i < query || i - query >= window;
    const values = Array.from({ length: n }, (_, i) => (unseen(i) ? 0 : value(i)));
    const edge = out && query - window + 1 > 0 ? query - window + 1 : null;
    texts[name].tint({ values, scale: patterns.scaleOf(name, layer, head, state.bos), at: query, arcs: true, unseen, edge }, colours);
    const tokens = prompts[name].tokens;
    const called = labels[name].map(({ label }) => label);
    const seen = strongestPlaces({ tokens, names: called, values, unseen, most: NAMED_KEYS, largest: !out });
    const signed = name === "difference";
    const said = seen.map((place) => `${placeText(place)} ${!out && place.first < place.last ? "at most " : ""}${signed ? format(place.value, true, 3) : percent(place.value)}`).join(", ");
    const verb = out ? (signed ? "looks more or less at" : "looks at") : signed ? "is looked at more or less by" : "is looked at by";
    looks.textContent = `${tokenText(tokens, called, query)} ${verb} ${said}`;
    looks.title = looks.textContent;
  }
  function drawDoes() {
    doesHead.textContent = `What head ${spec.layers[state.layer].index}.${spec.heads[state.head]} does${second && !spec.names ? ", in the first and the second prompt" : ""}`;
    const { layer, head } = state;
    does.update(spec.kinds.first.map(({ name, unit, bound }, kind) => {
      const now = patterns.score("first", kind, layer, head);
      const twin = spec.kinds.second?.findIndex((one) => one.name === name) ?? -1;
      const after = twin < 0 ? null : patterns.score("second", twin, layer, head);
      const most = bound === 1 ? 1 : largestScore(kind);
      const text = scoreText(unit);
      return after === null ? { name, value: now / most, text: text(now) } : { name, value: after / most, before: now / most, text: text(now) === text(after) ? text(now) : `${text(now)} → ${text(after)}` };
    }));
    [...does.element.children].forEach((row, kind) => (row.title = spec.kinds.first[kind].meaning));
  }
  const largestScore = (kind) => Math.max(1e-9, ...spec.layers.flatMap((_, layer) => spec.heads.map((_, head) => patterns.score("first", kind, layer, head))));

  function render() {
    colours = theme();
    paint(root, colours);
    const width = root.clientWidth || 800;
    const wide = width >= WIDE;
    body.classList.toggle("gs-beside", !second && spec.tokens.length <= BESIDE);
    const { layer, head } = state;
    heads.update({ name: state.show, bos: state.bos, sort: sorting(), layer, head, width: wide ? Math.floor(width * 0.55) - 48 : width - 48 }, colours);
    const { index, kind } = spec.layers[layer];
    heading.textContent = `Layer ${index} (${kind}), head ${spec.heads[head]}`;
    const range = state.bos ? "Colours have" : "Colours leave out the first position, and have";
    const longest = Math.max(...patterns.panels.map(patterns.lengthOf));
    windowLine.textContent = `${windowSentence(spec.layers[layer], longest)} ${range} the head's own range.`;
    windowLine.title = state.bos ? "" : "much attention rests on the first position: beside it all else would be pale";
    patterns.panels.forEach((name) => (texts[name].element.hidden = name !== state.show));
    drawDoes();
    panels.show(state);
    drawText();
    chosen(index, spec.heads[head]);
    el.dataset.gemmascopeReady = "1";
  }
  const stops = [...new Set(Object.values(buses))].map((bus) => bus.on(drawText));
  const stop = redrawOnResize(root, onTheme, render);
  render();
  const destroy = () => {
    stop();
    stops.forEach((one) => one());
    new Set(Object.values(buses)).forEach((bus) => bus.stop());
    panels.destroy();
  };
  return { choose, state, destroy };
}

const shortScore = (share) => (share === 0 ? "0" : share < 0.01 ? "<1%" : `${Math.round(100 * share)}%`);

/** How a score of a unit is written. */
function scoreText(unit) {
  const rest = unit.startsWith("entropy") ? (value) => `${format(value, false, 2)} nats` : unit.startsWith("distance") ? (value) => `${format(value, false, 1)} positions` : percent;
  return (value) => (value === 0 ? "0" : rest(value));
}
