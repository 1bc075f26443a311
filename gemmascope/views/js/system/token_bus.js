// Lights a token in all parts of a view, and in the other views of the same prompt on the page, while one part points at it.
//
// Views on a page share no variables, so they talk by events of the document. Where a front end gives each cell a page of its
// own, as Colab does, only the parts of one view are linked.

const EVENT = "gemmascope:token";

/**
 * The bus of one view. prompts: lists of token texts; positions are the same in all of them. Returns
 *   point(pos | null)   a position is pointed at; null: none
 *   pin(pos | null)     a position is kept lit; pinning it again lets go
 *   wire(element, pos, shown?)  point and pin by an element, which is lit (class gs-lit) and marked (gs-pinned), or shown in its place
 *   on(drawn)           call drawn({at, pinned}) at each change, for canvases; returns a function that stops this
 *   state()             {at, pinned}
 *   stop()
 * wire returns a function that stops it.
 */
export function tokenBus(...prompts) {
  const keys = new Set(prompts.map((tokens) => tokens.join("\u0000")));
  const state = { at: null, pinned: null };
  const listeners = new Set();

  function receive({ detail }) {
    if (!detail.keys.some((key) => keys.has(key))) return;
    state.at = detail.at;
    state.pinned = detail.pinned;
    for (const drawn of listeners) drawn({ ...state });
  }
  function tell(change) {
    const next = { ...state, ...change };
    if (next.at === state.at && next.pinned === state.pinned) return;
    document.dispatchEvent(new CustomEvent(EVENT, { detail: { keys: [...keys], ...next } }));
  }
  const point = (pos) => tell({ at: pos });
  const pin = (pos) => tell({ pinned: pos === state.pinned ? null : pos });
  function on(drawn) {
    listeners.add(drawn);
    return () => listeners.delete(drawn);
  }
  function wire(element, pos, shown = element) {
    const [enter, leave, click] = [() => point(pos), () => point(null), () => pin(pos)];
    element.addEventListener("pointerenter", enter);
    element.addEventListener("pointerleave", leave);
    element.addEventListener("click", click);
    const light = ({ at, pinned }) => {
      shown.classList.toggle("gs-lit", at === pos);
      shown.classList.toggle("gs-pinned", pinned === pos);
    };
    light(state);
    const stop = on(light);
    return () => {
      stop();
      element.removeEventListener("pointerenter", enter);
      element.removeEventListener("pointerleave", leave);
      element.removeEventListener("click", click);
    };
  }
  document.addEventListener(EVENT, receive);
  return {
    point,
    pin,
    wire,
    on,
    state: () => ({ ...state }),
    stop() {
      document.removeEventListener(EVENT, receive);
      listeners.clear();
    },
  };
}
