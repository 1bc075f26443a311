"""Comparison, the result of gs.compare: how far two models' answers, streams and heads agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from gemmascope.arguments import one_of
from gemmascope.errors import MetricError
from gemmascope.legible import legible_line, prints_legibly
from gemmascope.sweeps.metadata import prompts_line

if TYPE_CHECKING:
    import pandas
    import xarray
    from plotly.graph_objects import Figure

# The number of prompts in the report, those that differ most, and the number of characters it shows of each.
N_SHOWN, N_CHARS = 8, 40


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """How model b differs from model a, a model of the same shape. Made by gs.compare.

    Attributes:
        model_a: The name of model a, with its dtype and fingerprint.
        model_b: The same of model b.
        kl: KL(a || b) of the soft-capped next token in nats, [prompt].
        kl_all: The mean of that over all positions of the prompt, [prompt].
        agrees: Whether the top answers are the same token, [prompt].
        logprob_change: The log-probability of a's top answer, b's less a's, in nats, [prompt].
        cosine: Cosine of the two streams, [layer]: n_layers + 1 entries, what enters each layer and what leaves the last
            one. A mean over the positions of all prompts, the first of each (`<bos>`) left out.
        relative_error: |a - b| / |a| of the same.
        effect_a: What patching a head's z, or setting it to 0, changes in a metric in model a, [pair, layer, head].
        effect_b: The same in model b.
        patched: Whether z was patched; else it was set to 0.
        top: How many of the strongest heads are compared.

    Examples:
        >>> result = gs.compare(gs.load(), gs.load(dtype="bfloat16"), "Mary went to the store.", top=3)
        >>> result.cosine.sizes["layer"]
        7
        >>> 0 <= result.head_agreement <= 1
        True
    """

    model_a: str
    model_b: str
    kl: xarray.DataArray
    kl_all: xarray.DataArray
    agrees: xarray.DataArray
    logprob_change: xarray.DataArray
    cosine: xarray.DataArray
    relative_error: xarray.DataArray
    effect_a: xarray.DataArray
    effect_b: xarray.DataArray
    patched: bool
    top: int

    @property
    def kl_mean(self) -> float:
        """Mean of KL(a || b) over all positions of all prompts, in nats."""
        return float(self.kl_all.weighted(self.kl_all["n_pos"]).mean())

    @property
    def top_heads_a(self) -> list[tuple[int, int]]:
        """The strongest heads in model a, as (layer, head), by the mean size of their effect over pairs."""
        return _strongest(self.effect_a, self.top)

    @property
    def top_heads_b(self) -> list[tuple[int, int]]:
        """The strongest heads in model b, as top_heads_a."""
        return _strongest(self.effect_b, self.top)

    @property
    def head_agreement(self) -> float:
        """The share of the strongest heads that both models have in common, from 0 to 1."""
        return len(set(self.top_heads_a) & set(self.top_heads_b)) / self.top

    @property
    def head_agreement_by_chance(self) -> float:
        """The share that two random sets of as many heads have in common, on average."""
        return self.top / self.effect_a[0].size

    @property
    def head_rank_correlation(self) -> float:
        """Spearman's rank correlation of all heads' effects, means over pairs with their signs. NaN if all are equal."""
        return rank_correlation(self.effect_a.mean("pair").values.ravel(), self.effect_b.mean("pair").values.ravel())

    def to_dataframe(self, by: str = "prompt") -> pandas.DataFrame:
        """One row for each prompt, layer or head.

        Args:
            by: "prompt", "layer" or "head". For heads, effect is the mean over pairs, and size the mean of |effect|.
        """
        tables: dict[str, Callable[[], dict[str, xarray.DataArray]]] = {
            "prompt": lambda: {name: getattr(self, name) for name in ("kl", "kl_all", "agrees", "logprob_change")},
            "layer": lambda: {"cosine": self.cosine, "relative_error": self.relative_error},
            "head": self._head_means,
        }
        one_of(by, "by, what a row stands for,", tables, error=MetricError)
        import xarray

        return xarray.Dataset(tables[by]()).to_dataframe().reset_index()

    def plot(self) -> Figure:
        """A plotly figure: cosine and relative error of the stream by layer."""
        from gemmascope.figures.stream_difference import stream_difference_figure

        title = "The stream of model b beside that of model a, mean over positions without the first"
        models = f"a: {self.model_a}\nb: {self.model_b}"
        prompts = prompts_line([str(text).removeprefix("<bos>") for text in self.kl["text"].values])
        return stream_difference_figure(self.cosine, self.relative_error, title=title, subtitle=f"{models}\n{prompts}")

    @prints_legibly
    def __repr__(self) -> str:
        lines = [f"  {name:<11} {text}" for name, text in self._summary()]
        rows = [f"  {kl:<11} {answers}  {text}" for kl, answers, text in self._most_different()]
        return "\n".join([self._title(), *lines, *rows])

    def _repr_html_(self) -> str:
        summary = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in self._summary())
        rows = "".join(f"<tr>{''.join(f'<td>{escape(c)}</td>' for c in cells)}</tr>" for cells in self._most_different())
        return (
            f"<div class='gs-comparison'><b>{escape(self._title())}</b><table>{summary}</table>"
            f"<table><tr><th>KL, nats</th><th>top answers of a and b</th><th>prompt</th></tr>{rows}</table></div>"
        )

    def _title(self) -> str:
        n = self.kl.size
        return f"Comparison over {n} prompt{'s' if n > 1 else ''}, {int(self.kl['n_pos'].sum())} positions"

    def _summary(self) -> list[tuple[str, str]]:
        intervention = "patching z" if self.patched else "setting z to 0"
        shared = round(self.head_agreement * self.top)
        return [
            ("a", legible_line(self.model_a)),
            ("b", legible_line(self.model_b)),
            ("KL(a || b)", f"next token {float(self.kl.mean()):.3g} nats, at most {float(self.kl.max()):.3g}; "
                           f"mean over all positions {self.kl_mean:.3g}"),
            ("answers", f"the same top answer in {int(self.agrees.sum())} of {self.agrees.size}; log-probability of a's "
                        f"{float(self.logprob_change.mean()):+.3g} nats"),
            ("stream", f"cosine at least {_extreme(self.cosine, np.argmin, '.6f')}; relative error at most "
                       f"{_extreme(self.relative_error, np.argmax, '.3g')}; <bos> left out"),
            ("heads", f"{shared} of the {self.top} strongest shared ({self.head_agreement_by_chance * self.top:.2g} by "
                      f"chance), rank correlation {self.head_rank_correlation:.4f}, {intervention}"),
        ]  # fmt: skip

    def _most_different(self) -> list[tuple[str, str, str]]:
        """KL, both top answers and the end of the text (quoted) of the prompts whose answers differ most."""
        rows = []
        for i in np.argsort(-self.kl.values, kind="stable")[:N_SHOWN]:
            kl = self.kl[int(i)]
            text, answers = str(kl["text"].item()), [repr(str(kl[name].item())) for name in ("answer_a", "answer_b")]
            end = repr(text) if len(text) <= N_CHARS else "…" + repr(text[-N_CHARS:])
            rows.append((f"{float(kl):.3g}", " / ".join(answers), end))
        return rows

    def _head_means(self) -> dict[str, xarray.DataArray]:
        means = {}
        for name, effect in (("a", self.effect_a), ("b", self.effect_b)):
            means[f"effect_{name}"], means[f"size_{name}"] = effect.mean("pair"), abs(effect).mean("pair")
        return means


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation, equal numbers share their mean rank. NaN where all of x or all of y are equal."""
    import pandas

    return float(pandas.Series(x).rank().corr(pandas.Series(y).rank()))


def _strongest(effect: xarray.DataArray, k: int) -> list[tuple[int, int]]:
    size = abs(effect).mean("pair")
    order = np.argsort(-size.values.ravel(), kind="stable")[:k]
    layers, heads = np.unravel_index(order, size.shape)
    return list(zip(size["layer"].values[layers].tolist(), size["head"].values[heads].tolist(), strict=True))


def _extreme(by_layer: xarray.DataArray, find: Callable[[np.ndarray], np.intp], spec: str) -> str:
    """The least or the largest entry, as text, and where it is."""
    index = int(find(by_layer.values))
    return f"{by_layer.values[index]:{spec}} ({by_layer['site'].values[index]})"
