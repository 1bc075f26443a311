// A text on which a unit is strong: its tokens, tinted by the unit's values, with the strongest one in a frame.

import { CHARACTER_STYLE, joinedChips } from "./characters.js";
import { make } from "./page.js";
import { colour, css, format, inkOn, percent } from "./scale.js";
import { legible } from "./tokens.js";

const LEAST_TINT = 0.02; // a share of the scale

export const EXAMPLE_STYLE = `${CHARACTER_STYLE}
.gs-example{display:grid;grid-template-columns:64px minmax(0,1fr);gap:8px;padding:4px 0;border-bottom:1px solid var(--gs-line)}
.gs-example>:first-child{font-size:12px;line-height:20px;text-align:right;color:var(--gs-faint)}
.gs-text{line-height:22px;overflow-wrap:anywhere}
.gs-text .gs-chip{border-color:transparent;padding:0 1px;margin:0;line-height:18px}
.gs-text .gs-chip.gs-peak{border-color:var(--gs-ink)}
`;

/** row: {tokens, values, at, value, text, pos, looks?}. Returns {element, row, tint(values, scale, dark)}. */
export function exampleRow(row) {
  const chips = row.tokens.map((token, i) => {
    const value = row.values[i];
    const looks = row.looks ? `, looked at: ${row.looks[i] === null ? "later" : percent(row.looks[i])}` : "";
    const hint = `${legible(token)}: ${value === null ? "left out" : format(value)}${looks}`;
    return make("span", { class: i === row.at ? "gs-chip gs-peak" : "gs-chip", title: hint, "data-value": value === null ? "" : String(value) }, legible(token));
  });
  const element = make("div", { class: "gs-example", "data-gs-example": `${row.text}:${row.pos}` },
    make("span", { title: `text ${row.text}, position ${row.pos}` }, format(row.value)), make("div", { class: "gs-text", dir: "auto" }, ...joinedChips(chips, row.tokens)));
  const tint = (values, scale, dark) => chips.forEach((chip, i) => {
    const value = values[i];
    const rgb = value !== null && Math.abs(value) > LEAST_TINT * scale.high ? colour(value, scale, dark) : null;
    chip.style.background = rgb ? css(rgb) : "";
    chip.style.color = rgb ? inkOn(rgb) : "";
  });
  return { element, row, tint };
}
