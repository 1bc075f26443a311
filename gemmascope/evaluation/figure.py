"""Figures of evaluations: one metric of several tasks, of several runs side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from gemmascope.figures.theme import escape_label, style_figure
from gemmascope.packages import plotly

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def bars_figure(bars: Mapping[str, Mapping[str, tuple[float, float | None]]], metric: str) -> Figure:
    """Bars for each run, by its name: the value and standard error of each task."""
    figure = plotly().Figure()
    for name, values in bars.items():
        figure.add_bar(
            x=[escape_label(task) for task in values],
            y=[value for value, _ in values.values()],
            error_y={"type": "data", "array": [error for _, error in values.values()], "visible": True},
            name=escape_label(name),
        )
    figure.update_xaxes(type="category")
    figure.update_yaxes(title=escape_label(metric), rangemode="tozero")
    style_figure(figure, f"{escape_label(metric)} by task", "bars: standard error", height=420)
    figure.update_layout(barmode="group", showlegend=True, legend={"orientation": "h", "x": 0, "y": -0.15, "yanchor": "top"})
    return figure
