"""Jobs: the cells of a sweep that are still to be run, their runs, what they take, and chunks of them for a pass each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gemmascope.edits.bound import BoundEdit
from gemmascope.sweeps.pairs import Plan
from gemmascope.sweeps.result import Array, SweepResult
from gemmascope.sweeps.variants import Variant

# What gives a cell its edits.
Maker = Callable[[dict[str, list[int]]], tuple[BoundEdit, ...]]


@dataclass(frozen=True)
class Job:
    """One cell of one pair."""

    pair: int
    cell: int
    variant: Variant

    def rows(self, plans: Sequence[Plan]) -> int:
        return len(plans[self.pair].base.ids) - min(edit.reach[0] for edit in self.variant.edits)


@dataclass(frozen=True)
class Cost:
    """What cells take: how many there are, the rows of their runs, and those rows times the layers they go through."""

    n_cells: int = 0
    n_rows: int = 0
    row_layers: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.n_cells + other.n_cells, self.n_rows + other.n_rows, self.row_layers + other.row_layers)


def pending_cells(
    plans: Sequence[Plan], result: SweepResult, cells: Array | None
) -> Iterator[tuple[int, int, dict[str, list[int]]]]:
    """The wanted cells without a value: their pair, number and places."""
    for i, plan in enumerate(plans):
        # Layer by layer, whatever the order of the axes: the source's values are read a layer at a time.
        for number, cell in sorted(enumerate(plan.grid.cells()), key=lambda pair: pair[1]["layer"][0]):
            if np.isnan(result.values[i].flat[number]) and (cells is None or cells.flat[number]):
                yield i, number, cell


def jobs_of(plans: Sequence[Plan], makers: Sequence[Maker], result: SweepResult, cells: Array | None) -> Iterator[Job]:
    """The cells still to be run. Those without edits, which name only edges that the mask hides, stay NaN."""
    for i, number, cell in pending_cells(plans, result, cells):
        if edits := makers[i](cell):
            yield Job(i, number, Variant(i, edits))


def chunked(jobs: Iterator[Job], plans: Sequence[Plan], max_rows: Callable[[], int]) -> Iterator[list[Job]]:
    """Jobs in lists of at most so many rows, and of one job at least. max_rows: says it before each list."""
    chunk: list[Job] = []
    n_rows, most = 0, max_rows()
    for job in jobs:
        rows = job.rows(plans)
        if chunk and n_rows + rows > most:
            yield chunk
            chunk, n_rows, most = [], 0, max_rows()
        chunk.append(job)
        n_rows += rows
    if chunk:
        yield chunk
