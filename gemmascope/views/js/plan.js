// The memory planner: looks up and draws what Python computed for a model, its weights, a context and a card.
//
// spec: {models, weights, contexts, cards: [{name, bytes, size}], driver, parts: names,
//   cases: one for each model, weights, context and size of card, in this order: {how, verdict, advice, total,
//   parts: [[index into parts, bytes]]}}

import { make, paint, rootIn } from "./page.js";
import { onTheme, theme } from "./theme.js";

const PLAN_STYLE = `
.gs-asks{display:flex;flex-wrap:wrap;gap:6px 18px;align-items:center;margin:6px 0}
.gs-asks label{display:inline-flex;gap:6px;align-items:center}
.gs-memory{position:relative;height:34px;margin:22px 0 6px;border:1px solid var(--gs-line);border-radius:4px}
.gs-part{position:absolute;top:0;bottom:0;border-right:1px solid;display:flex;align-items:center;justify-content:center;font-size:12px;font-weight:600;overflow:hidden;color:#1a1a1a}
.gs-limit{position:absolute;top:-18px;bottom:-6px;border-left:3px solid;padding-left:4px;font-size:12px;line-height:16px;white-space:nowrap}
.gs-limit.gs-left{border-left:0;border-right:3px solid;padding:0 4px 0 0;transform:translateX(-100%)}
.gs-verdict{font-weight:600;margin:4px 0}
.gs code{font:12px ui-monospace,monospace;overflow-wrap:anywhere;user-select:all}
.gs-swatch{display:inline-block;min-width:18px;text-align:center;font-weight:600;color:#1a1a1a;margin-right:6px;border-radius:3px}
.gs .gs-sizes td:first-child{text-align:left}
`;
// Light enough for dark digits in both themes. The digits identify the parts; the colours need not.
const TINTS = ["#8ec1f0", "#b7dca4", "#f5c98b", "#d9b8e8", "#f2a9a0", "#a7dbe0", "#e3dc8a", "#c9c9c9", "#e0bfa4"];
const SIGNS = { resident: "●", streams: "◐", no: "○" };

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
  const root = rootIn(el, spec);
  root.append(make("style", {}, PLAN_STYLE));
  const at = { model: spec.models.length - 1, weights: spec.weights.length - 1, context: spec.contexts.length - 1, card: 2 % spec.cards.length };
  const controls = make("div", { class: "gs-asks", "data-lm-suppress-shortcuts": "true" });
  const choice = (name, texts) => {
    const select = make("select", { "aria-label": name, onchange: () => set(name, select.selectedIndex) }, ...texts.map((text) => make("option", {}, text)));
    select.selectedIndex = at[name];
    controls.append(make("label", {}, name, select));
  };
  choice("model", spec.models);
  choice("weights", spec.weights);
  const shownContext = make("output");
  const slider = make("input", { type: "range", "aria-label": "context", min: "0", max: String(spec.contexts.length - 1), step: "1", oninput: () => set("context", Number(slider.value)) });
  slider.value = String(at.context);
  controls.append(make("label", {}, "context", slider, shownContext));
  choice("card", spec.cards.map((card) => card.name));
  const memory = make("div", { class: "gs-memory", role: "img" });
  const verdict = make("div", { class: "gs-verdict", "aria-live": "polite" });
  const advice = make("div", { class: "gs-note" });
  const table = make("table", { class: "gs-sizes" });
  root.append(controls, memory, verdict, advice, table);

  function set(name, value) {
    at[name] = value;
    draw();
  }
  function draw() {
    const colours = theme();
    paint(root, colours);
    const fit = spec.cases[caseAt(spec, at)];
    const card = spec.cards[at.card];
    const room = card.bytes - spec.driver;
    const barBytes = Math.max(fit.total, room) * 1.02;
    const text = `${spec.contexts[at.context].toLocaleString("en")} positions`;
    shownContext.textContent = text;
    slider.setAttribute("aria-valuetext", text);
    let left = 0;
    const parts = fit.parts.map(([name, bytes], i) => {
      const width = (100 * bytes) / barBytes;
      const style = `left:${left}%;width:${width}%;background:${TINTS[name % TINTS.length]};border-color:${colours.ground}`;
      left += width;
      return make("div", { class: "gs-part", style, title: `${spec.parts[name]}: ${bytesText(bytes)}` }, width > 2 ? String(i + 1) : "");
    });
    const end = (100 * room) / barBytes;
    const limit = make("div", { class: `gs-limit${end > 60 ? " gs-left" : ""}`, style: `left:${end}%;border-color:${colours.ink}` }, `${card.name}: ${bytesText(room)} to use`);
    memory.replaceChildren(...parts, limit);
    memory.setAttribute("aria-label", `${bytesText(fit.total)}, of ${bytesText(room)} to use on ${card.name}`);
    verdict.textContent = `${SIGNS[fit.how]} ${fit.verdict}`;
    advice.replaceChildren(fit.how === "no" ? fit.advice : make("code", {}, fit.advice));
    const swatch = (name, i) => make("span", { class: "gs-swatch", style: `background:${TINTS[name % TINTS.length]}` }, String(i + 1));
    const rows = fit.parts.map(([name, bytes], i) => make("tr", {}, make("td", {}, swatch(name, i), spec.parts[name]), make("td", {}, bytesText(bytes))));
    table.replaceChildren(...rows, make("tr", {}, make("th", {}, "together"), make("th", {}, bytesText(fit.total))));
    el.dataset.gemmascopeReady = "1";
  }
  const stop = onTheme(draw);
  draw();
  return { destroy: stop };
}
