// Light or dark, like the surrounding page, and in its own colours where it names some: JupyterLab and VS Code do.

import { css, inkOn, luminance, mixed } from "./scale.js";

// A colour's part in the picture, and the CSS variable that holds it.
export const VARIABLES = {
  "--gs-ground": "ground", "--gs-pane": "pane", "--gs-ink": "ink", "--gs-faint": "faint", "--gs-line": "line",
  "--gs-accent": "accent", "--gs-on-accent": "onAccent", "--gs-warn": "warn", "--gs-positive": "positive",
  "--gs-negative": "negative", "--gs-highlight": "highlight",
};

// hatch and tint: a cell without a number. mark: the frame of the selected cell. lead: that of cells which stand out.
export const LIGHT = {
  dark: false, ground: "#ffffff", pane: "#f6f7f9", ink: "#1a1a1a", faint: "#595f69", line: "#dfe2e7", accent: "#1f5fae",
  onAccent: "#ffffff", warn: "#8a4b00", positive: "#2166ac", negative: "#b2182b", highlight: "#fff0bf", hatch: "#d3d8df",
  tint: "#f1f3f5", mark: "#1a1a1a", lead: "#c77700",
};
export const DARK = {
  dark: true, ground: "#111316", pane: "#1a1d21", ink: "#ececec", faint: "#aab0b8", line: "#363a41", accent: "#7db7ff",
  onAccent: "#0b1622", warn: "#ffc56b", positive: "#6eb4ff", negative: "#ff7d7d", highlight: "#55460f", hatch: "#3c4149",
  tint: "#1e2126", mark: "#ffffff", lead: "#ffb84d",
};

// What pages call the colours that a view may take from them.
const OF_PAGES = {
  ground: ["--jp-layout-color0", "--vscode-editor-background"],
  ink: ["--jp-content-font-color1", "--vscode-editor-foreground"],
  line: ["--jp-border-color2"],
  accent: ["--jp-brand-color1", "--vscode-textLink-foreground"],
};

// What a page draws at once asks for its colours many times, and each time the browser would lay out the page anew.
let themeAtOnce = null;

/** The colours for the page. */
export function theme() {
  if (!themeAtOnce) {
    themeAtOnce = themeOfPage();
    queueMicrotask(() => (themeAtOnce = null));
  }
  return themeAtOnce;
}

function themeOfPage() {
  const dark = declaredDark() ?? window.matchMedia("(prefers-color-scheme: dark)").matches;
  return withColoursOf(dark ? DARK : LIGHT, getComputedStyle(document.body));
}

/** A theme with the colours that the page names, as far as text remains legible in them. */
function withColoursOf(base, style) {
  const named = (part) => OF_PAGES[part].map((variable) => opaque(style.getPropertyValue(variable).trim(), base)).find(Boolean);
  const ground = named("ground");
  if (!ground || luminance(ground) < 0.18 !== base.dark) return base;
  const pane = mixed(ground, [128, 136, 148], 0.08);
  const legible = (part, least) => {
    const rgb = named(part);
    return rgb && Math.min(contrast(rgb, ground), contrast(rgb, pane)) >= least ? css(rgb) : base[part];
  };
  const accent = legible("accent", 4.5);
  const onAccent = accent === base.accent ? base.onAccent : inkOn(named("accent"));
  return { ...base, ground: css(ground), pane: css(pane), ink: legible("ink", 7), line: legible("line", 1.15), accent, onAccent };
}

const KNOWN_COLOURS = new Map(); // to draw one takes longer than the rest of a theme

/** A CSS colour as [red, green, blue], laid on the theme's ground if it is not opaque; null if it is no colour. */
function opaque(text, base) {
  const key = `${base.ground} ${text}`;
  if (!KNOWN_COLOURS.has(key)) KNOWN_COLOURS.set(key, text && CSS.supports("color", text) ? drawnColour(text, base) : null);
  return KNOWN_COLOURS.get(key);
}

function drawnColour(text, base) {
  const dot = document.createElement("canvas");
  dot.width = dot.height = 1;
  const ctx = dot.getContext("2d");
  for (const ink of [base.ground, text]) {
    ctx.fillStyle = ink;
    ctx.fillRect(0, 0, 1, 1);
  }
  return [...ctx.getImageData(0, 0, 1, 1).data.slice(0, 3)];
}

function contrast(a, b) {
  const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
}

/** Whether the page declares itself dark, in the way of each front end; null if it declares nothing. */
function declaredDark() {
  const [body, whole] = [document.body.dataset, document.documentElement];
  const declared = [
    body.jpThemeLight && (body.jpThemeLight === "false" ? "dark" : "light"), // JupyterLab
    body.vscodeThemeKind, // VS Code: "vscode-dark", "vscode-light", "vscode-high-contrast"
    whole.dataset.theme ?? whole.getAttribute("theme"), // pages of documentation; Colab
  ].find(Boolean);
  if (!declared) return null;
  return /dark|high-contrast$/.test(declared) ? true : /light/.test(declared) ? false : null;
}

/** Call back when the page changes between light and dark. Returns a function that stops this. */
export function onTheme(changed) {
  const query = window.matchMedia("(prefers-color-scheme: dark)");
  const observer = new MutationObserver(changed);
  const watched = { attributes: true, attributeFilter: ["data-jp-theme-light", "data-vscode-theme-kind", "data-theme", "theme"] };
  observer.observe(document.body, watched);
  observer.observe(document.documentElement, watched);
  query.addEventListener("change", changed);
  return () => {
    observer.disconnect();
    query.removeEventListener("change", changed);
  };
}
