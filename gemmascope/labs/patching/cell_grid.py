"""Boards: what a lab knows of every cell of a grid - nothing, an estimate, that it is under way, or an exact number."""

from __future__ import annotations

from typing import Any

import numpy as np

from gemmascope.arguments import is_whole, one_of, shown
from gemmascope.errors import SweepError
from gemmascope.sweeps.result import Array

# What a cell's number is. The widgets' module draws these.
NOT_RUN, ESTIMATED, EXACT, UNDER_WAY = 0, 1, 2, 3
MARKS = ("not run", "estimated", "exact", "under way")


class CellGrid:
    """Effects [row, column], in units of the metric, and what each is. An estimate never hides an exact number."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.exact: Array = np.full(shape, np.nan)
        self.estimate: Array = np.full(shape, np.nan)
        self.under_way: Array = np.zeros(shape, bool)

    @property
    def values(self) -> Array:
        """The best number of each cell; NaN for none."""
        return np.where(np.isnan(self.exact), self.estimate, self.exact)

    @property
    def marks(self) -> Array:
        """NOT_RUN, ESTIMATED, EXACT or UNDER_WAY of each cell, uint8."""
        known = np.where(np.isnan(self.estimate), NOT_RUN, ESTIMATED)
        known = np.where(self.under_way, UNDER_WAY, known)
        return np.where(np.isnan(self.exact), known, EXACT).astype(np.uint8)

    @property
    def is_blank(self) -> bool:
        return bool(np.isnan(self.values).all())

    def copy(self) -> CellGrid:
        new = CellGrid(self.exact.shape)
        new.exact, new.estimate, new.under_way = self.exact.copy(), self.estimate.copy(), self.under_way.copy()
        return new


def cells_of(shape: tuple[int, int], what: str, row: Any = None, column: Any = None) -> Array:
    """Which cells are meant, bool [row, column].

    what: "all"; "cell" (row, column); "row"; "column"; "rectangle", row and column then being (first, last), both in it.
    SweepError for a place outside the grid, or another word.
    """
    n_rows, n_columns = shape
    wanted = {
        "all": (False, False), "row": (True, False), "column": (False, True), "cell": (True, True), "rectangle": (True, True)
    }  # fmt: skip
    one_of(what, "what to run", (*wanted, "estimate"), error=SweepError)
    needs_row, needs_column = wanted[what]
    mask = np.zeros(shape, bool)
    rows = _span("row", row, n_rows, what == "rectangle") if needs_row else slice(None)
    columns = _span("column", column, n_columns, what == "rectangle") if needs_column else slice(None)
    mask[rows, columns] = True
    return mask


def _span(name: str, given: Any, size: int, two: bool) -> slice:
    ends = tuple(given) if two and isinstance(given, (tuple, list)) else (given, given)
    if len(ends) != 2 or not all(map(is_whole, ends)):
        wanted = "its first and last number" if two else "a number"
        raise SweepError(f"{name} is {wanted}, counted from 0 along the grid; given {shown(given)}")
    if not all(0 <= int(n) < size for n in ends):
        raise SweepError(f"there is no {name} {shown(given)}: the grid has {size}, from 0 to {size - 1}")
    return slice(min(map(int, ends)), max(map(int, ends)) + 1)
