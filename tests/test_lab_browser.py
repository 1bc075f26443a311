"""The patching lab in a real JupyterLab: clicks compute in Python, and the page shows the results."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from browser import page_of
from jupyter import Lab

import gemmascope as gs

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
CELLS = [
    f"import gemmascope as gs\nlab = gs.patching_lab({CLEAN!r}, {CORRUPT!r}, ' Mary', ' John', at_once=False)\nlab",
]

pytestmark = pytest.mark.nano


@pytest.fixture
def page(lab: Lab, chromium: Any) -> Iterator[Any]:
    with page_of(chromium) as opened:
        lab.run(opened, "patching.ipynb", CELLS)
        opened.wait_for_selector(".gs-lab canvas[role=application]", timeout=30_000)
        yield opened
        assert opened.beyond == []
        assert opened.errors == []


def button(page: Any, name: str) -> Any:
    return page.locator(".gs-lab button").filter(has_text=re.compile(name)).first


def test_estimate_then_one_exact_cell_by_keyboard_then_all(page: Any) -> None:
    exact = gs.sweep(CLEAN, CORRUPT, gs.logit_diff(" Mary", " John"), site="resid_pre", progress=False).effect
    page.get_by_label("corrupted −11.61, clean +11.86").wait_for()
    button(page, "Estimate").click()
    button(page, "Show as table").click()
    page.locator(".gs-lab tbody td", has_text="estimate").first.wait_for(timeout=60_000)
    assert page.locator(".gs-lab tbody td", has_text="estimate").count() == 30  # the others are 0 without a run
    canvas = page.locator(".gs-lab canvas[role='application']").first
    canvas.focus()
    for key in ("Home", "PageUp", "End", "Enter"):  # the first key shows where the selection is
        canvas.press(key)
    cell = ".gs-lab tbody tr:nth-child(1) td:nth-child(16)"  # layer 5 is above, and its label comes first
    wait_until_exact(page, cell)
    assert "estimate" not in page.locator(".gs-lab .gs-tip").first.inner_text(), "what the cell says is what it holds now"
    assert number(page, cell) == pytest.approx(float(exact[5, 14]), rel=1e-3)
    assert page.locator(".gs-lab tbody td", has_text="estimate").count() == 29
    button(page, "Run all exactly").click()
    wait_until_exact(page, ".gs-lab tbody td")
    for row in range(6):
        displayed = number(page, f".gs-lab tbody tr:nth-child({6 - row}) td:nth-child(12)")
        assert displayed == pytest.approx(float(exact[row, 10]), rel=1e-3, abs=1e-4)


def wait_until_exact(page: Any, cells: str) -> None:
    page.wait_for_function(
        "cells => [...document.querySelectorAll(cells)].every(c => !/estimate|under way|not run/.test(c.innerText))",
        arg=cells,
        timeout=30_000,
    )


def number(page: Any, cell: str) -> float:
    match = re.match(r"[+−]?[\d.]+(?:e[+-]?\d+)?", page.locator(cell).first.inner_text())
    assert match
    return float(match[0].replace("−", "-"))
