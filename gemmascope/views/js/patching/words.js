// What the numbers of the patching lab mean, in words. Nothing here draws.

import { EXACT } from "../matrix.js";
import { format } from "../scale.js";

// Effects below this share of the gap count as nothing; estimates within RIGHT are right, beyond MISLEADING they are explained.
const NOTHING = 0.005, RIGHT = 1.1, MISLEADING = 1.5;

/** Seconds in words. */
export function secondsText(seconds) {
  if (seconds === null || seconds === undefined || Number.isNaN(seconds)) return "";
  if (seconds < 1) return "under 1 s";
  if (seconds < 90) return `about ${Math.round(seconds)} s`;
  return seconds < 5400 ? `about ${Math.round(seconds / 60)} min` : `about ${(seconds / 3600).toFixed(1)} h`;
}

/** How many cells of a rectangle have no exact number yet, and about how long they take: {cells, seconds}. */
export function costOf(marks, seconds, columns, rect) {
  let cells = 0;
  let time = 0;
  for (let r = rect.rows[0]; r <= rect.rows[1]; r++)
    for (let c = rect.columns[0]; c <= rect.columns[1]; c++) {
      const i = r * columns + c;
      if (marks[i] === EXACT || seconds[i] === 0) continue;
      cells += 1;
      time += seconds[i];
    }
  return { cells, seconds: time };
}

/** "90 cells · under 1 s" */
export function costText({ cells, seconds }) {
  const time = secondsText(seconds);
  return `${cells} ${cells === 1 ? "cell" : "cells"}${time && cells ? ` · ${time}` : ""}`;
}

/** A share of the gap as a headline: "100%", "−12%", "0%". */
export function shareText(share) {
  if (share === null || !Number.isFinite(share)) return "–";
  const rounded = Math.round(100 * share);
  return rounded === 0 ? "0%" : `${rounded < 0 ? "−" : ""}${Math.abs(rounded)}%`;
}

/** A number as a headline, of at most nine characters: four digits from 1 on, three below, powers of ten for what is tiny. */
export function figureText(value) {
  const size = Math.abs(value);
  if (!Number.isFinite(value) || size === 0 || size >= 1) return format(value, true);
  return `${value < 0 ? "−" : "+"}${size < 0.001 ? size.toExponential(1) : Number(size.toPrecision(3))}`;
}

/** How far an estimate is from the exact number: "8 times too low", "of the wrong sign", "right within 10%". gap: its size. */
export function apartText(exact, estimate, gap) {
  if (exact === estimate || Math.max(Math.abs(exact), Math.abs(estimate)) <= NOTHING * gap) return "right: next to nothing";
  if (Math.abs(exact) <= NOTHING * gap) return "too far from 0";
  if (Math.abs(estimate) <= NOTHING * gap) return "next to nothing: far too low";
  if (exact * estimate < 0) return "of the wrong sign";
  const times = Math.abs(exact / estimate);
  if (times > 1 / RIGHT && times < RIGHT) return "right within 10%";
  const factor = Math.max(times, 1 / times);
  return `${factor.toFixed(factor >= 3 ? 0 : 1)} times too ${times > 1 ? "low" : "high"}`;
}

/** Whether an estimate misleads: "low" or "high", or "" if it does not. */
export function misleads(exact, estimate, gap) {
  if (Math.abs(exact - estimate) <= NOTHING * gap) return "";
  if (exact * estimate > 0 && exact / estimate > 1 / MISLEADING && exact / estimate < MISLEADING) return "";
  return Math.abs(estimate) < Math.abs(exact) ? "low" : "high";
}
