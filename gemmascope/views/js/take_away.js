// What a page gives away: files that the browser saves, and text for the clipboard.

import { make } from "./page.js";

// How long a file's address stays valid after the press, in ms: a busy browser begins to save late.
const VALID_MS = 60_000;

/** Let the browser save a file. The link stands in the page, because VS Code saves what a click that reaches the body names. */
export function saveAs(name, blob) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name, hidden: true });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), VALID_MS);
}

/** Copy a text. Pages that may not use the clipboard copy from a field that is there for a moment. */
export async function copyText(root, text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const box = make("textarea", { style: "position:fixed;opacity:0" });
    box.value = text;
    root.append(box);
    box.select();
    document.execCommand("copy");
    box.remove();
  }
}
