"""SweepResult: the metric of every cell of a grid, with labels, from a sweep or an estimate of one."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from gemmascope.arguments import true_or_false
from gemmascope.errors import SweepError
from gemmascope.files.writing import write_file
from gemmascope.legible import legible_line, prints_legibly, signed
from gemmascope.sweeps.journal import text_of
from gemmascope.sweeps.metadata import SweepMetadata, metric_label, picture_title, subtitle_of
from gemmascope.sweeps.resampling.bootstrap import labelled_bootstrap
from gemmascope.tokens.tokenizer import visible_text
from gemmascope.values import Array, labelled

if TYPE_CHECKING:
    import pandas
    import xarray
    from plotly.graph_objects import Figure

# Baselines whose difference is a smaller share of their size than this count as equal.
NO_GAP = 1e-6

# A longer metric is cut in the repr: a list with one for each of many pairs would fill the page.
SHOWN_METRIC = 100


@dataclass
class SweepResult:
    """The metric of every cell of a grid, from gs.sweep, gs.path_sweep or gs.attribute.

    Most questions are answered by .effect, .clean, .corrupt and .normalized. Arrays with labels are xarray.DataArrays:
    their axes are those of `by`, with the kind of each layer ("local" or "global") and the token of each position as
    coordinates, so that .effect.sel(layer=3) works. The metric's unit is the unit of all numbers: logits, nats, or a
    probability.

    Attributes:
        question: What was asked, as data: model, site, axes, metric, tokens, code.
        values: The metric of each cell's run, float64 [pair, *grid]. NaN where a cell was not run, or cannot be.
        base_metric: The metric of the run that is patched, float64 [pair].
        source_metric: The metric of the run that it is patched from, float64 [pair]. NaN for an ablation.

    Examples:
        >>> clean = "When Mary and John went to the store, John gave a drink to"
        >>> corrupt = "When Mary and John went to the store, Mary gave a drink to"
        >>> metric = gs.logit_diff(" Mary", " John")
        >>> result = gs.sweep(clean, corrupt, metric, site="resid_pre", pos=[10, -1], progress=False)
        >>> round(result.clean, 2), round(result.corrupt, 2)
        (11.86, -11.61)
        >>> result.normalized.sel(pos=14, layer=[3, 4, 5]).round(1).values
        array([1., 1., 1.])
        >>> result.normalized.sel(pos=14).token.item()
        ' to'
    """

    question: SweepMetadata
    values: Array
    base_metric: Array
    source_metric: Array

    @classmethod
    def empty(cls, question: SweepMetadata, n_pairs: int) -> SweepResult:
        """A result without values: all of them NaN.

        Args:
            question: What is asked; its axes give the shape.
            n_pairs: How many pairs of prompts there are.
        """
        shape = tuple(len(numbers) for numbers in question.axes.values())
        baselines = [np.full(n_pairs, np.nan) for _ in range(2)]
        return cls(question, np.full((n_pairs, *shape), np.nan), *baselines)

    @property
    def finished(self) -> Array:
        """Which cells have a value, bool [pair, *grid]."""
        return ~np.isnan(self.values)

    @cached_property
    def coords(self) -> dict[str, list[int] | tuple[str, list[str]]]:
        """The coordinates of the labelled arrays: the numbers of each axis, the layers' kinds, the positions' tokens."""
        coords: dict[str, list[int] | tuple[str, list[str]]] = {}
        for axis, numbers in self.question.axes.items():
            coords[axis] = numbers
            if axis == "layer":
                coords["kind"] = (axis, [self.question.kinds[n] for n in numbers])
            elif axis in ("pos", "q_pos", "k_pos"):
                label = {"pos": "token", "q_pos": "q_token", "k_pos": "k_token"}[axis]
                coords[label] = (axis, [self.question.tokens[n] for n in numbers])
        return coords

    @property
    def per_pair(self) -> xarray.DataArray:
        """The effect of each cell in each pair, (pair, *by): the metric of its run less that of the run that is patched."""
        change = self.values - self.base_metric.reshape(-1, *[1] * (self.values.ndim - 1))
        return self._labelled(change, ("pair",))

    @property
    def effect(self) -> xarray.DataArray:
        """The effect of each cell, (*by): the metric of its run less that of the patched run; the mean over pairs.

        In the metric's unit, float64. NaN where a cell was not run; 0 where it was run and changed nothing.
        """
        return self._labelled(self.per_pair.values.mean(0))

    @property
    def stderr(self) -> xarray.DataArray:
        """The standard error of the mean effect over pairs, (*by), in the metric's unit.

        Raises:
            SweepError: The sweep has a single pair.
        """
        n_pairs = len(self.values)
        if n_pairs < 2:
            raise SweepError("a standard error needs at least two pairs; this sweep has one")
        return self._labelled(self.per_pair.values.std(0, ddof=1) / np.sqrt(n_pairs))

    def interval(self, level: float = 0.95, *, n: int = 2000, seed: int = 0) -> xarray.DataArray:
        """A bootstrap interval of the mean effect, (bound, *by): percentiles of the means of pairs drawn anew n times.

        Args:
            level: The share of the resampled means inside.
            n: The number of draws, each of as many pairs as there are, with replacement; the same pairs for every cell.
            seed: The seed of the draws.

        Raises:
            SweepError: The sweep has a single pair, or an argument is out of range.
        """
        return labelled_bootstrap(self.per_pair, "pair", level, n, seed).rename(self.effect.name)

    @property
    def clean(self) -> float:
        """The metric of the clean run; the mean over pairs."""
        return float(self._baseline("clean").mean())

    @property
    def corrupt(self) -> float:
        """The metric of the corrupted run; the mean over pairs.

        Raises:
            SweepError: The sweep is an ablation, which has no corrupted run.
        """
        if not self.question.has_source:
            raise SweepError("an ablation has no corrupted run: its baseline is .clean")
        return float(self._baseline("corrupt").mean())

    @property
    def normalized(self) -> xarray.DataArray:
        """The effect as a share of the gap between the two baselines, (*by): 0 changes nothing, 1 closes the gap.

        Over several pairs, the mean effect over the mean gap. Values below 0 and above 1 are possible.

        Raises:
            SweepError: The two baselines are equal, or the sweep is an ablation, which has only one.
        """
        if not self.question.has_source:
            raise SweepError("an ablation has no second baseline to normalise by: use .effect")
        gap = float((self.source_metric - self.base_metric).mean())
        if abs(gap) <= NO_GAP * max(1.0, abs(self.clean), abs(self.corrupt)):
            raise SweepError(
                f"the clean and the corrupted run have the same metric ({self.clean:.6g} and {self.corrupt:.6g}): "
                "there is no gap to explain. Choose prompts or answers that differ"
            )
        return self.effect / gap

    def to_dataframe(self) -> pandas.DataFrame:
        """One row a cell: its place and labels, its "effect", and the "metric" of its run, both means over pairs."""
        frame = self.effect.to_dataframe(name="effect").reset_index()
        frame["metric"] = self.values.mean(0).reshape(-1)
        return frame

    def to_dict(self) -> dict[str, object]:
        """The result as data for JSON: what was asked, the baselines, and one dictionary a cell, None for NaN."""
        q = self.question
        question = {"model": q.model, "site": q.site, "metric": q.metric, "into": q.into, "estimate": q.estimate}
        baselines = {"clean": self.clean, "corrupt": self.corrupt if q.has_source else None}
        cells = json.loads(self.to_dataframe().to_json(orient="records", double_precision=15))
        return {**question, **baselines, "cells": cells}

    def plot(self, *, normalized: bool = False) -> Figure:
        """A plotly heat map of a grid of one or two axes: blue raises the metric, red lowers it. Needs plotly.

        Args:
            normalized: Show .normalized, shares of the gap; by default .effect, in the metric's unit.

        Raises:
            SweepError: The grid has more than two axes, or there is nothing to normalise by.
        """
        from gemmascope.figures.labelled import labelled_figure

        values = values_to_draw(self, normalized)
        return labelled_figure(
            values,
            title=picture_title(self.question, len(self.values)),
            unit="share of the gap" if normalized else f"change of {metric_label(self.question.metric)}",
            diverging=True,
            subtitle=subtitle_of(self.question),
        )

    def code(self) -> str:
        """The Python that repeats the call. A function of your own appears under its name."""
        return self.question.code

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the result to a file for gs.open_sweep, as JSON.

        An existing file is replaced once the new one is whole.

        Args:
            path: The file; "~" is the home folder. A link is followed, and an existing file keeps its mode.

        Raises:
            SweepError: The file cannot be written.
        """
        pairs, cells = np.nonzero(self.finished.reshape(len(self.values), -1))
        write_file(path, text_of(self, list(zip(pairs.tolist(), cells.tolist(), strict=True))), error=SweepError)

    def progress_text(self) -> str:
        """How far the sweep got: "90 of 90 cells finished"."""
        return f"{int(self.finished.sum())} of {self.question.n_cells} cells finished"

    @prints_legibly
    def __repr__(self) -> str:
        q = self.question
        kind = f"estimate ({q.estimate})" if q.estimate else "path sweep" if "gs.path_sweep(" in q.code else "sweep"
        kind = kind if q.has_source else f"ablation {kind}"
        pairs = f" of {len(self.values)} pairs" if len(self.values) > 1 else ""
        metric = q.metric if len(q.metric) <= SHOWN_METRIC else f"{q.metric[:SHOWN_METRIC]}..."
        grid = " x ".join(f"{len(n)} {axis}" for axis, n in q.axes.items())
        baselines = f"clean {self.clean:.4g}"
        if q.has_source:
            baselines += f", corrupt {self.corrupt:.4g}; patched: {q.into}"
        title = f"{kind} of {q.site} in {legible_line(q.model)}{pairs}: {grid}, {metric}, {self.progress_text()}"
        return f"{title}\n{baselines}\n{self._strongest()}"

    def _strongest(self, k: int = 5) -> str:
        """The cells with the largest effects, either way, a line each."""
        frame = self.to_dataframe().dropna(subset=["effect"])
        top = frame.reindex(frame["effect"].abs().sort_values(ascending=False).index[:k])
        lines, largest = [], float(top["effect"].abs().max())
        for _, row in top.iterrows():
            place = [f"{axis} {int(row[axis])}" + self._token(axis, int(row[axis])) for axis in self.question.axes]
            lines.append(f"  {signed(row['effect'], largest)}  {', '.join(place)}")
        return "\n".join(lines)

    def _token(self, axis: str, number: int) -> str:
        return f" ({visible_text(self.question.tokens[number])})" if axis in ("pos", "q_pos", "k_pos") else ""

    def _baseline(self, which: str) -> Array:
        is_base = self.question.into == which or not self.question.has_source
        return self.base_metric if is_base else self.source_metric

    def _labelled(self, values: Array, extra: Sequence[str] = ()) -> xarray.DataArray:
        dims = (*extra, *self.question.axes)
        return labelled(values, self.coords, dims, "effect", f"change of {self.question.metric}")


def values_to_draw(result: SweepResult, normalized: bool) -> xarray.DataArray:
    """What a picture shows of a result: see SweepResult.plot, also for the errors."""
    values = result.normalized if true_or_false(normalized, "normalized", error=SweepError) else result.effect
    if values.ndim > 2:
        axes = ", ".join(map(str, values.dims))
        raise SweepError(f"a heat map has two axes; this sweep has {values.ndim} ({axes}): plot result.effect.sel(...)")
    return values
