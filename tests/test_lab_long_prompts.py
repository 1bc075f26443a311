"""The patching lab of a long prompt in a real JupyterLab: what folds, where it opens, and what is printed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from browser import page_of
from jupyter import jupyterlab
from lab_page import CLEAN, CORRUPT, is_exact, press, table, wait_for

import gemmascope as gs

BEFORE = "Then the man went to the park and the dog ran to the river. " * 6
LONG = (
    f"import gemmascope as gs\nlab = gs.patching_lab({BEFORE + CLEAN!r}, {BEFORE + CORRUPT!r}, ' Mary', ' John', "
    "at_once=False)\nlab"
)
# Whether the head of the first token that differs lies within what is seen of the grid.
IN_SIGHT = """() => {
  const wide = document.querySelector(".gs-lab .gs-wide").getBoundingClientRect();
  const head = document.querySelector(".gs-heads button.gs-differs")?.getBoundingClientRect();
  return Boolean(head) && head.left >= wide.left && head.right <= wide.right;
}"""
# What would be printed of a lab: visible buttons that are no part of the prompts or runs, fields, and scroll bars.
PRINTED = """() => {
  const seen = (one) => one.checkVisibility() && one.getBoundingClientRect().height > 0;
  const all = [...document.querySelectorAll(".gs-lab, .gs-lab *")].filter(seen);
  const controls = "button:not(.gs-tok,.gs-run,.gs-folded,[aria-pressed=true]),input,progress,select:not(.gs-word *)";
  const scrolls = (one) => /auto|scroll/.test(getComputedStyle(one).overflow) && one.scrollWidth > one.clientWidth + 1;
  return all.filter((one) => one.matches(controls) || scrolls(one)).map((one) => one.outerHTML.slice(0, 120));
}"""

pytestmark = pytest.mark.nano


@pytest.fixture(scope="module")
def page(chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with jupyterlab(tmp_path_factory.mktemp("lab"), subshells=True) as running, page_of(chromium) as opened:
        running.run(opened, "long.ipynb", [LONG])
        opened.locator(".gs-lab .gs-folded").wait_for(timeout=60_000)
        yield opened
        assert (opened.beyond, opened.errors) == ([], [])


def test_what_is_alike_folds_and_unfolds_at_the_first_difference(page: Any) -> None:
    model = gs.load()
    clean, corrupt = (model.ids(BEFORE + prompt).tolist() for prompt in (CLEAN, CORRUPT))
    first = next(i for i, (a, b) in enumerate(zip(clean, corrupt, strict=True)) if a != b)
    fold = page.locator(".gs-lab .gs-folded")
    n_folded = first - 4  # the first token and three before the difference stay
    assert fold.inner_text() == f"… {n_folded} alike"
    assert fold.evaluate("el => el.scrollHeight <= el.clientHeight && el.scrollWidth <= el.clientWidth"), (
        "the label is whole"
    )
    press(page, "Show as table")
    wait_for(page, lambda: len(table(page)) == model.n_layers and len(table(page)[0]) == len(clean) - n_folded + 1)
    fold.click()
    wait_for(page, lambda: len(table(page)[0]) == len(clean) if table(page) else False)
    page.wait_for_function(IN_SIGHT)
    assert page.locator(".gs-lab .gs-wide").evaluate("el => el.scrollWidth > el.clientWidth"), "a page too long to be seen"
    assert all(is_exact(cell) == (pos < first) for row in table(page) for pos, cell in enumerate(row))
    page.get_by_role("button", name="Fold what is alike").click()
    fold.wait_for()
    page.wait_for_function(IN_SIGHT)


def test_a_printed_lab_has_neither_buttons_nor_scroll_bars(page: Any) -> None:
    assert page.evaluate(PRINTED) != [], "on the screen it has"
    page.emulate_media(media="print")
    wait_for(page, lambda: page.evaluate(PRINTED) == [])
    page.emulate_media(media="screen")
