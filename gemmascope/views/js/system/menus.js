// Menus: a word in a sentence that opens a list, and the one menu behind "⋯" for everything that is taken away.

import { make } from "../page.js";
import { cut, legibleLine } from "../tokens.js";

/**
 * A word that is chosen from a list, for sentences. The list is a real select, laid over the word unseen, so keys and screen
 * readers work as everywhere. name: what is chosen, for screen readers. options: [{value, label, word?, disabled?}], or
 * strings that are both; word: what the sentence says, if not the label. changed(value).
 * Returns {element, value, update({options?, value?, disabled?})}.
 */
export function wordMenu(name, options, value, changed, { most = 40 } = {}) {
  const select = make("select", { "aria-label": name, onchange: () => { draw(); changed(select.value); } });
  const word = make("span", { "aria-hidden": "true" });
  const element = make("span", { class: "gs-word" }, word, select);
  let listed = [];
  let drawn = "";

  function draw() {
    const one = listed.find((option) => option.value === select.value);
    word.textContent = one ? cut(legibleLine(one.word ?? one.label), most) : "…";
  }
  function update({ options = listed, value = select.value, disabled = select.disabled } = {}) {
    listed = options.map((option) => (typeof option === "string" ? { value: option, label: option } : option));
    const key = JSON.stringify(listed);
    if (key !== drawn) select.replaceChildren(...listed.map((one) => make("option", { value: one.value, disabled: Boolean(one.disabled) }, legibleLine(one.label))));
    drawn = key;
    if (select.value !== value) select.value = value;
    select.disabled = disabled;
    draw();
  }
  update({ options, value });
  return { element, update, get value() { return select.value; } };
}

/**
 * The menu "⋯" of exports and Copy Python. items: [{label, act, name?, disabled?, hint?}]; name: for tests and focus.
 * Returns {element, update(items)}.
 */
export function exportMenu(items, label = "Export") {
  const list = make("div", { role: "menu", "aria-label": label, hidden: true });
  const opener = make("button", { type: "button", "aria-haspopup": "menu", "aria-expanded": "false", "aria-label": label, title: label, onclick: () => show(list.hidden) }, "⋯");
  const element = make("div", { class: "gs-menu" }, opener, list);

  function show(yes) {
    if (list.hidden === !yes) return;
    list.hidden = !yes;
    opener.setAttribute("aria-expanded", String(yes));
    const change = yes ? "addEventListener" : "removeEventListener";
    document[change]("pointerdown", outside, true);
    if (yes) list.querySelector("button:not(:disabled)")?.focus();
  }
  function outside(event) {
    if (!element.contains(event.target)) show(false);
  }
  // Entries that stay are kept: a press that begins before an update and ends after it must hit one and the same button.
  function update(items) {
    const kept = new Map([...list.children].map((button) => [button.dataset.gsDo, button]));
    const entry = ({ label, act, name = label, disabled = false, hint }) => {
      const button = kept.get(name) ?? make("button", { type: "button", role: "menuitem", tabindex: "-1", "data-gs-do": name }, label);
      Object.assign(button, { disabled, title: hint ?? "", onclick: () => { show(false); opener.focus(); act(); } });
      return button;
    };
    const entries = items.map(entry);
    if (entries.some((button, i) => list.children[i] !== button) || entries.length !== list.children.length) list.replaceChildren(...entries);
  }
  element.addEventListener("keydown", (event) => {
    const entries = [...list.querySelectorAll("button:not(:disabled)")];
    const at = entries.indexOf(document.activeElement);
    if (list.hidden) {
      if (event.key === "ArrowDown") show(true);
      else return;
    } else if (event.key === "Escape") {
      show(false);
      opener.focus();
    } else if (event.key === "Tab") return show(false);
    else {
      const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: -1 }[event.key];
      if (to === undefined) return;
      entries.at(to % entries.length)?.focus();
    }
    event.preventDefault();
    event.stopPropagation();
  });
  update(items);
  return { element, update };
}
