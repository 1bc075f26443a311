// How a lab's page talks to Python: wishes go as messages, what is known comes as traits. What Python pushes from a thread
// may not arrive everywhere, so the page asks ("poll") while something is under way: one question at a time.

import { make } from "./page.js";

const ASK_MS = 120;
const SILENT_MS = 4000;
// What a front end says of widgets whose kernel was started anew, or ended.
const CUT_OFF = ".jupyter-widgets-disconnected";
const GONE = "No answer from the kernel. Run the cell again: what is seen here is the last that was known, and clicks do nothing.";
const QUIET = "No answer from the kernel yet: it is busy, or gone. If this stays, run the cell again; what is seen is the last that was known.";

/**
 * traits: what is told by; changed(): draw them anew. poll(): what goes with a question. heard(message): of any other kind.
 * status: a part of the page, above which it is said that the kernel does not answer; where it never will again, as after a
 * restart, the page takes no more clicks.
 */
export function talk(model, traits, status, { changed, poll, heard = () => {} }) {
  let asked = 0;
  let polling = 0;
  let arrived = 0;
  let silent = false;
  let stale = false;
  let closed = false;
  let gone = false;
  const root = status.closest(".gs");
  const notice = make("div", { class: "gs-gone", role: "alert", hidden: true });
  root.prepend(notice);

  function came() {
    arrived = performance.now();
    if (stale) return;
    stale = true;
    queueMicrotask(() => {
      stale = false;
      changed();
    });
  }
  function say() {
    const words = gone ? `⛔ ${GONE}` : silent ? `⚠ ${QUIET}` : "";
    notice.hidden = !words;
    if (notice.textContent !== words) notice.textContent = words;
    root.classList.toggle("gs-cut-off", gone);
    root.setAttribute("aria-disabled", String(gone));
    for (const part of root.children) if (part !== notice) part.inert = gone;
  }
  function fall(quiet) {
    if (quiet === silent) return;
    silent = quiet;
    say();
  }
  function look() {
    const now = closed || root.closest(CUT_OFF) !== null;
    if (now === gone) return;
    gone = now;
    say();
  }
  function tell(message) {
    try {
      model.send(message);
    } catch {
      closed = true; // there is nobody to send to
      look();
    }
  }
  const timer = setInterval(() => {
    const now = performance.now();
    look();
    if (gone) return;
    if (polling && now - polling > SILENT_MS) fall(true);
    const waits = model.get("state").busy || asked > arrived;
    if (polling || !waits || now - Math.max(arrived, asked) < ASK_MS) return;
    polling = now;
    tell({ type: "poll", ...poll() });
  }, ASK_MS);
  function listen(message) {
    if (message.type !== "polled") return heard(message);
    if (!message.busy) arrived = Math.max(arrived, polling);
    polling = 0;
    fall(false);
  }
  for (const trait of traits) model.on(`change:${trait}`, came);
  model.on("msg:custom", listen);
  return {
    send(type, more = {}) {
      asked = performance.now();
      tell({ type, ...more });
    },
    stop() {
      clearInterval(timer);
      notice.remove();
      for (const trait of traits) model.off(`change:${trait}`, came);
      model.off("msg:custom", listen);
    },
  };
}
