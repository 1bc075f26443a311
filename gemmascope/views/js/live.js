// What the page of every live lab has: its root, the list of models, an error and a status line, the talk with Python, and the page's theme.

import { modelList } from "./models.js";
import { make, paint } from "./page.js";
import { card } from "./system/card.js";
import { copyText } from "./take_away.js";
import { talk } from "./talk.js";
import { onTheme, theme } from "./theme.js";
import { readable } from "./tokens.js";

const LIVE_STYLE = `
.gs-remark{margin:4px 0;padding:0 8px;border-left:4px solid var(--gs-warn)}
.gs-remark b{font-size:12px}
`;

// What the status line says where a request has no answer: it was lost, or it was about settings that have changed.
const UNANSWERED = { lost: "the answer did not arrive: try again, or use the lab in Python", late: "the settings changed meanwhile: try again" };

/**
 * A lab's page in el: {root, error, status, send, request, copy, copyButton, start}. error and status are lines that the lab puts where it
 * wants them. While the page is there, the lab's static fallback is hidden.
 */
export function livePage({ model, el }, style = "") {
  const root = card(el);
  root.append(make("style", {}, `${LIVE_STYLE}${style}[data-gs-fallback="${model.get("fallback")}"]{display:none}`));
  const error = make("div", { class: "gs-remark gs-error", role: "alert", hidden: true });
  const status = make("div", { class: "gs-note gs-status", role: "status", "aria-live": "polite" });
  let talking = null;
  const models = modelList((type, more = {}) => talking.send(type, more));
  root.append(models.element);

  async function copy() {
    await copyText(root, model.get("state").code);
    status.textContent = "the Python of this experiment was copied";
  }
  function showError(text) {
    error.hidden = !text;
    error.replaceChildren(make("b", {}, "⛔ error "), readable(text ?? ""));
  }

  return {
    root,
    error,
    status,
    /** Send Python a message. */
    send: (type, more = {}) => talking.send(type, more),
    /** Send Python a message that it answers, such as for a file; sent again if the answer is lost. */
    request: (type, more = {}) => talking.request(type, more),
    /** Copy the lab's Python. */
    copy,
    /** A button that copies the lab's Python. */
    copyButton: (attributes = {}) => button("Copy Python", copy, attributes),
    /** Begin: draw(state) draws the traits, now and whenever one changes; onMessage(message) receives what Python sends. Returns stop(). */
    start(traits, draw, { onMessage = () => {}, stopped = () => {} } = {}) {
      function refresh() {
        const state = model.get("state");
        showError(state.error);
        models.update(model.get("choice"));
        draw(state);
        Object.assign(el.dataset, { gemmascopeReady: "1", gemmascopeBusy: String(state.busy), gemmascopeNumber: String(state.number) });
      }
      const poll = () => ({ number: model.get("state").number, pictures: model.get("pictures")?.number });
      const heard = (message) => (UNANSWERED[message.type] ? (status.textContent = UNANSWERED[message.type]) : onMessage(message));
      talking = talk(model, [...traits, "choice"], status, { changed: refresh, poll, onMessage: heard });
      const painted = () => {
        paint(root, theme());
        refresh(); // samples of colours and small pictures are drawn for a theme
      };
      const stopTheme = onTheme(painted);
      painted();
      return () => {
        talking.stop();
        stopTheme();
        stopped();
      };
    },
  };
}

export function button(label, onclick, attributes = {}) {
  return make("button", { type: "button", onclick, ...attributes }, label);
}

/** Control+Z anywhere but in a text field calls act("undo"), with Shift act("redo"). */
export function undoKeys(root, act) {
  root.addEventListener("keydown", (event) => {
    if (!(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z" || event.target.type === "text") return;
    event.preventDefault();
    event.stopPropagation();
    act(event.shiftKey ? "redo" : "undo");
  });
}

/** Draw a part of the page if what it shows has changed. */
export function drawIfChanged(element, content, draw) {
  const key = JSON.stringify(content);
  if (element.dataset.drawn === key) return;
  element.dataset.drawn = key;
  draw();
}
