"""Experiments: one question of a patching lab, from the two prompts' runs to every exact cell."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from gemmascope.edits.make import patch
from gemmascope.labs.patching.cell_grid import MARKS, CellGrid
from gemmascope.labs.patching.settings import Settings
from gemmascope.model.model import Model
from gemmascope.run.bound_metric import measure_trace
from gemmascope.run.trace import Trace
from gemmascope.run.tracing import trace, traces
from gemmascope.sweeps.attribution import estimate
from gemmascope.sweeps.cells import Cost, cost_of
from gemmascope.sweeps.result import SweepResult
from gemmascope.sweeps.sweep import prepare
from gemmascope.values import Array

if TYPE_CHECKING:
    import pandas

# How long a chunk of a resident model may take, in seconds: a cancel waits for one, and cells appear with each. Where the
# shortest pass takes longer than half of it, as it does once the weights are a gigabyte, a chunk takes twice that pass.
CHUNK_SECONDS = 0.25


class Experiment:
    """A sweep over two axes that is filled bit by bit. Creating it runs nothing; its errors are those of gs.sweep.

    result: the exact cells so far. traces: the clean and the corrupted run, once they have been run. cell_grid: exact
    effects and estimates, cell by cell, and what is under way. is_unchanged: the cells, bool [row, column], at which both
    runs have the same value because no token up to there differs: their effect is 0 without a run.
    """

    def __init__(self, settings: Settings, model: Model) -> None:
        self.settings, self.model = settings, model
        self.runner = prepare(settings.clean, settings.corrupt, settings.metric_of(), settings.spec(model), model=model)
        self.result: SweepResult = self.runner.single
        self.estimated: SweepResult | None = None
        self.traces: dict[str, Trace] = {}
        self._last_attention: list[Tensor] = []
        self._pair = self.runner.pairs[0]
        self.cells = list(self._pair.grid.cells())
        self.shape: tuple[int, int] = (self._pair.grid.shape[0], self._pair.grid.shape[1])
        self.cell_grid = CellGrid(self.shape)
        costs = [astuple(cost_of(self._pair, cell)) for cell in self.cells]
        self._costs = np.array(costs, dtype=np.int64).reshape(*self.shape, 3)
        self.is_unchanged: Array = (self._costs[..., 0] > 0) & (self._costs[..., 1] == 0)
        self.throughput = Throughput(model, 2 * len(self._pair.base.ids))

    @property
    def axes(self) -> dict[str, list[int]]:
        """The numbers along the grid's rows and columns, by axis."""
        return self.result.question.axes

    @property
    def baselines(self) -> dict[str, float] | None:
        """The metric of the clean and the corrupted run, once they have been run."""
        known = not np.isnan(self.result.base_metric[0])
        return {"clean": self.result.clean, "corrupt": self.result.corrupt} if known else None

    @property
    def gap(self) -> float | None:
        """The effect that would be all of the way from the run that is patched to its source; None before they have run."""
        gap = float(self.result.source_metric[0] - self.result.base_metric[0])
        return None if math.isnan(gap) else gap

    @property
    def is_blank(self) -> bool:
        """Whether no cell has a number, apart from those that are 0 without a run."""
        return bool(np.isnan(self.cell_grid.values[~self.is_unchanged]).all())

    @property
    def base_ids(self) -> list[int]:
        """The token ids of the run that is patched."""
        ids: list[int] = self._pair.base.ids.tolist()
        return ids

    @property
    def source_ids(self) -> list[int]:
        """The token ids of the run whose values are patched in."""
        assert self._pair.source_ids is not None
        ids: list[int] = self._pair.source_ids.tolist()
        return ids

    @property
    def source_name(self) -> str:
        """Which run's values are patched in: "clean" or "corrupt"."""
        return "clean" if self.settings.into == "corrupt" else "corrupt"

    @property
    def base(self) -> Trace:
        """The run that is patched."""
        return self.traces[self.settings.into]

    @property
    def source(self) -> Trace:
        """The run whose values are patched in."""
        return self.traces[self.source_name]

    @property
    def last_attention(self) -> list[Tensor]:
        """Where the last token of the run that is patched looks, in each layer: [head, k_pos]. It must have been run."""
        if not self._last_attention:
            layers = range(self.model.n_layers)
            self._last_attention = [self.base.edges("pattern", layer, q_pos=-1).float() for layer in layers]
        return self._last_attention

    @property
    def n_alike(self) -> int:
        """How many columns from the first on are 0 without a run, because the prompts are alike up to there."""
        differing = np.flatnonzero(~self.is_unchanged.all(axis=0))
        return int(differing[0]) if len(differing) else self.shape[1]

    @property
    def runnable(self) -> Array:
        """The cells that name at least one edge which the mask does not hide, bool [row, column]; all at other sites."""
        mask: Array = self._costs[..., 0] > 0
        return mask

    def run_baselines(self) -> None:
        """Run both prompts in one pass. It gives the metric's two ends, and the first measure of the throughput."""
        if self.traces:
            return
        start = time.perf_counter()
        clean, corrupt = traces(self.model, [self.settings.clean, self.settings.corrupt])
        self.throughput.add(Cost(), time.perf_counter() - start)
        self.traces = {"clean": clean, "corrupt": corrupt}
        if self.baselines is None:
            self.set_baselines(self._metric(self.base), self._metric(self.source))

    def set_baselines(self, base: float, source: float) -> None:
        """Fill in the metric of the run that is patched and of its source, and the cells that are 0 without a run."""
        self.result.base_metric[0], self.result.source_metric[0] = base, source
        self.result.values[0][self.is_unchanged] = base
        self.cell_grid.exact[self.is_unchanged] = 0.0

    def fill(self, values: Array, estimate: Array) -> None:
        """Take in cells that were found earlier: the metric of their runs, and the estimated effects, [row, column].

        Cells that have a number keep it.
        """
        new = np.isnan(self.result.values[0]) & ~np.isnan(values)
        self.result.values[0][new] = values[new]
        self.cell_grid.exact[new] = values[new] - self.result.base_metric[0]
        new = np.isnan(self.cell_grid.estimate)
        self.cell_grid.estimate[new] = estimate[new]

    def run_cell(self, number: int) -> Trace:
        """One cell's patched run as a trace, for its exact number and its detail. The baselines must have been run."""
        cell = self.cells[number]
        places: dict[str, Any] = {
            "head" if axis == "kv_head" else axis: numbers for axis, numbers in cell.items() if axis != "layer"
        }
        layers = self._pair.grid.layers_of(cell)
        edits = [patch(self.settings.site, self.source, layer=layer, **places) for layer in layers]
        patched: Trace = trace(self.base.ids, model=self.model, edits=edits)
        if edits and np.isnan(self.result.values[0].flat[number]):
            self.result.values[0].flat[number] = self._metric(patched)
        return patched

    def run_chunks(self, cells: Array) -> Iterator[list[int]]:
        """Run the cells that have no exact number, chunk by chunk; each step gives the numbers of the cells it ran."""
        steps = self.runner.chunks(cells, lambda: self.throughput.chunk_rows(self.runner.max_rows))
        while True:
            start = time.perf_counter()
            done = next(steps, None)
            if done is None:
                return
            numbers = [number for _, number in done]
            cost = Cost(*self._costs.reshape(-1, 3)[numbers].sum(0).tolist())
            self.throughput.add(cost, time.perf_counter() - start)
            yield numbers

    def estimate(self) -> SweepResult:
        """The gradient estimate of every cell."""
        s = self.settings
        return estimate(s.clean, s.corrupt, s.metric_of(), s.spec(self.model), self.model)

    def effects(self, numbers: list[int]) -> Array:
        """The exact effects of these cells."""
        effects: Array = self.result.values[0].flat[numbers] - self.result.base_metric[0]
        return effects

    def expected(self, cells: Array) -> tuple[int, float | None]:
        """How many of these cells have no exact number, and about how many seconds they take; None before anything ran."""
        cost = Cost(*self._costs[cells & np.isnan(self.result.values[0])].sum(0).tolist())
        return cost.n_cells, self.throughput.seconds(cost, self.runner.max_rows)

    def seconds_each(self) -> Array:
        """About how long each cell takes in a chunk of many, in seconds; NaN before anything ran. [row, column]"""
        seconds: Array = self._costs[..., 2] * self.throughput.row_layer
        return seconds

    def to_dataframe(self) -> pandas.DataFrame:
        """One row a cell: its place and labels, its effect, and what that is (MARKS)."""
        frame = self.result.effect.to_dataframe(name="effect").reset_index()
        frame["effect"] = self.cell_grid.values.reshape(-1)
        frame["is"] = [MARKS[mark] for mark in self.cell_grid.marks.reshape(-1)]
        return frame

    def forget_runs(self) -> None:
        """Let go of the two runs, which are large; the numbers stay."""
        self.traces, self._last_attention = {}, []

    def _metric(self, run: Trace) -> float:
        return measure_trace(self._pair.metric, run)


