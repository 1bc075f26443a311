// How a lab's page talks to Python: requests go as messages, values come as traits. Some front ends drop what Python pushes
// from a thread, so the page polls while the lab is busy, one poll at a time. A page that begins may hold older values, as
// where a notebook is opened again beside its kernel: it polls once. In Colab a cell's output receives nothing but answers to
// its own messages, so there the page goes on polling, slowly, for what other cells change. A request, such as for a file, has
// a number, which its answer has as well: one whose answer did not come before that to a later poll was lost, and is sent again.

import { make } from "./page.js";
import { presses } from "./press.js";

const POLL_MS = 120;
const IDLE_POLL_MS = 1500;
const SILENT_MS = 4000;
const MOST_TRIES = 5; // of a request
const HEARS_ONLY_ANSWERS = () => Boolean(globalThis.google?.colab) && document.visibilityState === "visible";
// JupyterLab's mark on widgets whose kernel was restarted, or ended.
const DISCONNECTED = ".jupyter-widgets-disconnected";
const AGAIN = "Run this cell again";
const GONE = `The kernel was restarted or has ended. ${AGAIN}: what is seen here is the last that was known, and clicks do nothing.`;
const QUIET = "No answer from the kernel yet: it is busy, or gone. If this stays, run this cell again; what is seen is the last that was known.";

/**
 * traits: their changes are what Python says; changed(): draw them. poll(): what the page sends with a poll. onMessage(message):
 * called with messages of other types, and with {type: "lost"} for a request that is given up. status: a line of the page. A notice at the top of the page says when the kernel does
 * not answer; once it never will, as after a restart, the page takes no more clicks.
 */
export function talk(model, traits, status, { changed, poll, onMessage = () => {} }) {
  let sentAt = 0;
  let receivedAt = 0;
  let polledAt = 0; // 0 while no poll is unanswered
  let answeredAt = 0; // 0 before the first answer
  let patience = 2 * SILENT_MS; // after so long another poll is sent: an answer may be lost
  let isSilent = false;
  let isStale = false; // whether changed() is to be called
  let cannotSend = false;
  let isGone = false;
  let nRequests = 0;
  const requests = new Map(); // those without an answer, by their numbers: {message, sentAt, tries}
  const root = status.closest(".gs");
  const notice = make("div", { class: "gs-gone", role: "alert", hidden: true });
  root.prepend(notice);
  const pressed = presses(root);

  function receive() {
    receivedAt = performance.now();
    if (isStale) return;
    isStale = true;
    queueMicrotask(draw);
  }
  function draw() {
    if (pressed.hold(draw)) return;
    isStale = false;
    changed();
  }
  function showNotice() {
    const text = isGone ? `⛔ ${GONE}` : isSilent ? `⚠ ${QUIET}` : "";
    notice.hidden = !text;
    if (notice.textContent !== text) notice.textContent = text;
    root.classList.toggle("gs-cut-off", isGone);
    root.setAttribute("aria-disabled", String(isGone));
    for (const part of root.children) if (part !== notice) part.inert = isGone;
    root.title = isGone ? AGAIN : ""; // what the pointer is told over every button, as those that are inert say nothing
    if (isGone) sayAgain();
  }
  /** The button that promises most says what is to be done, also after a theme has drawn it anew. */
  function sayAgain() {
    for (const one of root.querySelectorAll("button.gs-primary")) if (one.textContent !== AGAIN) one.textContent = AGAIN;
  }
  function setSilent(silent) {
    if (silent === isSilent) return;
    isSilent = silent;
    showNotice();
  }
  function checkConnection() {
    const gone = cannotSend || root.closest(DISCONNECTED) !== null;
    if (gone === isGone) return;
    isGone = gone;
    showNotice();
  }
  function post(message) {
    try {
      model.send(message);
    } catch {
      cannotSend = true;
      checkConnection();
    }
  }
  function ask(request) {
    request.tries += 1;
    request.sentAt = performance.now();
    post(request.message);
  }
  /** Messages are answered in their order: what was sent before a poll that has its answer, and has none, was lost. */
  function askAgain(pollSentAt) {
    for (const [number, request] of requests) {
      if (request.sentAt >= pollSentAt) continue;
      if (request.tries < MOST_TRIES) ask(request);
      else {
        requests.delete(number);
        onMessage({ type: "lost" });
      }
    }
  }
  const timer = setInterval(() => {
    const now = performance.now();
    checkConnection();
    if (isGone) return sayAgain();
    const isWaiting = model.get("state").busy || sentAt > receivedAt || requests.size > 0;
    if (polledAt && isWaiting && now - Math.max(polledAt, sentAt) > SILENT_MS) setSilent(true);
    if (polledAt && now - polledAt < patience) return;
    const isDue = isWaiting ? now - Math.max(receivedAt, sentAt) >= POLL_MS : !answeredAt || (HEARS_ONLY_ANSWERS() && now - answeredAt >= IDLE_POLL_MS);
    if (!isDue) return;
    if (polledAt) patience *= 2;
    polledAt = now;
    post({ type: "poll", ...poll() });
  }, POLL_MS);
  function receiveMessage(message) {
    if (message.request !== undefined && !requests.delete(message.request)) return; // its first answer came late, not never
    if (message.type !== "polled") return onMessage(message);
    if (!message.busy) receivedAt = Math.max(receivedAt, polledAt);
    askAgain(polledAt);
    polledAt = 0;
    answeredAt = performance.now();
    patience = 2 * SILENT_MS;
    setSilent(false);
  }
  for (const trait of traits) model.on(`change:${trait}`, receive);
  model.on("msg:custom", receiveMessage);
  return {
    send(type, more = {}) {
      sentAt = performance.now();
      post({ type, ...more });
    },
    /** Send a message that Python answers with one of its own, again and again until that comes. */
    request(type, more = {}) {
      sentAt = performance.now();
      const number = ++nRequests;
      const request = { message: { type, ...more, request: number }, tries: 0, sentAt };
      requests.set(number, request);
      ask(request);
    },
    stop() {
      clearInterval(timer);
      pressed.stop();
      notice.remove();
      for (const trait of traits) model.off(`change:${trait}`, receive);
      model.off("msg:custom", receiveMessage);
    },
  };
}
