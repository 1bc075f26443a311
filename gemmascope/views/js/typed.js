// A setting that is typed in a sentence: it looks like a word until it is pointed at.

import { make } from "./page.js";
import { legibleLine } from "./tokens.js";

export const TYPED_STYLE = `
.gs .gs-typed{font:inherit;font-weight:600;color:var(--gs-accent);background:transparent;border:0;border-bottom:1px solid currentColor;border-radius:0;padding:0 2px;min-height:0;line-height:18px;max-width:100%;field-sizing:content;min-width:5ch}
.gs .gs-typed:hover{background:var(--gs-pane)}
.gs .gs-typed::placeholder{color:var(--gs-faint);font-weight:400;opacity:1}
.gs .gs-typed-wide{width:100%;font-weight:400;color:inherit;border-bottom-color:var(--gs-line);field-sizing:fixed}
`;

export const MESSAGES_STYLE = `
.gs-prompt{grid-column:1/-1;order:1}
@container (max-width:899px){.gs-strip:has(>.gs-prompt)>:is(.gs-aside,.gs-strip-end){order:2}}
.gs-effect{display:grid;grid-template-columns:max-content minmax(0,max-content);gap:0 16px;align-items:baseline;min-width:288px;font-size:12px;line-height:16px}
.gs-effect .gs-big{grid-row:span 2;min-width:96px;text-align:right}
@container (max-width:559px){.gs-strip:has(.gs-effect)>:is(.gs-aside,.gs-strip-end){grid-column:1/-1}.gs-strip .gs-effect{min-width:0}}
@container (max-width:899px){.gs-strip .gs-effect .gs-big{text-align:left;min-width:0}}
.gs-messages{display:grid;min-height:36px;padding:4px 24px 0}
.gs-messages>*{grid-area:1/1;margin:0;max-height:36px;overflow:auto;font-size:12px;line-height:16px}
.gs-strip>.gs-messages{grid-column:1/-1;order:3;min-height:16px;padding:0;margin-top:-4px}
.gs-strip>.gs-messages>*{max-height:32px;min-height:16px}
.gs-messages>.gs-error:not([hidden])~*{visibility:hidden}
`;

/**
 * name: the setting; label: for screen readers; send(name, text): called with Enter, or when the field is left with another
 * text. Escape brings the present setting back. Returns {element, update(text)}; a text that is being typed is left alone.
 */
export function typedField(name, label, send, { wide = false, placeholder = "" } = {}) {
  let present = "";
  const element = make("input", { type: "text", class: `gs-typed${wide ? " gs-typed-wide" : ""}`, "aria-label": label, placeholder, "data-gs-do": name, spellcheck: "false", autocomplete: "off", "data-lm-suppress-shortcuts": "true" });
  const show = () => {
    element.value = present;
    if (!wide) element.size = Math.max(6, Array.from(present || placeholder).length + 1);
    element.title = legibleLine(present);
  };
  const commit = () => {
    if (element.value === present) return;
    present = element.value;
    send(name, element.value);
  };
  element.addEventListener("change", commit);
  element.addEventListener("keydown", (event) => {
    if (event.key === "Escape") show();
    if (event.key === "Enter") commit();
    event.stopPropagation();
  });
  return {
    element,
    update(text) {
      const isTyping = document.activeElement === element && element.value !== present;
      if (text === present && element.value === text) return;
      present = text;
      if (!isTyping) show();
    },
  };
}
