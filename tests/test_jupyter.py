"""Views in a real JupyterLab: drawn, saved, opened again without a kernel, and with the network stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import page_of
from jupyter import Lab, jupyterlab

CELLS = [
    "import gemmascope as gs\nt = gs.trace('When Mary and John went to the store, John gave a drink to')",
    "gs.attention_view(t, layer=3, head=1)",
    "gs.lens_view(t, answer=' Mary')",
    "gs.stream_view(t, answer=' Mary', against=' John')",
]


@pytest.fixture(scope="module")
def lab(chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with jupyterlab(tmp_path_factory.mktemp("lab"), subshells=True) as running:
        yield running


@pytest.mark.nano
def test_views_are_drawn_saved_and_seen_again_without_a_kernel(lab: Lab, chromium: Any) -> None:
    with page_of(chromium) as page:
        lab.run(page, "views.ipynb", CELLS)
        page.wait_for_function("document.querySelectorAll('[data-gs][data-gemmascope-ready]').length === 3", timeout=60_000)
        page.get_by_role("button", name="layer 3, head 2").click()
        page.get_by_text("Layer 3 (global), head 2").wait_for()
        lab.command(page, "docmanager:save")
        saved = _saved(lab.folder / "views.ipynb", page)
        assert page.beyond == []
        assert page.errors == []
    assert len(json.dumps(saved)) < 1_000_000
    with page_of(chromium, scheme="dark") as page:
        lab.open(page, "views.ipynb", kernel=False)
        page.wait_for_function("document.querySelectorAll('[data-gs][data-gemmascope-ready]').length === 3", timeout=30_000)
        assert page.beyond == []


def _saved(path: Path, page: Any) -> Any:
    """The notebook once its outputs are in its file."""
    for _ in range(600):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        outputs = [cell["outputs"] for cell in notebook["cells"]]
        if outputs[-1]:
            assert all("text/html" in output[0]["data"] for output in outputs[1:4])
            return notebook
        page.wait_for_timeout(100)
    raise AssertionError("the notebook was not saved with its outputs")
