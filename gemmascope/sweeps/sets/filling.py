"""Filling a result: its empty grids, and the metrics of a chunk's runs as they end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from gemmascope.model.model import Model
from gemmascope.run.bound_metric import try_metric
from gemmascope.sweeps.final_logits import measure_rows
from gemmascope.sweeps.metadata import metadata_of
from gemmascope.sweeps.pairs import Pair
from gemmascope.sweeps.result import SweepResult
from gemmascope.sweeps.sets.metrics import Metrics
from gemmascope.sweeps.sets.numbers import SetQuestion
from gemmascope.sweeps.sets.result import SweepSet
from gemmascope.sweeps.spec import SweepSpec
from gemmascope.sweeps.variants import BaseRun
from gemmascope.values import Array


def empty_result(
    pairs: Sequence[Pair],
    metric: object,
    spec: SweepSpec,
    code: str,
    model: Model,
    *,
    n_cells: int | None = None,
    estimate: str | None = None,
    extra: str | None = None,
) -> SweepResult | SweepSet:
    """A result without values: a SweepSet if the call has several sites or metrics. See metadata_of.

    metric: as users give it. pairs: the grids of one pair stand side by side.
    """
    specs = spec.each_site()
    n_pairs = len(pairs) // len(specs)
    metrics = Metrics.of(metric, n_pairs > 1)
    about = {"n_cells": n_cells, "estimate": estimate, "extra": extra}
    questions = [
        metadata_of(pairs[i :: len(specs)], one_metric, one, code, model, **about)  # type: ignore[arg-type]
        for i, one in enumerate(specs)
        for one_metric in metrics.each
    ]
    if metrics.names is None and not isinstance(spec.site, list):
        return SweepResult.empty(questions[0], n_pairs)
    sites = [pair.grid.site.name for pair in pairs[: len(specs)]] if isinstance(spec.site, list) else []
    return SweepSet(SetQuestion(sites, list(metrics.names or ()), questions), n_pairs)


def try_metrics(pair: Pair, model: Model) -> None:
    """MetricError for a metric of a pair that does not return one number per run or that mixes runs."""
    for metric in pair.metrics:
        try_metric(metric, model, pair.base.ids)


class Filling:
    """Where the numbers of a sweep's runs go: to a cell of every metric's grid.

    A pair's grids stand side by side among the pairs, one for each site; a result holds them by site, then by metric.
    """

    def __init__(self, pairs: Sequence[Pair], result: SweepResult | SweepSet) -> None:
        self.pairs = pairs
        self.grids = [result] if isinstance(result, SweepResult) else result.grids
        self.n_metrics = len(pairs[0].metrics)
        self.n_sites, self.n_pairs = len(self.grids) // self.n_metrics, len(self.grids[0].values)

    def of(self, number: int) -> tuple[int, list[SweepResult]]:
        """The number of a pair in its grids, and the grid of each metric."""
        pair, site = divmod(number, self.n_sites)
        return pair, self.grids[site * self.n_metrics : (site + 1) * self.n_metrics]

    def pending(self, number: int) -> Array:
        """Which cells of a pair lack a value of any metric, bool [*grid]."""
        pair, grids = self.of(number)
        lacking: Array = np.any([np.isnan(grid.values[pair]) for grid in grids], axis=0)
        return lacking

    def rows_of(self, number: int, cell: int) -> list[tuple[int, int]]:
        """Where a cell stands among the numbers of the result: (row, cell) for each metric."""
        pair, site = divmod(number, self.n_sites)
        grids = range(site * self.n_metrics, (site + 1) * self.n_metrics)
        return [(grid * self.n_pairs + pair, cell) for grid in grids]

    def source(self, number: int, rows: Tensor, model: Model) -> None:
        """Fill in the baselines of the run that is patched from. rows: [pos, d_model]."""
        pair, grids = self.of(number)
        if any(np.isnan(grid.source_metric[pair]) for grid in grids):
            source, metrics = self.pairs[number].source_run, self.pairs[number].metrics
            assert source is not None
            run = BaseRun(source.ids, source.edits, source.positions)
            values = measure_rows(metrics, model, run, rows[None])[:, 0]
            for grid, value in zip(grids, values.tolist(), strict=True):
                grid.source_metric[pair] = value

    def cells(self, number: int, cells: Sequence[int], of_base: Tensor, rows: Tensor, model: Model) -> None:
        """Fill in cells, and the baseline of the patched run. of_base: [pos, d_model]. rows: of each cell, likewise."""
        pair, grids = self.of(number)
        base, metrics = self.pairs[number].base, self.pairs[number].metrics
        baselines = measure_rows(metrics, model, base, of_base[None])
        values = measure_rows(metrics, model, base, rows)
        # Products of other row counts round differently: a run that is its base has exactly its base's metric.
        is_base = (rows == of_base).all(2).all(1).cpu()
        for grid, baseline, of_cells in zip(grids, baselines[:, 0].tolist(), values, strict=True):
            of_cells[is_base] = baseline
            grid.base_metric[pair] = baseline
            grid.values[pair].flat[list(cells)] = of_cells.numpy()
