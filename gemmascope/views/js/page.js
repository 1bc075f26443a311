// The parts that all pages share: elements with safe text, the style, canvases, tooltips and keyboard focus.

import { STYLE } from "./system/style.js";
import { VARIABLES } from "./theme.js";
import { legibleLine, readable } from "./tokens.js";

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

/** The root of a component in an emptied element, with the shared style. spec.framed: a card of its own, with padding. */
export function rootIn(el, spec) {
  const root = make("div", { class: spec.framed ? "gs gs-card gs-plain" : "gs", role: "group", "aria-label": legibleLine(spec.title ?? "") });
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

/** Set a root's colours to those of a theme: the variables --gs-ground, --gs-ink and so on. */
export function paint(root, colours) {
  for (const [variable, name] of Object.entries(VARIABLES)) root.style.setProperty(variable, colours[name]);
  root.style.setProperty("color-scheme", colours.dark ? "dark" : "light");
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
    show(text, x, y) {
      box.textContent = text;
      box.hidden = false;
      const room = root.clientWidth - parseFloat(getComputedStyle(root).paddingRight) - box.offsetWidth - 4;
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
  // A front end that changes its theme may have no layout for a moment, which no observer sees: so once more in the next frame.
  const stop = stopTheme(() => {
    drawn();
    requestAnimationFrame(() => root.isConnected && drawn());
  });
  return () => {
    observer.disconnect();
    stop();
  };
}
