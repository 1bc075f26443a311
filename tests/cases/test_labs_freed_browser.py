"""Labs in a real JupyterLab: each cell has one live lab, and a lab without a kernel does not look live."""

from __future__ import annotations

from typing import Any

import pytest
from browser import page_of
from jupyter import Lab

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
PATCHING = f"import gemmascope as gs\nlab = gs.patching_lab({CLEAN!r}, {CORRUPT!r}, ' Mary', ' John')\nlab"
HEADS = f"gs.head_lab({CLEAN!r}, ' Mary', ' John')"
STEERING = """\
d = gs.direction(["Mary was"], ["John was"], layer=4)
gs.steer_lab("Peter was tired because", d, strengths=(-4, 4), max_new_tokens=2)"""
GRAPH = f"gs.graph_lab({CLEAN!r}, targets=gs.logit_diff(' Mary', ' John'), max_nodes=20, max_new_tokens=2)"
RESTART = "() => { window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart(); }"
# A lab whose cell runs again is collected once the step that it computes has ended.
COUNT = """
import gc, time
from ipywidgets.widgets.widget import _instances
from gemmascope.labs.base import LabBase
n_runs = globals().get("n_runs", 0) + 1
until = time.monotonic() + 60
alive = []
while not alive or len(alive) > 2 and time.monotonic() < until:
    time.sleep(0.02)
    gc.collect()
    alive = sorted(type(one).__name__ for one in gc.get_objects() if issubclass(type(one), LabBase))
print(f"run {n_runs}: {' and '.join(alive)}, {len(_instances)} widgets")
"""
N_RUNS = 5

pytestmark = pytest.mark.nano


def output_text(page: Any, text: str) -> str:
    """The text of the output that holds this text, once it appears."""
    output = page.locator(".jp-OutputArea-output pre", has_text=text).first
    output.wait_for(state="attached", timeout=30_000)
    return str(output.text_content()).strip()


def test_a_cell_that_is_run_five_times_has_one_lab(lab: Lab, chromium: Any) -> None:
    with page_of(chromium) as page:
        lab.run(page, "freed.ipynb", [PATCHING, HEADS, COUNT])
        counts = [output_text(page, "run 1: ")]
        for n in range(2, N_RUNS + 1):
            lab.command(page, "notebook:run-all-cells")
            counts.append(output_text(page, f"run {n}: "))
        assert {one.partition(": ")[2] for one in counts} == {counts[0].partition(": ")[2]}, counts
        assert "HeadLab and PatchingLab," in counts[0]
        page.locator(".gs-lab").first.wait_for()
        assert page.locator(".gs-lab").count() == 1
        assert page.errors == []


def test_a_closed_lab_leaves_its_picture(lab: Lab, chromium: Any) -> None:
    with page_of(chromium) as page:
        lab.run(page, "closed.ipynb", [PATCHING, "lab.run()\nlab.close()\nprint('it is', lab.is_closed)"])
        assert output_text(page, "it is ") == "it is True"
        page.locator(".gs-lab").wait_for(state="detached")
        page.locator("[data-gs-fallback]").first.wait_for()
        assert page.errors == []


def test_after_a_restart_the_grid_says_that_the_kernel_is_gone(lab: Lab, chromium: Any) -> None:
    with page_of(chromium) as page:
        lab.run(page, "restarted.ipynb", [PATCHING])
        canvas = page.locator(".gs-lab canvas[role=application]").first
        canvas.wait_for(timeout=30_000)
        notice = page.locator(".gs-lab .gs-gone")
        assert notice.is_hidden()
        page.evaluate(RESTART)
        notice.wait_for(timeout=30_000)
        assert "Run this cell again" in notice.inner_text()
        assert page.evaluate("() => document.querySelector('.gs-lab canvas').closest('[inert]') !== null")
        assert float(page.evaluate("() => getComputedStyle(document.querySelector('.gs-lab .gs-panes')).opacity")) < 0.6
        page.get_by_text("Python 3 (ipykernel) | Idle", exact=True).wait_for(timeout=60_000)
        lab.command(page, "notebook:run-all-cells")
        notice.wait_for(state="hidden", timeout=60_000)
        assert page.errors == []


def test_after_a_restart_every_other_lab_says_so_too(lab: Lab, chromium: Any) -> None:
    with page_of(chromium) as page:
        lab.run(page, "all_restarted.ipynb", ["import gemmascope as gs", HEADS, STEERING, GRAPH])
        parts = {"heads": ".gs-desk", "steering": ".gs-curve", "graph": ".gs-graph-place canvas"}
        live = {name: page.locator(".gs-card", has=page.locator(part)).first for name, part in parts.items()}
        for name, card in live.items():
            card.locator(parts[name]).first.wait_for(timeout=60_000)
            assert card.locator(".gs-gone").is_hidden()
        page.evaluate(RESTART)
        for name, card in live.items():
            card.locator(".gs-gone").wait_for(timeout=30_000)
            # Not inner_text: what is scrolled away is not rendered, and has none.
            assert "Run this cell again" in card.locator(".gs-gone").text_content()
            assert card.locator(parts[name]).first.evaluate("el => el.closest('[inert]') !== null"), name
            assert card.get_attribute("aria-disabled") == "true"
        page.get_by_text("Python 3 (ipykernel) | Idle", exact=True).wait_for(timeout=60_000)
        lab.command(page, "notebook:run-all-cells")
        for card in live.values():
            card.locator(".gs-gone").wait_for(state="hidden", timeout=60_000)
            assert card.get_attribute("aria-disabled") != "true"
        assert page.errors == []
