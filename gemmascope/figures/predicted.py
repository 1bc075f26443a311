"""Scatter plots of predicted against true effects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gemmascope.packages import plotly

if TYPE_CHECKING:
    import pandas
    from plotly.graph_objects import Figure


def predicted_figure(table: pandas.DataFrame, title: str, unit: str) -> Figure:
    """Points of a table with the columns changed, output, predicted and true, and the line on which both are equal."""
    express, objects = plotly("express"), plotly()
    figure = express.scatter(table, x="predicted", y="true", color="output", hover_name="changed", title=title)
    ends = [min(table["predicted"].min(), table["true"].min(), 0.0), max(table["predicted"].max(), table["true"].max(), 0.0)]
    line = {"dash": "dash", "width": 1, "color": "#888"}
    figure.add_trace(objects.Scatter(x=ends, y=ends, mode="lines", line=line, hoverinfo="skip", name="equal"))
    figure.update_layout(xaxis_title=f"predicted {unit}", yaxis_title=f"true {unit}")
    return figure
