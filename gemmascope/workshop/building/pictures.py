"""The notebooks' expected pictures, made by running their solutions.

In a source, the cell that draws is tagged "picture"; the file is named after the notebook: solutions/images/3_patching.png.
Needs Chromium on the path, and playwright, nbclient and pillow from the test extra.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gemmascope.errors import GemmascopeError
from gemmascope.files.writing import make_folder, write_file
from gemmascope.workshop.building.notebook import SOURCES, notebook

if TYPE_CHECKING:
    from nbformat import NotebookNode
    from playwright.sync_api import Page

TAG = "picture"
MOST_BYTES = 60_000
WIDTH = 760  # of the page, in pixels
_CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome")
_PLOTLY = "application/vnd.plotly.v1+json"
_PAGE = "<!doctype html><meta charset='utf-8'><body style='margin:0;background:white'><div id='picture'>{}</div></body>"


def image_of(folder: Path, source: Path) -> Path:
    """The file of a notebook's expected picture."""
    return folder / "solutions" / "images" / f"{source.stem}.png"


def draw_pictures(folder: Path) -> list[Path]:
    """Run every solution in a folder (notebooks/) that has a picture, and write it. GemmascopeError if that fails."""
    from playwright.sync_api import sync_playwright

    written = []
    make_folder(folder / "solutions" / "images")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=_chromium(), args=["--no-sandbox", "--disable-gpu"])
        try:
            page = chromium.new_page(viewport={"width": WIDTH, "height": 800})
            for source, html in _pictures(folder):
                written.append(image_of(folder, source))
                _write(page, html, written[-1])
        finally:
            chromium.close()
    return written


def _pictures(folder: Path) -> Iterator[tuple[Path, str]]:
    """The sources that have a picture, each with its picture as a page."""
    for source in sorted((folder / SOURCES).glob("*.py")):
        solution = notebook(source, "solution")
        tagged = [cell for cell in solution.cells if TAG in cell.metadata.get("tags", [])]
        if len(tagged) > 1:
            raise GemmascopeError(f"{source}: {len(tagged)} cells are tagged {TAG!r}; a notebook has one expected picture")
        if tagged:
            _run(solution)
            yield source, _PAGE.format(_drawn(source, tagged[0]))


def _run(solution: NotebookNode) -> None:
    from nbclient import NotebookClient

    with tempfile.TemporaryDirectory() as scratch:
        NotebookClient(solution, timeout=120, resources={"metadata": {"path": scratch}}).execute()


def _drawn(source: Path, cell: NotebookNode) -> str:
    """What a cell drew, as self-contained HTML."""
    for output in cell.outputs:
        data = output.get("data", {})
        if _PLOTLY in data:
            import plotly.graph_objects as go

            figure = go.Figure(data=data[_PLOTLY]["data"], layout=data[_PLOTLY]["layout"])
            return str(figure.to_html(full_html=False, include_plotlyjs=True, config={"staticPlot": True}))
        if "text/html" in data:
            return str(data["text/html"])
    raise GemmascopeError(f"{source}: the cell tagged {TAG!r} drew no figure and no HTML")


def _write(page: Page, html: str, path: Path) -> None:
    page.set_content(html)
    page.wait_for_timeout(1000)  # a canvas is drawn after the page has loaded
    image = _of_few_colours(page.locator("#picture").screenshot(animations="disabled"))
    if len(image) > MOST_BYTES:
        raise GemmascopeError(f"{path}: the picture has {len(image)} bytes, {MOST_BYTES} at most: draw a smaller one")
    write_file(path, image)


def _of_few_colours(png: bytes) -> bytes:
    """The same picture with a palette of 128 colours, which takes a third of the bytes and looks the same."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image, io.BytesIO() as written:
        image.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(written, "PNG", optimize=True)
        return written.getvalue()


def _chromium() -> str:
    path = next(filter(None, map(shutil.which, _CHROMIUM)), None)
    if path is None:
        raise GemmascopeError(f"pictures are drawn by Chromium: none of {', '.join(_CHROMIUM)} is on the path; install one")
    return path
