// How a lab's page talks to Python: wishes go as messages, what is known comes as traits. What Python pushes from a thread
// may not arrive everywhere, so the page asks ("poll") while something is under way: one question at a time.

const ASK_MS = 120;
const SILENT_MS = 4000;

/**
 * traits: what is told by; changed(): draw them anew. poll(): what goes with a question. heard(message): of any other kind.
 * status: where it is said that the kernel has not answered for a while.
 */
export function talk(model, traits, status, { changed, poll, heard = () => {} }) {
  let asked = 0;
  let polling = 0;
  let arrived = 0;
  let silent = false;
  let stale = false;

  function came() {
    arrived = performance.now();
    if (stale) return;
    stale = true;
    queueMicrotask(() => {
      stale = false;
      changed();
    });
  }
  function fall(quiet) {
    if (quiet !== silent) status.textContent = quiet ? "The kernel is busy or gone: this is the last that was known." : "";
    silent = quiet;
  }
  const timer = setInterval(() => {
    const now = performance.now();
    if (polling && now - polling > SILENT_MS) fall(true);
    const waits = model.get("state").busy || asked > arrived;
    if (polling || !waits || now - Math.max(arrived, asked) < ASK_MS) return;
    polling = now;
    model.send({ type: "poll", ...poll() });
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
      model.send({ type, ...more });
    },
    stop() {
      clearInterval(timer);
      for (const trait of traits) model.off(`change:${trait}`, came);
      model.off("msg:custom", listen);
    },
  };
}
