// The field in which a node or a group is named.

import { make } from "../page.js";

/** changed(text) is called with Enter, or when the field is left with another text. A notebook's keys do nothing in it. */
export function nameField(text, label, changed, attributes = {}) {
  let present = text;
  const commit = () => {
    if (element.value === present) return;
    present = element.value;
    changed(present.trim());
  };
  const onkeydown = (event) => {
    event.stopPropagation();
    if (event.key === "Enter") commit();
  };
  const element = make("input", { type: "text", value: text, "aria-label": label, maxlength: 80, "data-lm-suppress-shortcuts": "true", onchange: commit, onkeydown, ...attributes });
  return element;
}
