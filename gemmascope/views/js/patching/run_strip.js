// The runs so far, each as a small picture: a click goes back to one with its cells, shift and click shows the difference.

import { numbers } from "../arrays.js";
import { button } from "../live.js";
import { make, sized } from "../page.js";
import { colourAt, css } from "../scale.js";
import { theme } from "../theme.js";
import { legible } from "../tokens.js";

const THUMB_WIDTH = 160, THUMB_HEIGHT = 48;

/** send(type, more): asks Python. Returns {element, draw(runs, thumbnails)}. */
export function runStrip(send) {
  const list = make("div", { class: "gs-runs", role: "list", "aria-label": "earlier runs" });
  const note = make("div", { class: "gs-small gs-faint" }, "click reopens · shift-click compares");
  const element = make("div", { class: "gs-run-strip" }, list, note);

  function thumbnail(run, codes) {
    const canvas = make("canvas", { "aria-hidden": "true" });
    const ctx = sized(canvas, THUMB_WIDTH, THUMB_HEIGHT);
    const [rows, columns] = run.shape;
    const { dark, tint } = theme();
    const [w, h] = [THUMB_WIDTH / columns, THUMB_HEIGHT / rows];
    for (let r = 0; r < rows; r++)
      for (let c = 0; c < columns; c++) {
        const code = codes[r * columns + c];
        ctx.fillStyle = code ? css(colourAt((code - 1) / 254, { kind: "diverging" }, dark)) : tint;
        ctx.fillRect(c * w, (run.up ? rows - 1 - r : r) * h, Math.max(1, w - 0.5), Math.max(1, h - 0.5));
      }
    return canvas;
  }

  return {
    element,
    draw(runs, thumbnails) {
      const codes = numbers(thumbnails, "uint8");
      let at = 0;
      const focus = [...list.querySelectorAll("button")].indexOf(document.activeElement);
      const cards = runs.map((run, i) => {
        const size = run.shape[0] * run.shape[1];
        const mine = codes.slice(at, (at += size));
        const says = legible(`${run.prompts}; ${run.measure}`).replaceAll("·", " ");
        const act = (event) => (event.shiftKey ? send("compare", { index: run.compared ? null : i }) : run.now ? send("compare", { index: null }) : send("reopen", { index: i }));
        const card = button("", act, { class: "gs-run", "aria-pressed": String(run.now), title: says, "aria-label": `${run.title}, ${run.grid}, ${run.progress}: ${says}${run.compared ? ", compared" : ""}` });
        if (run.compared) card.classList.add("gs-compared");
        card.append(thumbnail(run, mine), make("b", {}, run.title), make("span", {}, `${run.grid} · ${run.progress}`), make("span", {}, says));
        return make("div", { role: "listitem" }, card);
      });
      list.replaceChildren(...(cards.length ? cards : [make("span", { class: "gs-small gs-faint" }, "Runs appear here.")]));
      if (focus >= 0) list.querySelectorAll("button")[focus]?.focus({ preventScroll: true });
    },
  };
}
