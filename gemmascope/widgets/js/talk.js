// How a lab's page talks to Python: wishes go as messages, what is known comes as traits. What Python pushes from a thread
// may not arrive everywhere, so the page asks ("poll") while something is under way: one question at a time.

const ASK_MS = 120;
const QUIET_MS = 4000;

/** changed(): draw the state anew. silent(is): the kernel has not answered for a while, or has again. */
export function talk(model, changed, silent) {
  let asked = 0;
  let polling = 0;
  let arrived = 0;
  let quiet = false;
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
  function say(is) {
    if (is !== quiet) silent((quiet = is));
  }
  const timer = setInterval(() => {
    const now = performance.now();
    if (polling && now - polling > QUIET_MS) say(true);
    const waits = model.get("state").busy || asked > arrived;
    if (polling || !waits || now - Math.max(arrived, asked) < ASK_MS) return;
    polling = now;
    model.send({ type: "poll", number: model.get("state").number, pictures: model.get("pictures").number });
  }, ASK_MS);
  function heard(message) {
    if (message.type !== "polled") return;
    if (!message.busy) arrived = Math.max(arrived, polling);
    polling = 0;
    say(false);
  }
  model.on("change:state", came);
  model.on("change:pictures", came);
  model.on("msg:custom", heard);
  return {
    send(type, more = {}) {
      asked = performance.now();
      model.send({ type, ...more });
    },
    stop() {
      clearInterval(timer);
      model.off("change:state", came);
      model.off("change:pictures", came);
      model.off("msg:custom", heard);
    },
  };
}
