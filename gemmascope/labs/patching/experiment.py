"""Experiments: one question of a patching lab, from its baselines to every exact cell."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import astuple
from typing import TYPE_CHECKING

import numpy as np

from gemmascope.labs.patching.cell_grid import MARKS, CellGrid
from gemmascope.labs.patching.settings import Settings
from gemmascope.labs.patching.throughput import Pace
from gemmascope.model.model import Model
from gemmascope.run.metric import measure
from gemmascope.run.trace import Trace
from gemmascope.run.tracing import traces
from gemmascope.sweeps.attribution import estimate
from gemmascope.sweeps.cells import Cost, cost_of
from gemmascope.sweeps.result import Array, SweepResult
from gemmascope.sweeps.sweep import prepare

if TYPE_CHECKING:
    import pandas


class Experiment:
    """A sweep over two axes that is filled bit by bit. Nothing runs when it is made; its errors are those of gs.sweep.

    result: what is exact so far. estimated: the estimate, once there is one. traces: the clean and the corrupted run,
    once they have been run. board: both, cell by cell, with what is under way.
    """

    def __init__(self, settings: Settings, model: Model) -> None:
        self.settings, self.model = settings, model
        self.sweeping = prepare(settings.clean, settings.corrupt, settings.metric_of(), settings.asked(model), model=model)
        self.result: SweepResult = self.sweeping.result
        self.estimated: SweepResult | None = None
        self.traces: dict[str, Trace] = {}
        pair = self.sweeping.pairs[0]
        self.cells = list(pair.grid.cells())
        self.shape: tuple[int, int] = (pair.grid.shape[0], pair.grid.shape[1])
        self.board = CellGrid(self.shape)
        costs = [astuple(cost_of(pair, cell)) for cell in self.cells]
        self._costs = np.array(costs, dtype=np.int64).reshape(*self.shape, 3)
        self.pace = Pace(model, 2 * len(pair.base.ids))

    @property
    def axes(self) -> dict[str, list[int]]:
        """The numbers along the grid's rows and columns, by axis."""
        return self.result.question.axes

    @property
    def baselines(self) -> dict[str, float] | None:
        """The metric of the clean and the corrupted run, once they have been run."""
        known = not np.isnan(self.result.base_metric[0])
        return {"clean": self.result.clean, "corrupt": self.result.corrupt} if known else None

    def run_baselines(self) -> None:
        """Run both prompts in one pass: the metric's two ends, the runs to look into, and how long a pass takes."""
        if self.traces:
            return
        start = time.perf_counter()
        clean, corrupt = traces(self.model, [self.settings.clean, self.settings.corrupt])
        self.pace.take(Cost(), time.perf_counter() - start)
        metric = self.sweeping.pairs[0].metric
        ends = {name: measure(metric, t.next_logits[None])[0].item() for name, t in (("clean", clean), ("corrupt", corrupt))}
        into = self.settings.into
        self.result.base_metric[0] = ends[into]
        self.result.source_metric[0] = ends["clean" if into == "corrupt" else "corrupt"]
        self.traces = {"clean": clean, "corrupt": corrupt}

    def estimate(self) -> SweepResult:
        """The gradient estimate of every cell."""
        s = self.settings
        return estimate(s.clean, s.corrupt, s.metric_of(), s.asked(self.model), self.model)

    def chunks(self, cells: Array) -> Iterator[list[int]]:
        """Run the cells that have no exact number, chunk by chunk; each step gives the numbers of the cells it did."""
        steps = self.sweeping.chunks(cells, lambda: self.pace.rows(self.sweeping.max_rows))
        while True:
            start = time.perf_counter()
            done = next(steps, None)
            if done is None:
                return
            numbers = [number for _, number in done]
            self.pace.take(self._cost(numbers), time.perf_counter() - start)
            yield numbers

    def effects(self, numbers: list[int]) -> Array:
        """The exact effects of these cells."""
        found: Array = self.result.values[0].flat[numbers] - self.result.base_metric[0]
        return found

    def expected(self, cells: Array) -> tuple[int, float | None]:
        """How many of these cells have no exact number, and about how many seconds they take; None if nothing ran yet."""
        cost = Cost(*self._costs[cells & np.isnan(self.result.values[0])].sum(0).tolist())
        return cost.n_cells, self.pace.seconds(cost, self.sweeping.max_rows)

    def seconds_each(self) -> Array:
        """About how long each cell takes in a chunk of many, in seconds; NaN where nothing ran yet. [row, column]"""
        found: Array = self._costs[..., 2] * self.pace.row_layer
        return found

    @property
    def can_run(self) -> Array:
        """The cells that name more than edges which the mask hides, bool [row, column]."""
        found: Array = self._costs[..., 0] > 0
        return found

    def _cost(self, numbers: list[int]) -> Cost:
        return Cost(*self._costs.reshape(-1, 3)[numbers].sum(0).tolist())

    def to_dataframe(self) -> pandas.DataFrame:
        """One row a cell: its place and labels, its effect, and what that is (MARKS)."""
        frame = self.result.effect.to_dataframe(name="effect").reset_index()
        frame["effect"] = self.board.values.reshape(-1)
        frame["is"] = [MARKS[mark] for mark in self.board.marks.reshape(-1)]
        return frame

    def forget_runs(self) -> None:
        """Let go of the two runs, which are large; the numbers stay."""
        self.traces = {}
