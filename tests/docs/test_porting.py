"""Every line of ours in the porting page's table runs on nano, and the porting notebook has and runs the same lines."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest
from test_examples import PAGES, examples

PAGE = PAGES / "guide" / "porting.md"
ROW = re.compile(r"^\| ([^|]+?) \| (.+?) \| `(.+?)` \| (.*?) ?\|$", re.MULTILINE)
ROWS = {operation: ours for operation, _, ours, _ in ROW.findall(PAGE.read_text(encoding="utf-8"))}


@cache
def names() -> dict[str, Any]:
    """What the lines of the table begin with."""
    found: dict[str, Any] = {}
    exec(next(iter(examples(PAGE))).text, found)
    return found


def test_the_table_has_a_line_for_every_operation() -> None:
    table = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert len(ROWS) == len(table) - 1  # but for the heads of the columns
    assert len(ROWS) >= 31


@pytest.mark.nano
@pytest.mark.parametrize("operation", ROWS)
def test_the_line_runs(operation: str) -> None:
    assert eval(ROWS[operation], dict(names())) is not None


def test_the_notebook_has_every_row_of_the_page() -> None:
    """It runs them itself: tests/test_notebooks.py runs its cells."""
    source = PAGES.parents[1] / "notebooks" / "teaching" / "source" / "porting_from_transformerlens.py"
    listed = source.read_text(encoding="utf-8").split('operations = """\n')[1].split('\n"""')[0].splitlines()
    page = ROW.findall(PAGE.read_text(encoding="utf-8"))
    assert [line.split(" | ") for line in listed] == [
        [operation, theirs.replace("`", ""), ours, notes.replace("`", "") or "-"] for operation, theirs, ours, notes in page
    ]
