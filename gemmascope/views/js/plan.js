// The memory planner: looks up and draws what Python computed for a model, its weights, a context and a card.
//
// spec: {models, weights, contexts, cards: [{name, bytes, size}], driver, parts: names,
//   cases: one for each model, weights, context and size of card, in this order: {how, verdict, advice, total,
//   parts: [[index into parts, bytes]]}}

import { make, moveFocus, paint } from "./page.js";
import { card, panes, strip } from "./system/card.js";
import { wordMenu } from "./system/menus.js";
import { onTheme, theme } from "./theme.js";

const PLAN_STYLE = `
.gs-context{display:inline-flex;gap:8px;align-items:center}
.gs-cards{display:grid;gap:4px}
.gs .gs-cards button{display:grid;grid-template-columns:128px minmax(0,1fr) 112px;gap:16px;align-items:center;width:100%;text-align:left;padding:4px 8px;min-height:40px;font-weight:400}
.gs .gs-cards button[aria-pressed=true]{color:inherit}
.gs-cards span{font-size:12px;line-height:16px}
.gs-cards .gs-how{text-align:right}
.gs-memory{position:relative;height:32px;margin:24px 0 8px;font-size:12px}
.gs-use{position:relative;height:16px}
.gs-part{position:absolute;top:0;bottom:0;border-right:1px solid var(--gs-ground);display:flex;align-items:center;justify-content:center;font-size:12px;font-weight:600;overflow:hidden;color:#1a1a1a}
.gs-room{position:absolute;left:0;top:0;bottom:0;background:var(--gs-line);border-radius:4px 0 0 4px}
.gs-limit{position:absolute;top:-20px;bottom:-4px;border-left:2px solid var(--gs-ink);padding-left:4px;line-height:16px;white-space:nowrap}
.gs-use .gs-limit{top:-4px}
.gs-limit.gs-left{border-left:0;border-right:2px solid var(--gs-ink);padding:0 4px 0 0;transform:translateX(-100%)}
.gs-verdict{font-weight:600;margin:8px 0}
.gs code{font:12px ui-monospace,monospace;overflow-wrap:anywhere;user-select:all}
.gs-swatch{display:inline-block;min-width:20px;text-align:center;font-weight:600;color:#1a1a1a;margin-right:8px;border-radius:4px}
.gs .gs-sizes td:first-child,.gs .gs-sizes th:first-child{text-align:left}
`;
// Light enough for dark digits in both themes. The digits identify the parts; the colours need not.
const TINTS = ["#8ec1f0", "#b7dca4", "#f5c98b", "#d9b8e8", "#f2a9a0", "#a7dbe0", "#e3dc8a", "#c9c9c9", "#e0bfa4"];
const SIGNS = { resident: "●", streams: "◐", no: "○" };
const HOW = { resident: "fits whole", streams: "layers stream", no: "does not fit" };

/** Bytes in units of 10^9, 10^6 or 10^3, as gemmascope/memory/plan_report.py writes them. */
export function bytesText(n) {
  const [unit, name] = n >= 1e8 ? [1e9, "GB"] : n >= 1e5 ? [1e6, "MB"] : [1e3, "kB"];
  return `${(n / unit).toFixed(2)} ${name}`;
}

/** The index of a case: cards' sizes vary fastest, then contexts, weights and models. */
export function caseAt(spec, at) {
  const sizes = 1 + Math.max(...spec.cards.map((card) => card.size));
  return ((at.model * spec.weights.length + at.weights) * spec.contexts.length + at.context) * sizes + spec.cards[at.card].size;
}

