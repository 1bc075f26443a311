"""A figure of probes: accuracy by layer, with intervals and baselines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from gemmascope.figures.theme import INK, NEGATIVE, PLAIN, POSITIVE, style_figure
from gemmascope.packages import plotly

# Colours of sites, in turn.
COLOURS = (POSITIVE, NEGATIVE, PLAIN, "#7a52b3", "#2a8f5f", "#b3478a")

if TYPE_CHECKING:
    import xarray
    from plotly.graph_objects import Figure


def probes_figure(scores: xarray.Dataset, baselines: Mapping[str, float], *, title: str, subtitle: str) -> Figure:
    """A line for each site, over layers.

    scores: (array), with site, layer, accuracy, low, high and control. baselines: two, each a line across.
    """
    figure = plotly().Figure()
    sites = list(dict.fromkeys(scores["site"].values.tolist()))
    for number, site in enumerate(sites):
        one = scores.isel(array=(scores["site"].values == site).nonzero()[0]).sortby("layer")
        colour = COLOURS[number % len(COLOURS)]
        accuracy, layers = one["accuracy"].values, one["layer"].values.tolist()
        bars = {
            "type": "data",
            "symmetric": False,
            "array": (one["high"].values - accuracy).tolist(),
            "arrayminus": (accuracy - one["low"].values).tolist(),
        }
        figure.add_scatter(
            x=layers, y=accuracy.tolist(), error_y=bars, mode="lines+markers", marker_color=colour, name=site,
            hovertemplate=f"{site}, layer %{{x}}<br>accuracy %{{y:.3f}}<extra></extra>",
        )  # fmt: skip
        figure.add_scatter(
            x=layers, y=one["control"].values.tolist(), mode="lines+markers", line={"dash": "dot"}, marker_color=colour,
            name=f"{site}, control task", hovertemplate=f"{site}, layer %{{x}}<br>control task %{{y:.3f}}<extra></extra>",
        )  # fmt: skip
    for name, value, side in zip(baselines, baselines.values(), ("left", "right"), strict=True):  # two may be the same
        place = f"top {side}"
        figure.add_hline(y=value, line_color=INK, line_dash="dash", annotation_text=name, annotation_position=place)
    figure.update_xaxes(title="layer", zeroline=False, dtick=1 if len(set(scores["layer"].values.tolist())) < 30 else None)
    figure.update_yaxes(title="accuracy on texts held out", zeroline=False)
    style_figure(figure, title, subtitle, height=440, margin={"t": 88})
    figure.update_layout(showlegend=True)
    return figure
