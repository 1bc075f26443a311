// Light or dark, like the surrounding page: JupyterLab marks its body, other pages follow the browser.

export const LIGHT = {
  dark: false, ground: "#ffffff", ink: "#1a1a1a", faint: "#595959", line: "#c8c8c8", accent: "#0b5cad", warn: "#8a4b00",
  hatch: "#8f8f8f", mark: "#1a1a1a",
};
export const DARK = {
  dark: true, ground: "#111316", ink: "#ececec", faint: "#b4b4b4", line: "#4a4d52", accent: "#7db7ff", warn: "#ffc56b",
  hatch: "#85888e", mark: "#ffffff",
};

/** The colours for the page. */
export function theme() {
  const dark = declaredDark() ?? window.matchMedia("(prefers-color-scheme: dark)").matches;
  return dark ? DARK : LIGHT;
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