export function plan(el, spec) {
  const root = card(el, spec);
  root.append(make("style", {}, PLAN_STYLE));
  const at = { model: spec.models.length - 1, weights: spec.weights.length - 1, context: spec.contexts.length - 1, card: 2 % spec.cards.length };
  const names = { model: spec.models, weights: spec.weights, card: spec.cards.map((one) => one.name) };
  const menus = Object.fromEntries(Object.entries(names).map(([name, texts]) => [name, wordMenu(name, texts, texts[at[name]], (value) => set(name, texts.indexOf(value)))]));
  const shownContext = make("output");
  const slider = make("input", { type: "range", "aria-label": "context", min: "0", max: String(spec.contexts.length - 1), step: "1", "data-lm-suppress-shortcuts": "true", oninput: () => set("context", Number(slider.value)) });
  slider.value = String(at.context);
  const line = strip(root, { sentence: ["Run ", menus.model.element, " with ", menus.weights.element, " weights on a ", menus.card.element], aside: [make("label", { class: "gs-context" }, slider, shownContext)] });
  line.element.classList.add("gs-asks");
  const { left, right } = panes(root);
  const cards = make("div", { class: "gs-cards", role: "toolbar", "aria-label": "cards" });
  const rows = spec.cards.map((one, i) => {
    const [use, how] = [make("span", { class: "gs-use" }), make("span", { class: "gs-how" })];
    const button = make("button", { type: "button", onclick: () => set("card", i) }, make("span", {}, one.name), use, how);
    return { button, use, how };
  });
  cards.append(...rows.map((row) => row.button));
  const atCard = moveFocus(cards, rows.map((row) => row.button), (i) => set("card", i));
  left.append(cards);
  const memory = make("div", { class: "gs-memory", role: "img" });
  const verdict = make("div", { class: "gs-verdict", "aria-live": "polite" });
  const advice = make("div", { class: "gs-note" });
  const table = make("table", { class: "gs-sizes" });
  right.append(memory, verdict, advice, table);

  function set(name, value) {
    at[name] = value;
    if (name in menus) menus[name].update({ value: names[name][value] });
    draw();
  }
  /** The parts side by side, and the line up to which a card has room, on a scale that ends at `end` bytes. */
  function drawUse(element, fit, room, end, { digits, limit }) {
    const share = (bytes) => `${(100 * bytes) / end}%`;
    let before = 0;
    const parts = fit.parts.map(([name, bytes], i) => {
      const style = `left:${share(before)};width:${share(bytes)};background:${TINTS[name % TINTS.length]}`;
      before += bytes;
      return make("span", { class: "gs-part", style, title: `${spec.parts[name]}: ${bytesText(bytes)}` }, digits && bytes > 0.04 * end ? String(i + 1) : "");
    });
    const mark = make("span", { class: `gs-limit${room > 0.5 * end ? " gs-left" : ""}`, style: `left:${share(room)}` }, limit);
    element.replaceChildren(make("span", { class: "gs-room", style: `width:${share(room)}` }), ...parts, mark);
  }
  function draw() {
    paint(root, theme());
    atCard(at.card);
    const text = `${spec.contexts[at.context].toLocaleString("en")} positions`;
    shownContext.textContent = text;
    slider.setAttribute("aria-valuetext", text);
    const room = (i) => spec.cards[i].bytes - spec.driver;
    const fits = spec.cards.map((_, i) => spec.cases[caseAt(spec, { ...at, card: i })]);
    const end = 1.02 * Math.max(...fits.map((fit, i) => Math.max(fit.total, room(i))));
    rows.forEach(({ button, use, how }, i) => {
      drawUse(use, fits[i], room(i), end, { digits: false, limit: "" });
      how.replaceChildren(`${SIGNS[fits[i].how]} ${HOW[fits[i].how]}`, make("br"), make("span", { class: "gs-faint" }, `${bytesText(fits[i].total)} of ${bytesText(room(i)).split(" ")[0]}`));
      button.setAttribute("aria-label", `${spec.cards[i].name}: ${HOW[fits[i].how]}, ${bytesText(fits[i].total)} of ${bytesText(room(i))}`);
    });
    const fit = fits[at.card];
    const name = spec.cards[at.card].name;
    drawUse(memory, fit, room(at.card), 1.02 * Math.max(fit.total, room(at.card)), { digits: true, limit: `${name}: ${bytesText(room(at.card))} to use` });
    memory.setAttribute("aria-label", `${bytesText(fit.total)}, of ${bytesText(room(at.card))} to use on ${name}`);
    verdict.textContent = `${SIGNS[fit.how]} ${fit.verdict}`;
    advice.replaceChildren(fit.how === "no" ? fit.advice : make("code", {}, fit.advice));
    const swatch = (part, i) => make("span", { class: "gs-swatch", style: `background:${TINTS[part % TINTS.length]}` }, String(i + 1));
    const sizes = fit.parts.map(([part, bytes], i) => make("tr", {}, make("td", {}, swatch(part, i), spec.parts[part]), make("td", {}, bytesText(bytes))));
    table.replaceChildren(...sizes, make("tr", {}, make("th", {}, "together"), make("th", {}, bytesText(fit.total))));
    el.dataset.gemmascopeReady = "1";
  }
  const stop = onTheme(draw);
  draw();
  return { destroy: stop };
}
