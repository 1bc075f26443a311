// Text into the clipboard.

import { make } from "./page.js";

/** Copy a text, and then say so in status. Pages that may not use the clipboard copy from a field that is there for a moment. */
export async function copied(root, text, status, said) {
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
  status.textContent = said;
}
