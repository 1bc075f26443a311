"""Bars and heat maps of a dictionary's features."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gemmascope.figures.labelled import labelled_figure

if TYPE_CHECKING:
    import xarray
    from plotly.graph_objects import Figure


def features_figure(values: xarray.DataArray, *, title: str, unit: str, diverging: bool, subtitle: str = "") -> Figure:
    """Bars, or a heat map with the first feature on top, each feature labelled by its number and its concept.

    values: (feature) or (feature, pos), with the features' concepts as a coordinate if they have any.
    """
    concepts = values["concept"].values if "concept" in values.coords else [""] * values.sizes["feature"]
    # As text: a feature's number is a name, not a place on an axis.
    names = [f"{feature} {concept}".strip() for feature, concept in zip(values["feature"].values, concepts, strict=True)]
    values = values.drop_vars("concept", errors="ignore").assign_coords(feature=names)
    if values.ndim == 2:
        values = values.isel(feature=slice(None, None, -1))
    figure = labelled_figure(values, title=title, unit=unit, diverging=diverging, subtitle=subtitle)
    figure.update_layout(margin_l=8)
    return figure