class Throughput:
    """How long passes take, measured as they run: to predict times, and to make chunks that take a moment.

    row_layer: seconds that a row takes in a layer. one_pass: seconds of the latest pass, which is what counts where the
    layers are streamed. shortest: seconds of the shortest pass. lead_rows: rows that every pass carries besides those of its
    cells: the patched run and its source.
    """

    def __init__(self, model: Model, lead_rows: int) -> None:
        self.n_layers, self.lead_rows = model.n_layers, lead_rows
        self.streams = model.network.layer_source is not None
        self.row_layer = self.one_pass = math.nan
        self.shortest = math.inf

    def add(self, cost: Cost, seconds: float) -> None:
        """Add the measure of a pass that carried this much besides the lead rows. The latest measure counts most."""
        row_layer = seconds / (cost.row_layers + self.lead_rows * self.n_layers)
        self.row_layer = row_layer if math.isnan(self.row_layer) else (self.row_layer + 2 * row_layer) / 3
        self.one_pass, self.shortest = seconds, min(seconds, self.shortest)

    @property
    def chunk_seconds(self) -> float:
        """How long a chunk may take. Chunks of less would shrink, since a pass's own time is counted as its rows'."""
        return CHUNK_SECONDS if math.isinf(self.shortest) else max(CHUNK_SECONDS, 2 * self.shortest)

    def seconds(self, cost: Cost, max_rows: int) -> float | None:
        """About how long these cells will take; None before anything was measured."""
        if not cost.n_cells:
            return 0.0
        if math.isnan(self.row_layer):
            return None
        if self.streams:  # reading the weights is what takes time, however many rows ride along
            return math.ceil(cost.n_rows / max_rows) * self.one_pass
        n_passes = math.ceil(cost.row_layers * self.row_layer / self.chunk_seconds)
        return (cost.row_layers + n_passes * self.lead_rows * self.n_layers) * self.row_layer

    def baseline_seconds(self) -> float:
        """About how long the two prompts' pass takes; NaN before anything was measured."""
        return self.one_pass if self.streams else self.lead_rows * self.n_layers * self.row_layer

    def estimate_seconds(self) -> float | None:
        """About how long a gradient estimate takes: the prompts' pass, and one back, which costs three. None as above."""
        return None if math.isnan(self.row_layer) else 4 * self.baseline_seconds()

    def chunk_rows(self, max_rows: int) -> int:
        """How many rows the next chunk may carry: those of a moment, or as many as fit in memory if the layers stream."""
        if self.streams or math.isnan(self.row_layer):
            return max_rows
        return max(1, min(max_rows, int(self.chunk_seconds / self.row_layer / self.n_layers)))
