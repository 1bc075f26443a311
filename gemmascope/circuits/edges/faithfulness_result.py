"""Faithfulness: the curve of gs.faithfulness over sizes of circuits, and its two areas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gemmascope.errors import SweepError
from gemmascope.legible import legible_line, prints_legibly
from gemmascope.sweeps.metadata import metric_of_first, named_prompts
from gemmascope.values import Array, labelled

if TYPE_CHECKING:
    import pandas
    import xarray
    from plotly.graph_objects import Figure


@dataclass(eq=False)
class Faithfulness:
    """How much of the metric circuits of several sizes keep: 0 as much as no edge, 1 as much as all edges.

    Attributes:
        sizes: The shares of the edges that circuits were asked to have.
        n_edges: How many edges each has, after pruning.
        values: The metric of each circuit's run, float64 [pair, size].
        full: The metric with all edges, that of the patched run itself, float64 [pair].
        empty: The metric with every edge patched, float64 [pair].
        model: The model's name.
        method: How the scores came about that the circuits were chosen by.
        metric: The metric as Python code.
        prompts: The first pair of prompts as text, the clean one and the corrupted one, or of an ablation the only one.

    Examples:
        >>> clean = "When Mary and John went to the store, John gave a drink to"
        >>> corrupt = "When Mary and John went to the store, Mary gave a drink to"
        >>> metric = gs.logit_diff(" Mary", " John")
        >>> scores = gs.edge_scores(clean, corrupt, metric)
        >>> result = gs.faithfulness(scores, clean, corrupt, metric, sizes=(0.1, 0.5))
        >>> result.n_edges, result.curve.values.round(2).tolist()
        ([62, 390], [0.81, 1.0])
    """

    sizes: list[float]
    n_edges: list[int]
    values: Array
    full: Array
    empty: Array
    model: str
    method: str
    metric: str
    prompts: tuple[str, ...] = ()

    @property
    def curve(self) -> xarray.DataArray:
        """The faithfulness of each circuit, (size): the gap that it closes, of the means over pairs."""
        gap = self.full.mean() - self.empty.mean()
        share = (self.values.mean(0) - self.empty.mean()) / gap
        coords = {"size": self.sizes, "n_edges": ("size", self.n_edges)}
        return labelled(share, coords, ("size",), "faithfulness", "faithfulness")

    @property
    def cpr(self) -> float:
        """MIB's circuit performance ratio, the area under the curve: large where circuits do as much as the model, or more.

        Raises:
            SweepError: There is one circuit only.
        """
        return self._area(self.curve.values)

    @property
    def cmd(self) -> float:
        """MIB's circuit-model distance, the area between the curve and 1: small where circuits do what the model does.

        Raises:
            SweepError: There is one circuit only.
        """
        return self._area(np.abs(1 - self.curve.values))

    def _area(self, heights: Array) -> float:
        """The area by trapezoids, over the shares of edges."""
        if len(self.sizes) < 2:
            raise SweepError("an area is under a curve, and this is one circuit: give scores, and sizes")
        return float((np.diff(self.sizes) * (heights[1:] + heights[:-1]) / 2).sum())

    def to_dataframe(self) -> pandas.DataFrame:
        """One row a size: "size", "n_edges", "metric", "faithfulness"."""
        import pandas

        columns = {"size": self.sizes, "n_edges": self.n_edges, "metric": self.values.mean(0)}
        return pandas.DataFrame({**columns, "faithfulness": self.curve.values})

    def plot(self, *others: Faithfulness) -> Figure:
        """A plotly chart of the curve, and of others beside it, over a logarithmic axis of sizes. Needs plotly.

        Args:
            others: Results of other scores.
        """
        from gemmascope.figures.edges import curves_figure

        curves = {}
        for one in (self, *others):
            name, number = one.method, 2
            while name in curves:
                name, number = f"{one.method} ({number})", number + 1
            curves[name] = (one.sizes, one.curve.values)
        subtitle = [*named_prompts(self.prompts, len(self.values)), f"Measured: {metric_of_first(self.metric)}"]
        return curves_figure(curves, title=f"faithfulness of circuits of {self.model}", subtitle="\n".join(subtitle))

    @prints_legibly
    def __repr__(self) -> str:
        areas = f": CPR {self.cpr:.3f}, CMD {self.cmd:.3f}" if len(self.sizes) > 1 else ""
        lines = [f"faithfulness of circuits of {legible_line(self.model)} ({self.method}){areas}"]
        for size, n, share in zip(self.sizes, self.n_edges, self.curve.values, strict=True):
            lines.append(f"  {size:7.2%} of the edges, {n:5d} after pruning: {share:+.3f}")
        return "\n".join(lines)
