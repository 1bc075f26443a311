// The parts that all pages share: elements with safe text, the style, canvases, tooltips and keyboard focus.

import { legibleLine, readable } from "./tokens.js";

const STYLE = `
.gs{font:13px/1.45 system-ui,sans-serif;position:relative;max-width:100%;padding:2px 0}
.gs *{box-sizing:border-box}
.gs-title{font-weight:600;font-size:14px}
.gs-note{margin:2px 0 6px}
.gs-bar{display:flex;flex-wrap:wrap;gap:6px;align-items:center;margin:4px 0}
.gs button,.gs select{font:inherit;padding:2px 8px;border-radius:4px;border:1px solid;background:transparent;color:inherit;cursor:pointer}
.gs input[type=checkbox]{vertical-align:-2px;margin:0 4px 0 0}
.gs select option{color:#1a1a1a;background:#fff}
.gs button[aria-pressed=true]{border-width:2px;font-weight:600;padding:1px 7px}
.gs button:disabled{opacity:.5;cursor:default}
.gs .gs-gone{margin:4px 0;padding:3px 8px;border:2px solid var(--gs-warn);font-weight:600}
.gs .gs-gone[hidden]{display:none}
.gs-cut-off>:not(.gs-gone){opacity:.4;filter:grayscale(1);cursor:not-allowed}
.gs canvas{display:block;outline-offset:-2px}
.gs-wide{overflow-x:auto;overflow-y:hidden;max-width:100%}
.gs :focus-visible{outline:2px solid var(--gs-accent)}
.gs-tip{position:absolute;pointer-events:none;z-index:9;padding:4px 7px;border-radius:4px;border:1px solid;max-width:300px;white-space:pre-wrap;font-size:12px}
.gs-live{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
.gs-scroll{overflow:auto;max-height:420px;max-width:100%}
.gs table{border-collapse:collapse;font-size:12px}
.gs th,.gs td{border:1px solid var(--gs-line);padding:1px 6px;text-align:right;background:transparent;color:inherit}
.gs-row{display:flex;flex-wrap:wrap;gap:14px;align-items:flex-start}
.gs-panels{display:grid;gap:10px;grid-template-columns:repeat(auto-fit,minmax(min(100%,var(--gs-least,340px)),1fr))}
.gs-panels>div{min-width:0}
.gs button.gs-thumb{display:inline-flex;flex-direction:column;align-items:center;padding:3px 4px 0;border-width:2px;border-color:transparent}
.gs button.gs-thumb[aria-pressed=true]{border-color:var(--gs-accent);padding:3px 4px 0}
.gs-chips{max-height:132px;overflow:auto}
.gs-chip{font-family:ui-monospace,monospace;font-size:12px;border:1px solid var(--gs-line);border-radius:4px;padding:0 4px;margin:1px;display:inline-block;white-space:pre;unicode-bidi:isolate}
.gs-special{border-style:double;border-width:3px}
`;

// Attributes whose values are shown or read out.
const TEXT_ATTRIBUTES = ["title", "aria-label", "placeholder"];

/** An element with attributes and children. Strings become text, never markup, with invisible characters spelled out. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, TEXT_ATTRIBUTES.includes(name) ? readable(String(value)) : value);
  }
  element.append(...children.map((child) => (typeof child === "string" ? readable(child) : child)));
  return element;
}

/** The root of a component in an emptied element, with the shared style. */
export function rootIn(el, spec) {
  const root = make("div", { class: "gs", role: "group", "aria-label": legibleLine(spec.title ?? "") });
  root.append(make("style", {}, STYLE));
  if (spec.title) root.append(make("div", { class: "gs-title" }, legibleLine(spec.title)));
  if (spec.note) root.append(make("div", { class: "gs-note" }, spec.note));
  el.replaceChildren(root);
  return root;
}

/** Show the title and the note of another spec in a root that has both, or neither. */
export function retitle(root, spec) {
  root.setAttribute("aria-label", legibleLine(spec.title ?? ""));
  for (const [part, text] of [[".gs-title", legibleLine(spec.title ?? "")], [".gs-note", readable(spec.note ?? "")]]) {
    const line = root.querySelector(`:scope>${part}`);
    if (line) line.textContent = text;
  }
}

/** Set a root's colours to those of a theme. */
export function paint(root, colours) {
  root.style.color = colours.ink;
  root.style.background = colours.ground;
  root.style.setProperty("--gs-accent", colours.accent);
  root.style.setProperty("--gs-line", colours.line);
  root.style.setProperty("--gs-warn", colours.warn);
}

/** A canvas of this size in CSS pixels, sharp on every screen; returns its context. */
export function sized(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.ceil(width * ratio);
  canvas.height = Math.ceil(height * ratio);
  canvas.style.width = `${Math.ceil(width)}px`;
  canvas.style.height = `${Math.ceil(height)}px`;
  const ctx = canvas.getContext("2d");
  ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
  return ctx;
}

/** A tooltip beside the pointer. */
export function tooltip(root) {
  const box = make("div", { class: "gs-tip", role: "presentation", hidden: true });
  root.append(box);
  return {
    show(text, x, y, colours) {
      box.textContent = text;
      box.hidden = false;
      box.style.background = colours.ground;
      box.style.borderColor = colours.line;
      const room = root.clientWidth - box.offsetWidth - 4;
      box.style.left = `${Math.max(0, Math.min(x + 14, room))}px`;
      box.style.top = `${y + 16}px`;
    },
    say(text) {
      box.textContent = text;
    },
    hide() {
      box.hidden = true;
    },
    get text() {
      return box.hidden ? null : box.textContent;
    },
  };
}

/** Make arrow keys move the focus along a row of buttons. Returns a function that marks one of them as pressed. */
export function moveFocus(bar, buttons, chosen) {
  bar.addEventListener("keydown", (event) => {
    const at = buttons.indexOf(document.activeElement);
    const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (to === undefined || at < 0) return;
    event.preventDefault();
    event.stopPropagation();
    const next = Math.min(buttons.length - 1, Math.max(0, to));
    buttons[next].focus();
    chosen(next);
  });
  return (current) =>
    buttons.forEach((button, i) => {
      button.setAttribute("aria-pressed", String(i === current));
      button.tabIndex = i === current ? 0 : -1;
    });
}

/** Redraw when the width or the theme changes. Returns a function that stops this. */
export function redrawOnResize(root, stopTheme, drawn) {
  let width = 0;
  const observer = new ResizeObserver(() => {
    if (Math.abs(root.clientWidth - width) > 1) {
      width = root.clientWidth;
      drawn();
    }
  });
  observer.observe(root);
  const stop = stopTheme(drawn);
  return () => {
    observer.disconnect();
    stop();
  };
}
