// A press lasts some tenths of a second. What a page draws meanwhile may take the pressed button, or the pressed grid, out of
// the page, and the browser then forgets the click. So nothing is drawn while something is pressed.

const MOST_MS = 3000; // a drag that goes on for longer sees what changes

/** Watches presses of the main button in root, but for those of fields, which are not drawn anew. Returns {hold, stop}. */
export function presses(root) {
  let heldSince = null;
  let due = null; // what to call once nothing is pressed any more
  let timer = 0;

  const isHeld = () => heldSince !== null && performance.now() - heldSince < MOST_MS;
  function press(event) {
    if (event.button === 0 && !event.target.closest?.("input, select, textarea")) heldSince = performance.now();
  }
  /** The click comes with the release, before any timer. */
  function release() {
    if (heldSince === null) return;
    heldSince = null;
    setTimeout(act);
  }
  const move = (event) => event.buttons & 1 || release(); // it was let go of where the page hears nothing
  function act() {
    clearTimeout(timer);
    const now = due;
    due = null;
    now?.();
  }

  root.addEventListener("pointerdown", press, true);
  const ends = ["pointerup", "pointercancel", "dragend"];
  for (const name of ends) window.addEventListener(name, release, true);
  window.addEventListener("blur", release); // of the window alone: that of a field that is left does not come up here
  window.addEventListener("pointermove", move, true);
  return {
    /** Call draw() once nothing is pressed: whether that is later, and not now. The latest one counts. */
    hold(draw) {
      if (!isHeld()) return false;
      if (!due) timer = setTimeout(act, MOST_MS);
      due = draw;
      return true;
    },
    stop() {
      clearTimeout(timer);
      root.removeEventListener("pointerdown", press, true);
      for (const name of ends) window.removeEventListener(name, release, true);
      window.removeEventListener("blur", release);
      window.removeEventListener("pointermove", move, true);
    },
  };
}
