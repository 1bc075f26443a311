"""The cells of a patching lab: what is known of each one, and which cells a request names."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gemmascope.arguments import is_whole, one_of, short_repr
from gemmascope.errors import SweepError
from gemmascope.values import Array
from gemmascope.views.sweep import ESTIMATED, EXACT, NOT_RUN, UNDER_WAY

# By the codes of cells: NOT_RUN, ESTIMATED, EXACT and UNDER_WAY.
MARKS = ("not run", "estimated", "exact", "under way")

# For each word of lab.run: whether it needs a row, and a column.
PARTS = {
    "all": (False, False), "row": (True, False), "column": (False, True), "cell": (True, True), "rectangle": (True, True),
    "estimate": (False, False),
}  # fmt: skip


class CellGrid:
    """Effects [row, column] in units of the metric, and what each number is. An estimate never hides an exact number."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.exact: Array = np.full(shape, np.nan)
        self.estimate: Array = np.full(shape, np.nan)
        self.under_way: Array = np.zeros(shape, bool)

    @property
    def values(self) -> Array:
        """The best number of each cell; NaN where there is none."""
        return np.where(np.isnan(self.exact), self.estimate, self.exact)

    @property
    def marks(self) -> Array:
        """NOT_RUN, ESTIMATED, EXACT or UNDER_WAY of each cell, uint8."""
        marks = np.where(np.isnan(self.estimate), NOT_RUN, ESTIMATED)
        marks = np.where(self.under_way, UNDER_WAY, marks)
        return np.where(np.isnan(self.exact), marks, EXACT).astype(np.uint8)

    @property
    def is_blank(self) -> bool:
        return bool(np.isnan(self.values).all())

    def copy(self) -> CellGrid:
        new = CellGrid(self.exact.shape)
        new.exact, new.estimate, new.under_way = self.exact.copy(), self.estimate.copy(), self.under_way.copy()
        return new


@dataclass(frozen=True)
class Part:
    """A part of a grid, as lab.run names it.

    what: "all" or "estimate"; "cell" (row, column); "row"; "column"; "rectangle", with row and column as (first, last), both
    included. SweepError for another word.
    """

    what: str
    row: object = None
    column: object = None

    def __post_init__(self) -> None:
        one_of(self.what, "what to run", PARTS, error=SweepError)

    @property
    def name(self) -> str:
        row, column = short_repr(self.row), short_repr(self.column)
        named = {"cell": f"cell {row}, {column}", "row": f"row {row}", "column": f"column {column}"}
        return named.get(self.what, f"{self.what} cells")

    def cells(self, shape: tuple[int, int]) -> Array:
        """Its cells, bool [row, column]. SweepError for a place outside the grid."""
        needs_row, needs_column = PARTS[self.what]
        is_range = self.what == "rectangle"
        mask = np.zeros(shape, bool)
        rows = _span("row", self.row, shape[0], is_range) if needs_row else slice(None)
        columns = _span("column", self.column, shape[1], is_range) if needs_column else slice(None)
        mask[rows, columns] = True
        return mask


def is_inside(shape: tuple[int, ...], row: object, column: object) -> bool:
    """Whether a grid of this shape has a cell there."""
    return all(is_whole(n) and 0 <= int(n) < size for n, size in zip((row, column), shape, strict=True))


def _span(name: str, place: object, size: int, is_range: bool) -> slice:
    """A place along an axis as a slice: a number, or the first and last number of a range."""
    bounds = tuple(place) if is_range and isinstance(place, (tuple, list)) else (place, place)
    if len(bounds) != 2 or not all(map(is_whole, bounds)):
        needed = "its first and last number" if is_range else "a number"
        raise SweepError(f"{name} is {needed}, counted from 0 along the grid; given {short_repr(place)}")
    numbers = [int(n) for n in bounds]
    if not all(0 <= n < size for n in numbers):
        raise SweepError(f"there is no {name} {short_repr(place)}: the grid has {size}, from 0 to {size - 1}")
    return slice(min(numbers), max(numbers) + 1)
