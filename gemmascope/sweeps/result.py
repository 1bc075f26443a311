"""SweepResult: what a sweep, or an estimate of one, found: a metric for every cell of a grid, with its labels."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from gemmascope.arguments import true_or_false
from gemmascope.errors import SweepError, warn
from gemmascope.files.paths import user_path
from gemmascope.files.writing import write_file
from gemmascope.legible import legibly, spelled
from gemmascope.sweeps.journal import fill_from, read_file, text_of
from gemmascope.sweeps.metadata import SweepMetadata, call_details, metric_label, picture_title
from gemmascope.tokens.tokenizer import shown

if TYPE_CHECKING:
    import pandas
    import xarray
    from plotly.graph_objects import Figure

Array = np.ndarray[Any, Any]

# Baselines nearer to each other than this share of their size leave nothing to explain.
NO_GAP = 1e-6

# A metric longer than this is cut where the result shows itself: one for each of many pairs would fill the page.
SHOWN_METRIC = 100


@dataclass
class SweepResult:
    """A metric for every cell of a grid.

    values: the metric of each cell's run, float64 [pair, *grid]; NaN where a cell was not run, or cannot be.
    base_metric: of the run that is patched, [pair]; source_metric: of the run patched from, NaN for an ablation.
    """

    question: SweepMetadata
    values: Array
    base_metric: Array
    source_metric: Array

    @classmethod
    def empty(cls, question: SweepMetadata, n_pairs: int) -> SweepResult:
        shape = tuple(len(numbers) for numbers in question.axes.values())
        blank = [np.full(n_pairs, np.nan) for _ in range(2)]
        return cls(question, np.full((n_pairs, *shape), np.nan), *blank)

    @property
    def finished(self) -> Array:
        """Which cells have a value, bool [pair, *grid]."""
        return ~np.isnan(self.values)

    @cached_property
    def coords(self) -> dict[str, Any]:
        """xarray coordinates: the numbers of each axis, its layers' kinds, its positions' tokens."""
        coords: dict[str, Any] = {}
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
        """What each cell changed in each pair: the metric of its run less that of the run that was patched."""
        change = self.values - self.base_metric.reshape(-1, *[1] * (self.values.ndim - 1))
        return self._labelled(change, ("pair",))

    @property
    def effect(self) -> xarray.DataArray:
        """What each cell changed: the metric of its run less that of the run that was patched; the mean over pairs.

        In units of the metric. NaN where a cell was not run; 0 means that it was run and changed nothing.
        """
        return self._labelled(self.per_pair.values.mean(0))

    @property
    def stderr(self) -> xarray.DataArray:
        """The standard error of the mean effect over pairs. SweepError for a single pair."""
        n_pairs = len(self.values)
        if n_pairs < 2:
            raise SweepError("a standard error needs at least two pairs; this sweep has one")
        return self._labelled(self.per_pair.values.std(0, ddof=1) / np.sqrt(n_pairs))

    @property
    def clean(self) -> float:
        """The metric of the clean run; its mean over pairs."""
        return float(self._baseline("clean").mean())

    @property
    def corrupt(self) -> float:
        """The metric of the corrupted run; its mean over pairs. SweepError for an ablation, which has none."""
        if not self.question.has_source:
            raise SweepError("an ablation has no corrupted run: its baseline is .clean")
        return float(self._baseline("corrupt").mean())

    @property
    def normalized(self) -> xarray.DataArray:
        """The effect as a share of the gap between the baselines: 0 changes nothing, 1 makes the run like the source.

        SweepError where there is no gap to explain.
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
        """One row a cell: its place, its labels, the metric of its run and its effect."""
        frame = self.effect.to_dataframe(name="effect").reset_index()
        frame["metric"] = self.values.mean(0).reshape(-1)
        return frame

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON holds it: what was asked, the baselines, and a dictionary a cell; None for what was not run."""
        q = self.question
        ends = {"clean": self.clean, "corrupt": self.corrupt if q.has_source else None}
        asked = {"model": q.model, "site": q.site, "metric": q.metric, "into": q.into, "estimate": q.estimate}
        return {**asked, **ends, "cells": json.loads(self.to_dataframe().to_json(orient="records", double_precision=15))}

    def plot(self, *, normalized: bool = False) -> Figure:
        """A plotly heat map, diverging around 0: blue raises the metric, red lowers it. Needs plotly."""
        from gemmascope.figures.labelled import labelled_figure

        values = self.normalized if true_or_false(normalized, "normalized", error=SweepError) else self.effect
        if values.ndim > 2:
            axes = ", ".join(map(str, values.dims))
            raise SweepError(f"a heat map has two axes; this sweep has {values.ndim} ({axes}): plot result.effect.sel(...)")
        return labelled_figure(
            values,
            title=picture_title(self.question, len(self.values)),
            unit="share of the gap" if normalized else f"change of {metric_label(self.question)}",
            diverging=True,
            subtitle=call_details(self.question.code),
        )

    def code(self) -> str:
        """The Python that asks the same question again. A user's own metric or edit appears under its name."""
        return self.question.code

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the result to a file for gs.open_sweep. JSON; an existing file is replaced, once the new one is whole.

        Args:
            path: The file, "~" being the home folder. A link is followed, and a file keeps its mode.

        Raises:
            SweepError: It cannot be written.
        """
        pairs, cells = np.nonzero(self.finished.reshape(len(self.values), -1))
        write_file(path, text_of(self, list(zip(pairs.tolist(), cells.tolist(), strict=True))), error=SweepError)

    def progress_text(self) -> str:
        return f"{int(self.finished.sum())} of {self.question.n_cells} cells finished"

    @legibly
    def __repr__(self) -> str:
        q = self.question
        kind = f"estimate ({q.estimate})" if q.estimate else "path sweep" if "gs.path_sweep(" in q.code else "sweep"
        kind = kind if q.has_source else f"ablation {kind}"
        pairs = f" of {len(self.values)} pairs" if len(self.values) > 1 else ""
        metric = q.metric if len(q.metric) <= SHOWN_METRIC else f"{q.metric[:SHOWN_METRIC]}..."
        grid = " x ".join(f"{len(n)} {axis}" for axis, n in q.axes.items())
        ends = f"clean {self.clean:.4g}" + (f", corrupt {self.corrupt:.4g}; patched: {q.into}" if q.has_source else "")
        said = f"{kind} of {q.site} in {spelled(q.model)}{pairs}: {grid}, {metric}, {self.progress_text()}"
        return f"{said}\n{ends}\n{self._best()}"

    def _best(self, k: int = 5) -> str:
        """The strongest cells, a line each."""
        frame = self.to_dataframe().dropna(subset=["effect"])
        top = frame.reindex(frame["effect"].abs().sort_values(ascending=False).index[:k])
        lines = []
        for _, row in top.iterrows():
            where = [f"{axis} {int(row[axis])}" + self._token(axis, int(row[axis])) for axis in self.question.axes]
            lines.append(f"  {row['effect']:+.4g}  {', '.join(where)}")
        return "\n".join(lines)

    def _token(self, axis: str, number: int) -> str:
        return f" ({shown(self.question.tokens[number])})" if axis in ("pos", "q_pos", "k_pos") else ""

    def _baseline(self, which: str) -> Array:
        is_base = self.question.into == which or not self.question.has_source
        return self.base_metric if is_base else self.source_metric

    def _labelled(self, values: Array, extra: Sequence[str] = ()) -> xarray.DataArray:
        import xarray

        unit = {"long_name": f"change of {self.question.metric}"}
        return xarray.DataArray(values, dims=(*extra, *self.question.axes), coords=self.coords, name="effect", attrs=unit)


def open_sweep(path: str | os.PathLike[str]) -> SweepResult:
    """The result in a file that SweepResult.save or gs.sweep(out=...) wrote.

    A last line that was cut off is left out, with a GemmascopeWarning.

    Args:
        path: The file, "~" being the home folder.

    Raises:
        SweepError: It is no such file, or a damaged one: says which line.
    """
    path = user_path(path, error=SweepError, what="a sweep")
    about, content = read_file(path)
    try:
        result = SweepResult.empty(SweepMetadata(**about["question"]), about["n_pairs"])
    except (TypeError, ValueError, AttributeError, MemoryError) as error:
        raise SweepError(f"{path} is not a sweep that can be read: {error}") from error
    size, _ = fill_from(content, path, result)
    if size < len(content) or int(result.finished.sum()) < about.get("saved", 0):
        warn(f"the end of {path} is missing: it was cut off, or is being written. {result.progress_text()}")
    return result
