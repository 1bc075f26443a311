// The switch of a node or group: off, half, as it was, double.

import { make } from "../page.js";
import { format } from "../scale.js";

const FACTORS = [[0, "Off"], [0.5, "Half"], [1, "As it was"], [2, "Double"]];

export const SWITCH_STYLE = `
.gs-switch{display:flex;flex-wrap:wrap;gap:4px;margin:8px 0 0}
.gs .gs-switch button{min-height:24px;padding:1px 8px;font-size:12px;line-height:16px;border-color:var(--gs-line)}
`;

/** name: of what is switched, for screen readers. by: its present factor. changed(by). */
export function switchOf(name, by, changed) {
  const listed = FACTORS.some(([factor]) => factor === by) ? FACTORS : [...FACTORS, [by, `× ${format(by)}`]];
  const one = ([factor, label]) => make("button", { type: "button", "aria-pressed": String(factor === by), "data-gs-factor": factor, onclick: () => changed(factor) }, label);
  return make("div", { class: "gs-switch", role: "group", "aria-label": `${name}: what it writes` }, ...listed.map(one));
}

/** What stands beside the name of something that is changed. */
export function factorText(by) {
  return by === 0 ? "off" : `× ${format(by)}`;
}
