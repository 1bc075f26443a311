"""The cells of a sweep that are still to be run: their runs, what they cost, and chunks of them for one pass each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

from gemmascope.edits.edit import BoundEdit
from gemmascope.sweeps.grid import Cell
from gemmascope.sweeps.pairs import Pair
from gemmascope.values import Array


class Run(Protocol):
    """A run that waits for a pass. n_rows: how many rows it takes there."""

    @property
    def n_rows(self) -> int: ...


RunT = TypeVar("RunT", bound=Run)

# Makes the edits of a cell's run; none for a cell that cannot be run.
EditsOf = Callable[[Cell], tuple[BoundEdit, ...]]


@dataclass(frozen=True)
class CellRun:
    """The run of one cell: the number of its pair, its own in the grid, its edits, and how many rows it takes in a pass."""

    pair: int
    number: int
    edits: tuple[BoundEdit, ...]
    n_rows: int


class PendingCell(NamedTuple):
    """A cell without a value: the number of its pair, its own in the grid, and what it edits."""

    pair: int
    number: int
    cell: Cell


@dataclass(frozen=True)
class Cost:
    """What cells take: how many there are, the rows of their runs, and those rows times the layers they go through."""

    n_cells: int = 0
    n_rows: int = 0
    row_layers: int = 0


def cost_of(pair: Pair, cell: Cell) -> Cost:
    """What one cell takes; nothing where it cannot be run."""
    layers = pair.grid.layers_of(cell)
    if not layers:
        return Cost()
    positions = cell[pair.grid.row_axis]
    if max(positions) < pair.values.unchanged_before:  # what would be written stands there already
        return Cost(1)
    n_rows = len(pair.base.ids) - max(min(positions), pair.values.unchanged_before)
    return Cost(1, n_rows, n_rows * (pair.grid.config.n_layers - min(layers)))


def pending_cells(pairs: Sequence[Pair], pending: Callable[[int], Array], cells: Array | None) -> Iterator[PendingCell]:
    """The cells that have no value yet, by the number of a pair; of those in `cells`, bool [*grid], or of all."""
    for i, pair in enumerate(pairs):
        lacking = pending(i)
        # Layer by layer, whatever the order of the axes: the source's values are read a layer at a time.
        for number, cell in sorted(enumerate(pair.grid.cells()), key=lambda numbered: numbered[1]["layer"][0]):
            if lacking.flat[number] and (cells is None or cells.flat[number]):
                yield PendingCell(i, number, cell)


def cell_runs(pairs: Sequence[Pair], edits_of: Sequence[EditsOf], pending: Iterator[PendingCell]) -> Iterator[CellRun]:
    """The runs of cells. Cells without edits, which name only edges that the mask hides, are left out: they stay NaN.

    A cell that changes nothing, such as one left of the first token that differs, is its base's run and takes no rows.
    """
    for pair, number, cell in pending:
        if edits := edits_of[pair](cell):
            n_pos = len(pairs[pair].base.ids)
            first = min((edit.reach[0] for edit in edits if edit.reach[0] < edit.reach[1]), default=n_pos)
            yield CellRun(pair, number, edits, n_pos - first)


def chunked(runs: Iterable[RunT], row_limit: Callable[[], int]) -> Iterator[list[RunT]]:
    """Runs in chunks of at most so many rows, and of one run at least. row_limit: called before each chunk."""
    chunk: list[RunT] = []
    n_rows, limit = 0, row_limit()
    for run in runs:
        if chunk and n_rows + run.n_rows > limit:
            yield chunk
            chunk, n_rows, limit = [], 0, row_limit()
        chunk.append(run)
        n_rows += run.n_rows
    if chunk:
        yield chunk
