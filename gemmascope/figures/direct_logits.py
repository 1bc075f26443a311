"""Bars and heat maps of direct contributions to a logit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray

from gemmascope.figures.labelled import labelled_figure

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# How many neurons, or heads with their source positions, a figure shows: the strongest.
MOST = 24


def direct_figure(
    parts: xarray.DataArray, rest: xarray.DataArray, *, title: str, unit: str, total: float, after: str, about: str = ""
) -> Figure:
    """Bars for sublayers and the strongest neurons, heat maps for heads and for heads with their source positions.

    parts: (part), (layer, head), (layer, d_mlp) or (layer, head, k_pos). rest: (part), what `parts` leaves out. total: the
    sum of both, before the soft cap; after: what the cap makes of it, as text. Both are in the subtitle, below about.
    """
    drawn, extra = _drawn(parts, rest)
    hidden = drawn.size < parts.size + rest.size
    remainder = f"; {total - float(drawn.sum()):+.3g} of it in parts not drawn" if hidden else ""
    subtitle = f"{about}\ntogether {total:+.3g} {after}{remainder}"
    return labelled_figure(drawn, title=title + extra, unit=unit, diverging=True, subtitle=subtitle.strip())


def _drawn(parts: xarray.DataArray, rest: xarray.DataArray) -> tuple[xarray.DataArray, str]:
    """The values that fit into a figure, and an addition to its title. Sublayers stand beside what edits wrote."""
    if "part" in parts.dims:
        return xarray.concat([parts, rest], dim="part") if rest.size else parts, ""
    if "d_mlp" in parts.dims:
        return _strongest_neurons(parts)
    return _strongest_heads(parts) if "k_pos" in parts.dims else (parts, "")


def _strongest_neurons(parts: xarray.DataArray) -> tuple[xarray.DataArray, str]:
    flat = parts.stack(neuron=("layer", "d_mlp")).drop_vars("kind")
    order = abs(flat).argsort().values[::-1][:MOST]
    names = [f"{layer}.{neuron}" for layer, neuron in flat["neuron"].values[order]]
    array = flat[order].drop_vars(["neuron", "layer", "d_mlp"]).assign_coords(neuron=names)
    return array, f", the {len(names)} strongest neurons (layer.neuron)"


def _strongest_heads(parts: xarray.DataArray) -> tuple[xarray.DataArray, str]:
    """The heads that write most over all source positions, (heads, k_pos), in the order of their layers."""
    flat = parts.stack(source=("layer", "head")).transpose("source", "k_pos").drop_vars("kind")
    order = np.sort(abs(flat).sum("k_pos").argsort().values[::-1][:MOST])
    names = [f"{layer}.{head}" for layer, head in flat["source"].values[order]]
    array = flat[order].drop_vars(["source", "layer", "head"]).rename(source="heads").assign_coords(heads=names)
    return array, f", the {len(names)} strongest heads (layer.head)"
