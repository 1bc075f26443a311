// Numbers as lengths: bars that grow to the right from zero, or from a middle line if signed, and the ruler between two runs.

import { make } from "../page.js";
import { format, percent } from "../scale.js";

/**
 * A list of bars. rows: [{name, value, before?, token?, negative?, text?}]; value and before: shares of `most`. token: draw the
 * name in the tokens' face. text: what stands at the end; by default the percentages. negative: in the second colour.
 * signed: values run from -most to most, from a middle line. label: for screen readers. Returns {element, update(rows)}.
 */
export function bars(rows, { most = 1, signed = false, label = "" } = {}) {
  const element = make("div", { class: "gs-bars", role: "list", "aria-label": label });
  const at = (value) => (100 * Math.min(1, Math.max(signed ? -1 : 0, value / most)) + (signed ? 100 : 0)) / (signed ? 2 : 1);
  function row({ name, value, before, token = false, negative = false, text }) {
    const [from, to] = [at(0), at(value)].sort((a, b) => a - b);
    const ink = negative || value < 0 ? "--gs-negative" : "--gs-positive";
    const track = make("div", { class: "gs-track", "aria-hidden": "true" });
    if (value !== 0) track.append(make("i", { style: `left:${from}%;width:${to - from}%;background:var(${ink})` }));
    if (signed) track.append(make("u", { style: "left:50%" }));
    if (before !== undefined && before !== null) track.append(make("b", { style: `left:min(${at(before)}%,calc(100% - 2px))` }));
    const says = text ?? (signed ? format(value, true) : changeText(before, value));
    return make("div", { role: "listitem", "aria-label": `${name}: ${says}` }, make("span", { class: token ? "gs-name gs-token" : "gs-name", dir: "auto" }, name), track, make("span", { class: "gs-value" }, says));
  }
  const update = (rows) => element.replaceChildren(...rows.map(row));
  update(rows);
  return { element, update };
}

/** "0.2% → 99.8%", or the share alone if it did not change as far as it is printed. */
export function changeText(before, after) {
  if (before === undefined || before === null || percent(before) === percent(after)) return percent(after);
  return `${percent(before)} → ${percent(after)}`;
}

/**
 * The way from the corrupted to the clean value of a metric, drawn from low to high, with the clean end in the positive colour.
 * update({corrupt, clean, now?, unit?}): now: where the selected cell lies; null for one end: not known yet.
 */
export function ruler(values = {}) {
  const element = make("div", { class: "gs-ruler", role: "img" });
  function update({ corrupt = null, clean = null, now = null, unit = "" }) {
    if (corrupt === null || clean === null) {
      element.setAttribute("aria-label", "the two prompts are not run yet");
      return element.replaceChildren(make("i", { style: "left:0;right:0" }));
    }
    const all = [corrupt, clean, ...(now === null ? [] : [now])];
    const [low, high] = [Math.min(...all), Math.max(...all)];
    const at = (value) => `calc(5px + (100% - 10px) * ${high === low ? 0.5 : (value - low) / (high - low)})`;
    const dot = (value, name) => make("b", { style: `left:${at(value)};background:var(--gs-${name})`, title: `${name === "positive" ? "clean" : "corrupted"} ${format(value, true)}` });
    const ends = [corrupt, clean].sort((a, b) => a - b);
    const text = (value, style) => make("span", { style }, value);
    element.setAttribute("aria-label", `corrupted ${format(corrupt, true)}, clean ${format(clean, true)}, gap ${format(clean - corrupt)} ${unit}`.trim());
    element.replaceChildren(
      make("i", { style: `left:${at(ends[0])};right:calc(100% - ${at(ends[1])})` }), dot(corrupt, "negative"), dot(clean, "positive"),
      ...(now === null ? [] : [make("b", { class: "gs-now", style: `left:${at(now)}`, title: format(now, true) })]),
      text(format(ends[0], true), "left:0"), text(`gap ${format(Math.abs(clean - corrupt))}`, "left:50%;transform:translateX(-50%)"), text(format(ends[1], true), "right:0"),
    );
  }
  update(values);
  return { element, update };
}
