"""SweepSet: the grids of several sites and metrics, from one pass."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gemmascope.arguments import short_repr
from gemmascope.errors import SweepError
from gemmascope.files.writing import write_file
from gemmascope.legible import prints_legibly
from gemmascope.sites import did_you_mean
from gemmascope.sweeps.journal import text_of
from gemmascope.sweeps.metadata import metric_label, metric_of_first, picture_title, subtitle_of
from gemmascope.sweeps.result import SweepResult, values_to_draw
from gemmascope.sweeps.sets.numbers import SetNumbers, SetQuestion

if TYPE_CHECKING:
    import pandas
    import xarray
    from plotly.graph_objects import Figure

Key = str | tuple[str, str]


class SweepSet(Mapping[Key, SweepResult]):
    """The grids of several sites, or of several metrics, from one pass: a mapping of SweepResults.

    result["z"] is the grid of a site, result["loss"] that of a metric, and result["z", "loss"] of both where several of
    both were asked for. Each is the SweepResult of a sweep of its own. The properties below join them along the axes
    "site" and "metric".

    Attributes:
        question: What was asked: the names of sites and metrics, and what each grid was asked.

    Examples:
        >>> clean = "When Mary and John went to the store, John gave a drink to"
        >>> corrupt = "When Mary and John went to the store, Mary gave a drink to"
        >>> sites = ["resid_pre", "attn_out", "mlp_out"]
        >>> result = gs.sweep(clean, corrupt, gs.logit_diff(" Mary", " John"), site=sites, progress=False)
        >>> result.effect.dims, result.effect.shape
        (('site', 'layer', 'pos'), (3, 6, 15))
        >>> result["attn_out"].effect.equals(result.effect.sel(site="attn_out", drop=True))
        True
    """

    def __init__(self, question: SetQuestion, n_pairs: int) -> None:
        """A set without values. question: what is asked. n_pairs: how many pairs of prompts there are."""
        self.question = question
        self.numbers = SetNumbers(question, n_pairs)
        self.grids: list[SweepResult] = []
        for i, (asked, values) in enumerate(zip(question.grids, self.numbers.of_grids, strict=True)):
            rows = slice(i * n_pairs, (i + 1) * n_pairs)
            baselines = self.numbers.base_metric[rows], self.numbers.source_metric[rows]
            self.grids.append(SweepResult(asked, values, *baselines))

    # -- the mapping --

    def __getitem__(self, key: Key) -> SweepResult:
        keys = list(self)
        if key in keys:
            return self.grids[keys.index(key)]
        hint = did_you_mean(key, [k for k in keys if isinstance(k, str)]) if isinstance(key, str) else ""
        raise SweepError(f"this sweep has no grid {short_repr(key)}.{hint} It has {', '.join(map(repr, keys))}")

    def __iter__(self) -> Iterator[Key]:
        q = self.question
        if q.sites and q.metrics:
            return iter([(site, metric) for site in q.sites for metric in q.metrics])
        return iter([*q.sites, *q.metrics])

    def __len__(self) -> int:
        return len(self.grids)

    def __contains__(self, key: object) -> bool:
        return key in list(self)

    # -- joined --

    @property
    def effect(self) -> xarray.DataArray:
        """The effects of all grids, (site, metric, *by), without an axis that the call gave one of; see SweepResult.effect.

        Raises:
            SweepError: The grids of the sites have other axes: read each by itself.
        """
        return self._joined(lambda grid: grid.effect)

    @property
    def per_pair(self) -> xarray.DataArray:
        """The effects in each pair, (site, metric, pair, *by); errors as in effect."""
        return self._joined(lambda grid: grid.per_pair)

    @property
    def stderr(self) -> xarray.DataArray:
        """The standard errors of the mean effects over pairs, (site, metric, *by); errors as in effect, and for one pair."""
        return self._joined(lambda grid: grid.stderr)

    @property
    def normalized(self) -> xarray.DataArray:
        """The effects as shares of the gaps between the baselines, (site, metric, *by); see SweepResult.normalized."""
        return self._joined(lambda grid: grid.normalized)

    @property
    def clean(self) -> dict[str, float]:
        """The metric of the clean run, by name; the mean over pairs."""
        return {name: grid.clean for name, grid in self._of_metrics().items()}

    @property
    def corrupt(self) -> dict[str, float]:
        """The metric of the corrupted run, by name; the mean over pairs. SweepError for an ablation, which has none."""
        return {name: grid.corrupt for name, grid in self._of_metrics().items()}

    def to_dataframe(self) -> pandas.DataFrame:
        """One row a cell of every grid: its site and metric, and the columns of SweepResult.to_dataframe."""
        import pandas

        frames = []
        for site, name, grid in self._named():
            frame = grid.to_dataframe()
            frame.insert(0, "metric_name", name)
            frame.insert(0, "site", site)
            frames.append(frame)
        return pandas.concat(frames, ignore_index=True)

    def to_dict(self) -> dict[str, object]:
        """The results as data for JSON: of each grid what SweepResult.to_dict gives, and the name of its metric."""
        return {"grids": [{"metric_name": name, **grid.to_dict()} for _, name, grid in self._named()]}

    def plot(self, *, normalized: bool = False) -> Figure:
        """All grids as one plotly figure: a colour scale for each metric, and a subplot for each of its sites. Needs plotly.

        Blue raises a metric, red lowers it. result[key].plot() is the figure of one grid.

        Args:
            normalized: Show shares of the gap; by default effects, in the metric's unit.

        Raises:
            SweepError: A grid has more than two axes, or there is nothing to normalise by.
        """
        from gemmascope.figures.grids import Panel, grids_figure

        q, n_metrics = self.question, len(self.question.metrics) or 1
        panels = [Panel(", ".join(_listed(key)), values_to_draw(grid, normalized)) for key, grid in self.items()]
        names = [f" ({name})" for name in q.metrics] or [""]
        units = [f"share of the gap{name}" for name in names]
        if not normalized:
            units = [f"change of {metric_label(grid.question.metric)}" for grid in self.grids[:n_metrics]]
        rows = [(unit, panels[i::n_metrics]) for i, unit in enumerate(units)]
        first = self.grids[0].question
        metrics = [metric_of_first(grid.question.metric) for grid in self.grids]
        title = picture_title(replace(first, site=", ".join(q.sites or [first.site])), len(self.grids[0].values))
        return grids_figure(
            rows,
            title=title,
            subtitle=subtitle_of(replace(first, metric=", ".join(dict.fromkeys(metrics)))),
        )

    def code(self) -> str:
        """The Python that repeats the call."""
        return self.grids[0].code()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all grids to a file for gs.open_sweep, as SweepResult.save does.

        Args:
            path: The file; "~" is the home folder.

        Raises:
            SweepError: The file cannot be written.
        """
        done = [(i, n) for i, of_pair in enumerate(self.numbers.values) for n in np.flatnonzero(~np.isnan(of_pair)).tolist()]
        write_file(path, text_of(self.numbers, done), error=SweepError)

    def progress_text(self) -> str:
        """How far the sweep got: "90 of 90 cells finished"."""
        return self.numbers.progress_text()

    @prints_legibly
    def __repr__(self) -> str:
        return "\n\n".join(f"[{', '.join(map(repr, _listed(key)))}] {grid!r}" for key, grid in self.items())

    def _named(self) -> list[tuple[str, str, SweepResult]]:
        """Of each grid the site, the name of its metric, or its text where it is the only one, and the grid."""
        names = self.question.metrics or [self.grids[0].question.metric]
        return [(grid.question.site, names[i % len(names)], grid) for i, grid in enumerate(self.grids)]

    def _of_metrics(self) -> dict[str, SweepResult]:
        """A grid of each metric, by the metric's name: the baselines are those of any site."""
        n_metrics = len(self.question.metrics) or 1
        return {name: grid for _, name, grid in self._named()[:n_metrics]}

    def _joined(self, values: Callable[[SweepResult], xarray.DataArray]) -> xarray.DataArray:
        import xarray

        first = self.grids[0].question
        if other := next((grid.question for grid in self.grids if grid.question.axes != first.axes), None):
            mine, theirs = (f"{q.site}: {' x '.join(f'{len(n)} {a}' for a, n in q.axes.items())}" for q in (first, other))
            raise SweepError(
                f"the sites have unlike grids, which make no one array ({mine}; {theirs}): read each by itself, "
                f"result[{next(iter(self))!r}], or all in result.to_dataframe(), or sweep sites of like axes together"
            )
        joined = [values(grid) for grid in self.grids]
        q = self.question
        n_metrics = len(q.metrics) or 1
        if q.metrics:
            joined = [
                xarray.concat(joined[i : i + n_metrics], xarray.Variable("metric", q.metrics), combine_attrs="drop")
                for i in range(0, len(joined), n_metrics)
            ]
        if q.sites:
            joined = [xarray.concat(joined, xarray.Variable("site", q.sites), combine_attrs="drop_conflicts")]
        return joined[0].rename("effect")


def _listed(key: Key) -> tuple[str, ...]:
    return (key,) if isinstance(key, str) else key
