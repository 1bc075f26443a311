"""The numbers of several grids as a file of sweeps holds them: the pairs of all grids, one behind the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gemmascope.sweeps.metadata import SweepMetadata
from gemmascope.values import Array


@dataclass(frozen=True)
class SetQuestion:
    """What several grids were asked. sites, metrics: their names, where the call listed them. grids: what each was asked,
    the metrics of a site side by side.
    """

    sites: list[str]
    metrics: list[str]
    grids: list[SweepMetadata]

    @property
    def n_cells(self) -> int:
        """How many cells, of all grids and pairs, can have a value."""
        return sum(grid.n_cells for grid in self.grids)


class SetNumbers:
    """values: of every grid and pair, float64 [*grid]; the baselines of each, float64 [grid x pair]. NaN where not run."""

    def __init__(self, question: SetQuestion, n_pairs: int) -> None:
        self.question = question
        shapes = [tuple(map(len, grid.axes.values())) for grid in question.grids]
        self.of_grids: list[Array] = [np.full((n_pairs, *shape), np.nan) for shape in shapes]
        self.values: Sequence[Array] = [of_pair for of_grid in self.of_grids for of_pair in of_grid]
        self.base_metric, self.source_metric = np.full((2, len(self.values)), np.nan)

    @property
    def finished(self) -> Array:
        """Which cells have a value, of all grids and pairs in one row."""
        every: Array = np.concatenate([of_pair.ravel() for of_pair in self.values])
        return ~np.isnan(every)

    def progress_text(self) -> str:
        """How far the sweep got: "90 of 90 cells finished"."""
        return f"{int(self.finished.sum())} of {self.question.n_cells} cells finished"
