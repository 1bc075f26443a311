"""A heat map of how heads compose."""

from __future__ import annotations

from typing import TYPE_CHECKING

import xarray

from gemmascope.figures.labelled import GLOBAL, MOST_TICKS, labelled_figure

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def composition_figure(scores: xarray.DataArray, *, title: str, unit: str, subtitle: str = "") -> Figure:
    """Senders as rows, receivers as columns: heads, or layers if there are more heads than ticks fit.

    scores: (from_layer, from_head, to_layer, to_head), with from_kind and to_kind; NaN where a pair has no score.
    """
    scores = scores.dropna("from_layer", how="all").dropna("to_layer", how="all")
    n_heads = scores.sizes["from_head"]
    by_layer = max(scores.sizes["from_layer"], scores.sizes["to_layer"]) * n_heads > MOST_TICKS
    table = _by_layer(scores) if by_layer else _by_head(scores)
    extra = ", the largest of each two layers" if by_layer else ""
    return labelled_figure(table, title=title + extra, unit=unit, diverging=False, subtitle=subtitle)


def _by_head(scores: xarray.DataArray) -> xarray.DataArray:
    senders, receivers = _heads(scores, "from"), _heads(scores, "to")
    coords = {"sender (layer.head)": senders, "receiver (layer.head)": receivers}
    return xarray.DataArray(scores.values.reshape(len(senders), len(receivers)), coords=coords, dims=list(coords))


def _by_layer(scores: xarray.DataArray) -> xarray.DataArray:
    coords = {"sending layer": _layers(scores, "from"), "receiving layer": _layers(scores, "to")}
    # Within a pair of layers, either every pair of heads has a score or none has.
    return xarray.DataArray(scores.values.max(axis=(1, 3)), coords=coords, dims=list(coords))


def _heads(scores: xarray.DataArray, side: str) -> list[str]:
    return [f"{layer}.{head}" for layer in _layers(scores, side) for head in scores[f"{side}_head"].values]


def _layers(scores: xarray.DataArray, side: str) -> list[str]:
    """Each layer's number, with the mark of a global layer."""
    numbers, kinds = scores[f"{side}_layer"].values, scores[f"{side}_kind"].values
    return [f"{number}{GLOBAL if kind == 'global' else ''}" for number, kind in zip(numbers, kinds, strict=True)]
