"""Scatter plots of predicted against true effects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from gemmascope.figures.theme import HATCH, PLAIN, escape_label, style_figure
from gemmascope.packages import plotly

if TYPE_CHECKING:
    import pandas
    from plotly.graph_objects import Figure

# More points than this are drawn with WebGL.
MOST_SVG_POINTS = 3000
_HOVER = "%{text}<br>predicted %{x:+.4g}, true %{y:+.4g}<extra></extra>"


def predicted_figure(panels: Mapping[str, pandas.DataFrame], title: str, subtitle: str = "") -> Figure:
    """Panels side by side, each of true effects (up) against predicted ones with the line where both are equal.

    panels: by their heading, tables with the columns changed, name, predicted and true, which have rows.
    """
    go = plotly()
    from plotly.subplots import make_subplots

    figure = make_subplots(cols=max(1, len(panels)), subplot_titles=list(map(escape_label, panels)))
    for column, table in enumerate(panels.values(), 1):
        predicted, true = table["predicted"].to_numpy(), table["true"].to_numpy()
        ends = [float(min(predicted.min(), true.min(), 0.0)), float(max(predicted.max(), true.max(), 0.0))]
        texts = [escape_label(f"{a}: {b}") for a, b in zip(table["changed"], table["name"], strict=True)]
        scatter = go.Scatter if len(true) <= MOST_SVG_POINTS else go.Scattergl
        marks = {"color": PLAIN, "size": 7, "opacity": 0.6}
        equal = go.Scatter(x=ends, y=ends, mode="lines", line={"color": HATCH, "width": 1.5}, hoverinfo="skip")
        points = scatter(x=predicted, y=true, mode="markers", marker=marks, text=texts, hovertemplate=_HOVER)
        figure.add_traces([equal, points], rows=1, cols=column)
        figure.update_xaxes(title="predicted change", row=1, col=column)
    figure.update_yaxes(title="true change", row=1, col=1)
    figure.update_annotations(font_size=12)
    style_figure(figure, title, subtitle, height=420, margin={"t": 104})
    return figure
