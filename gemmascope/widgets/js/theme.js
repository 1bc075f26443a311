// Light or dark, as the page around is: JupyterLab says it on its body, other pages through the browser.

export const LIGHT = {
  dark: false, ground: "#ffffff", ink: "#1a1a1a", faint: "#595959", line: "#c8c8c8", accent: "#0b5cad", warn: "#8a4b00",
  hatch: "#8f8f8f", mark: "#1a1a1a",
};
export const DARK = {
  dark: true, ground: "#111316", ink: "#ececec", faint: "#b4b4b4", line: "#4a4d52", accent: "#7db7ff", warn: "#ffc56b",
  hatch: "#85888e", mark: "#ffffff",
};

/** The colours that fit the page. */
export function theme() {
  const said = document.body?.dataset?.jpThemeLight;
  if (said === "true") return LIGHT;
  if (said === "false") return DARK;
  const asked = document.documentElement.dataset.theme;
  if (asked === "dark" || asked === "light") return asked === "dark" ? DARK : LIGHT;
  return window.matchMedia("(prefers-color-scheme: dark)").matches ? DARK : LIGHT;
}

/** Call back when the page changes between light and dark. Returns a function that stops it. */
export function onTheme(changed) {
  const query = window.matchMedia("(prefers-color-scheme: dark)");
  const seen = new MutationObserver(changed);
  seen.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light"] });
  query.addEventListener("change", changed);
  return () => {
    seen.disconnect();
    query.removeEventListener("change", changed);
  };
}
