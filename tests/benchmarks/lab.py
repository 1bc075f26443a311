"""How long the labs and views take in a browser, on nano: from what is done to what is drawn.

python tests/benchmarks/lab.py        needs a Chromium on the path, and playwright and JupyterLab, as the tests do
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from browser import browser, page_of
from jupyter import jupyterlab

import gemmascope as gs

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
N = 30
# The columns of nano's grid from the first token that differs on: the others are 0 without a run. N cells are all of these.
COLUMNS = 5

# Walk over the cells that are not exact yet, from the top right one on, choose each, and wait until the box of words holds
# its exact number: milliseconds. A cell that is exact before it is chosen would measure nothing: it is an error.
CLICKS = """async ([n, columns]) => {
  const lab = document.querySelector(".gs-lab"), canvas = lab.querySelector("canvas[role=application]");
  const tip = canvas.closest(".gs").querySelector(".gs-tip");
  const frame = () => new Promise(requestAnimationFrame);
  const press = (key) => canvas.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  const isExact = () => !/estimate|not run|under way/.test(tip.textContent);
  const found = [];
  canvas.focus();
  for (const key of ["Home", "PageUp", "End"]) press(key); // the first key shows where the selection is
  for (let i = 0; i < n; i++) {
    if (i) press(i % columns === 0 ? "ArrowDown" : Math.floor(i / columns) % 2 ? "ArrowRight" : "ArrowLeft");
    if (isExact()) throw new Error(`already exact: ${tip.textContent}`);
    const start = performance.now();
    press("Enter");
    while (!isExact()) await frame();
    found.push(performance.now() - start);
    await new Promise((done) => setTimeout(done, 250));
  }
  return found;
}"""
# From an event to the end of the frame in which it is drawn: milliseconds.
HEADS = """async (n) => {
  const heads = [...document.querySelectorAll(".gs-thumb")], found = [];
  const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  for (let i = 0; i < n; i++) {
    await frame();
    const start = performance.now();
    heads[(i + 1) % heads.length].click();
    await frame();
    found.push(performance.now() - start);
  }
  return found;
}"""
HOVERS = """async (n) => {
  const canvas = document.querySelector("canvas[role=application]"), box = canvas.getBoundingClientRect(), found = [];
  const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  for (let i = 0; i < n; i++) {
    await frame();
    const start = performance.now(), at = 0.25 + (0.5 * i) / n;
    const place = { clientX: box.left + at * box.width, clientY: box.top + at * box.height, bubbles: true };
    canvas.dispatchEvent(new PointerEvent("pointermove", place));
    await frame();
    found.push(performance.now() - start);
  }
  return found;
}"""
FIRST_ROWS = """async () => {
  const all = () => document.querySelector(".gs-lab [data-gs-do=all]");
  const left = () => Number(/(\\d+) cells?/.exec(all().textContent)?.[1] ?? 0);
  const before = left(), start = performance.now();
  all().click();
  while (left() > before - 15) await new Promise(requestAnimationFrame);
  return performance.now() - start;
}"""


def main() -> None:
    rows: list[tuple[str, list[float], float]] = []
    with browser() as chromium, tempfile.TemporaryDirectory() as folder:
        with page_of(chromium) as page:
            gs.attention_view(gs.trace(CLEAN)).save(Path(folder) / "view.html")
            page.goto((Path(folder) / "view.html").as_uri())
            page.wait_for_selector("[data-gemmascope-ready]")
            rows.append(("another head, to the end of its frame", page.evaluate(HEADS, N), 50))
            rows.append(("a hover, to the end of its frame", page.evaluate(HOVERS, N), 50))
        for subshells in (True, False):
            with ExitStack() as pages, jupyterlab(Path(folder) / str(subshells), subshells=subshells) as lab:
                said = "comms over subshells" if subshells else "comms in the main thread"
                clicks = opened(pages, chromium, lab).evaluate(CLICKS, [N, COLUMNS])
                rows.append((f"a click to its exact number, {said}", clicks, 60))
                again = [opened(pages, chromium, lab).evaluate(FIRST_ROWS) for _ in range(3)]
                rows.append((f"the first fifteen cells of a whole sweep, {said}", again, 1000))
    for name, found, most in rows:
        print(
            f"{name}: median {statistics.median(found):.0f} ms of {len(found)}, most {max(found):.0f} ms (held to {most} ms)"
        )


def opened(pages: ExitStack, chromium: Any, lab: Any) -> Any:
    """A page with a patching lab about nano, quiet."""
    cell = f"import gemmascope as gs\nlab = gs.patching_lab({CLEAN!r}, {CORRUPT!r}, ' Mary', ' John', at_once=False)\nlab"
    page = pages.enter_context(page_of(chromium))
    lab.run(page, "lab.ipynb", [cell])
    page.wait_for_selector(".gs-lab canvas[role=application]", timeout=30_000)
    time.sleep(3)
    return page


if __name__ == "__main__":
    main()
