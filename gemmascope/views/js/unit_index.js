// The index of a folder of pages: a table of units that is searched and sorted.
//
// spec: units [{name, address, kind, density, high, token, text}]; text: what else a search looks through, lower case

import { make, paint, redrawOnResize } from "./page.js";
import { format, percent } from "./scale.js";
import { card, strip } from "./system/card.js";
import { wordMenu } from "./system/menus.js";
import { onTheme, theme } from "./theme.js";
import { legible, legibleLine } from "./tokens.js";

const MOST = 200;
const ORDERS = [{ value: "given", label: "number" }, { value: "high", label: "largest value" }, { value: "often", label: "density, most often first" }, { value: "rare", label: "density, rarest first" }];

const INDEX_STYLE = `
.gs-index{padding:8px 24px 16px}
.gs-index table{width:100%}
.gs-index td:first-child,.gs-index th:first-child,.gs-index td:nth-child(2),.gs-index th:nth-child(2),.gs-index td:last-child,.gs-index th:last-child{text-align:left}
.gs-index td{vertical-align:top}
.gs-index td:last-child{overflow-wrap:anywhere}
.gs-index a{color:var(--gs-accent)}
.gs-search{font:inherit;width:min(100%,400px);min-height:32px;padding:3px 8px;border:1px solid var(--gs-line);border-radius:4px;background:var(--gs-ground);color:inherit}
`;

export function unitIndex(el, spec) {
  const root = card(el, spec);
  root.append(make("style", {}, INDEX_STYLE));
  const search = make("input", { type: "search", class: "gs-search", placeholder: "a number, a token, a word", "aria-label": "search", "data-lm-suppress-shortcuts": "true", oninput: () => fill() });
  let order = "given";
  const menu = wordMenu("order", ORDERS, order, (value) => {
    order = value;
    fill();
  });
  strip(root, { sentence: [search], aside: ["sorted by ", menu.element] });
  const says = make("p", { class: "gs-small gs-faint", "aria-live": "polite" });
  const body = make("tbody");
  const heads = ["unit", "strongest at", "largest", "density", "raises"].map((name) => make("th", {}, name));
  root.append(make("div", { class: "gs-index" }, says, make("div", { class: "gs-wide" }, make("table", {}, make("thead", {}, make("tr", {}, ...heads)), body))));

  function found() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const units = spec.units.filter((one) => words.every((word) => one.text.includes(word)));
    if (order === "high") units.sort((a, b) => b.high - a.high);
    if (order === "often") units.sort((a, b) => b.density - a.density);
    if (order === "rare") units.sort((a, b) => a.density - b.density);
    return units;
  }
  function fill() {
    const units = found();
    const cut = units.length > MOST ? `, the first ${MOST} of them` : "";
    says.textContent = `${units.length.toLocaleString("en")} of ${spec.units.length.toLocaleString("en")} units${cut}`;
    body.replaceChildren(...units.slice(0, MOST).map((one) => make("tr", {},
      make("td", {}, make("a", { href: one.address }, legibleLine(one.name))), make("td", { class: "gs-token", dir: "auto" }, legible(one.token ?? "")),
      make("td", {}, format(one.high)), make("td", {}, percent(one.density)), make("td", { class: "gs-token", dir: "auto" }, one.raises.map(legible).join("  ")))));
  }
  const draw = () => paint(root, theme());
  const stop = redrawOnResize(root, onTheme, draw);
  draw();
  fill();
  el.dataset.gemmascopeReady = "1";
  return { destroy: stop };
}
