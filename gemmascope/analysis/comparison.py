"""Comparison: what gs.compare found: how far two models' answers, streams and heads agree, with labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from gemmascope.arguments import one_of
from gemmascope.errors import MetricError
from gemmascope.legible import legibly, spelled

if TYPE_CHECKING:
    import pandas
    import xarray
    from plotly.graph_objects import Figure

Array = np.ndarray[Any, Any]

# Prompts that the report lists, those that differ most first, and how much of each it shows.
N_SHOWN, N_CHARS = 8, 40


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """What the weights of model b change beside those of model a.

    By prompt [prompt]: kl, KL(a || b) of the soft-capped next token in nats; kl_all, its mean over all positions; agrees,
    whether the top answers are the same token; logprob_change, of a's top answer, b's less a's, in nats.
    By layer [layer], n_layers + 1 entries: cosine, and relative_error |a - b| / |a| of what enters layer l, and last of
    what leaves the last one. Means over the positions of all prompts, the first of each (<bos>) left out.
    By head [pair, layer, head]: effect_a and effect_b, what patching z, or setting it to 0, changes in a metric.
    patched: whether z was patched, or else set to 0. top: how many of the strongest heads are compared.
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
        """KL(a || b) in nats, the mean over all positions of all prompts."""
        return float(self.kl_all.weighted(self.kl_all["n_pos"]).mean())

    @property
    def top_heads_a(self) -> list[tuple[int, int]]:
        """The strongest heads in model a, as (layer, head), by the mean size of their effect over pairs."""
        return _strongest(self.effect_a, self.top)

    @property
    def top_heads_b(self) -> list[tuple[int, int]]:
        """The strongest heads in model b."""
        return _strongest(self.effect_b, self.top)

    @property
    def head_agreement(self) -> float:
        """The share of the strongest heads that both models name, from 0 to 1."""
        return len(set(self.top_heads_a) & set(self.top_heads_b)) / self.top

    @property
    def head_agreement_by_chance(self) -> float:
        """The share that two random choices of as many heads would have in common, on average."""
        return self.top / self.effect_a[0].size

    @property
    def head_rank_correlation(self) -> float:
        """Spearman's rank correlation of all heads' effects: means over pairs, with their signs. NaN if all are equal."""
        return rank_correlation(self.effect_a.mean("pair").values.ravel(), self.effect_b.mean("pair").values.ravel())

    def to_dataframe(self, by: str = "prompt") -> pandas.DataFrame:
        """A row for every prompt, layer or head. by: which. Effects are means over pairs, sizes those of |effect|."""
        tables: dict[str, Callable[[], dict[str, xarray.DataArray]]] = {
            "prompt": lambda: {name: getattr(self, name) for name in ("kl", "kl_all", "agrees", "logprob_change")},
            "layer": lambda: {"cosine": self.cosine, "relative_error": self.relative_error},
            "head": self._head_means,
        }
        one_of(by, "by, what a row stands for,", tables, error=MetricError)
        import xarray

        return xarray.Dataset(tables[by]()).to_dataframe().reset_index()

    def plot(self) -> Figure:
        """A plotly figure: cosine and relative error of the stream by layer. Needs plotly."""
        from gemmascope.figures.stream_difference import stream_difference_figure

        title = "The stream of model b beside that of model a, mean over positions without the first"
        return stream_difference_figure(self.cosine, self.relative_error, title=title)

    @legibly
    def __repr__(self) -> str:
        lines = [f"  {name:<11} {text}" for name, text in self._summary()]
        rows = [f"  {kl:<11} {answers}  {text}" for kl, answers, text in self._prompts()]
        return "\n".join([self._title(), *lines, *rows])

    def _repr_html_(self) -> str:
        summary = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in self._summary())
        rows = "".join(f"<tr>{''.join(f'<td>{escape(c)}</td>' for c in cells)}</tr>" for cells in self._prompts())
        return (
            f"<div class='gs-comparison'><b>{escape(self._title())}</b><table>{summary}</table>"
            f"<table><tr><th>KL, nats</th><th>top answers of a and b</th><th>prompt</th></tr>{rows}</table></div>"
        )

    def _title(self) -> str:
        n = self.kl.size
        return f"Comparison over {n} prompt{'s' if n > 1 else ''}, {int(self.kl['n_pos'].sum())} positions"

    def _summary(self) -> list[tuple[str, str]]:
        done = "patching z" if self.patched else "setting z to 0"
        shared = round(self.head_agreement * self.top)
        return [
            ("a", spelled(self.model_a)),
            ("b", spelled(self.model_b)),
            ("KL(a || b)", f"next token {float(self.kl.mean()):.3g} nats, at most {float(self.kl.max()):.3g}; "
                           f"mean over all positions {self.kl_mean:.3g}"),
            ("answers", f"the same top answer in {int(self.agrees.sum())} of {self.agrees.size}; log-probability of a's "
                        f"{float(self.logprob_change.mean()):+.3g} nats"),
            ("stream", f"cosine at least {_place(self.cosine, np.argmin, '.6f')}; relative error at most "
                       f"{_place(self.relative_error, np.argmax, '.3g')}; <bos> left out"),
            ("heads", f"{shared} of the {self.top} strongest shared ({self.head_agreement_by_chance * self.top:.2g} by "
                      f"chance), rank correlation {self.head_rank_correlation:.4f}, {done}"),
        ]  # fmt: skip

    def _prompts(self) -> list[tuple[str, str, str]]:
        """Of the prompts that differ most: KL, both top answers, and the end of the text. Quoted, so that it stays text."""
        rows = []
        for i in np.argsort(-self.kl.values, kind="stable")[:N_SHOWN]:
            of = self.kl[int(i)]
            text, answers = str(of["text"].item()), [repr(str(of[name].item())) for name in ("answer_a", "answer_b")]
            end = repr(text) if len(text) <= N_CHARS else "…" + repr(text[-N_CHARS:])
            rows.append((f"{float(of):.3g}", " / ".join(answers), end))
        return rows

    def _head_means(self) -> dict[str, xarray.DataArray]:
        found = {}
        for name, effect in (("a", self.effect_a), ("b", self.effect_b)):
            found[f"effect_{name}"], found[f"size_{name}"] = effect.mean("pair"), abs(effect).mean("pair")
        return found


def rank_correlation(x: Array, y: Array) -> float:
    """Spearman's rank correlation, equal numbers sharing their mean rank. NaN where all of x or all of y are equal."""
    import pandas

    return float(pandas.Series(x).rank().corr(pandas.Series(y).rank()))


def _strongest(effect: xarray.DataArray, k: int) -> list[tuple[int, int]]:
    size = abs(effect).mean("pair")
    order = np.argsort(-size.values.ravel(), kind="stable")[:k]
    layers, heads = np.unravel_index(order, size.shape)
    return list(zip(size["layer"].values[layers].tolist(), size["head"].values[heads].tolist(), strict=True))


def _place(by_layer: xarray.DataArray, extreme: Callable[[Array], Any], spec: str) -> str:
    at = int(extreme(by_layer.values))
    return f"{by_layer.values[at]:{spec}} ({by_layer['site'].values[at]})"
