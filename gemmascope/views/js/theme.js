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
  const dark = saidDark() ?? window.matchMedia("(prefers-color-scheme: dark)").matches;
  return dark ? DARK : LIGHT;
}

/** What the page says of itself, each front end in its own way; null where it says nothing. */
function saidDark() {
  const [body, whole] = [document.body.dataset, document.documentElement];
  const said = [
    body.jpThemeLight && (body.jpThemeLight === "false" ? "dark" : "light"), // JupyterLab
    body.vscodeThemeKind, // VS Code: "vscode-dark", "vscode-light", "vscode-high-contrast"
    whole.dataset.theme ?? whole.getAttribute("theme"), // pages of documentation; Colab
  ].find(Boolean);
  if (!said) return null;
  return /dark|high-contrast$/.test(said) ? true : /light/.test(said) ? false : null;
}

/** Call back when the page changes between light and dark. Returns a function that stops it. */
export function onTheme(changed) {
  const query = window.matchMedia("(prefers-color-scheme: dark)");
  const seen = new MutationObserver(changed);
  const watched = { attributes: true, attributeFilter: ["data-jp-theme-light", "data-vscode-theme-kind", "data-theme", "theme"] };
  seen.observe(document.body, watched);
  seen.observe(document.documentElement, watched);
  query.addEventListener("change", changed);
  return () => {
    seen.disconnect();
    query.removeEventListener("change", changed);
  };
}
