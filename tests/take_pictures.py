"""Takes pictures of docs/pictures anew, in a real JupyterLab: python tests/take_pictures.py [NAME ...] [--dark].

A picture is what a cell shows when it has run, after what a reader would click. Look at each one before you commit it.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from browser import browser, page_of
from jupyter import jupyterlab
from PIL import Image

PROMPT = "When Mary and John went to the store, John gave a drink to"
CARD = ".jp-OutputArea-output .gs-card"
FOLDER = Path(__file__).parent.parent / "docs" / "pictures"
HEIGHT = 2200  # of the window: what does not fit in it is cut off
# JupyterLab's own margins beside a cell's output, in pixels.
BESIDE = 128
BELOW = 8  # pixels below what a picture ends with


@dataclass(frozen=True)
class Picture:
    """A picture: the cell that shows it, where it is on the page, and what is clicked before it is taken."""

    cell: str
    selector: str
    width: int = 1148
    prepare: Callable[[Any], object] = lambda page: None
    until: str = ""  # what the picture ends with; else it has all of what is shown


def _graph_lab(page: Any) -> None:
    page.locator(".gs-graph-lab").get_by_text("later nodes in view", exact=False).wait_for()


PICTURES = {
    "attention_view": Picture(f"t = gs.trace({PROMPT!r})\ngs.attention_view(t, layer=3, head=3)", CARD),
    "lens_view": Picture(f"gs.lens_view(gs.trace({PROMPT!r}), answer=' Mary')", CARD),
    "graph_lab": Picture(
        "graph = gs.attribution_graph('The boxes on the table', targets=gs.logit_diff(' are', ' is'), progress=False)\n"
        "graph.group('a plural subject', ['3_1031_2', '4_1031_2', '4_1116_2'])\n"
        "lab = gs.graph_lab(graph=graph, targets=gs.logit_diff(' are', ' is'), max_new_tokens=2)\n"
        "lab.scale('a plural subject', 0.0)\nlab",
        ".gs-graph-lab:not([data-gs-fallback] *)",
        prepare=_graph_lab,
        until=".gs-groups",
    ),
}


def take(names: list[str], out: Path, *, width: int | None, dark: bool) -> None:
    """Write the pictures into a folder. width: of the window; None for each picture's own."""
    with tempfile.TemporaryDirectory() as scratch, jupyterlab(Path(scratch), subshells=True) as lab, browser() as chromium:
        if dark:
            settings = Path(scratch) / "home" / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
            (settings / "themes.jupyterlab-settings").write_text(json.dumps({"theme": "JupyterLab Dark"}))
        for name in names:
            picture = PICTURES[name]
            with page_of(chromium, width=width or picture.width + BESIDE) as page:
                page.set_viewport_size({"width": width or picture.width + BESIDE, "height": HEIGHT})
                lab.write(f"{name}.ipynb", ["import gemmascope as gs\n" + picture.cell])
                lab.open(page, f"{name}.ipynb")
                lab.command(page, "application:toggle-left-area")
                lab.command(page, "notebook:run-all-cells")
                shown = page.locator(picture.selector).first
                shown.wait_for(timeout=120_000)
                picture.prepare(page)
                page.wait_for_timeout(1500)  # a canvas is drawn after its page
                shown.scroll_into_view_if_needed()
                box = shown.bounding_box()
                if picture.until:
                    last = shown.locator(picture.until).first.bounding_box()
                    box["height"] = last["y"] + last["height"] + BELOW - box["y"]
                (out / f"{name}.png").write_bytes(_of_few_colours(page.screenshot(clip=box, animations="disabled")))
                print(out / f"{name}.png")


def _of_few_colours(png: bytes) -> bytes:
    """The same picture with a palette of 256 colours, which keeps the rare ones and takes a third of the bytes."""
    with Image.open(io.BytesIO(png)) as image, io.BytesIO() as written:
        few = image.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        few.save(written, "PNG", optimize=True)
        return written.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*PICTURES, []], help="those to take; none for all")
    parser.add_argument("--out", type=Path, default=FOLDER, help="the folder; docs/pictures by default")
    parser.add_argument("--width", type=int, help="of the window, in pixels")
    parser.add_argument("--dark", action="store_true", help="in JupyterLab's dark theme")
    asked = parser.parse_args()
    take(asked.names or list(PICTURES), asked.out, width=asked.width, dark=asked.dark)


if __name__ == "__main__":
    main()
