"""A figure of a training: measures by step, one panel each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gemmascope.figures.theme import PLAIN, style_figure
from gemmascope.packages import plotly

if TYPE_CHECKING:
    import xarray
    from plotly.graph_objects import Figure

# The panels: a measure of the history, and what its axis says.
PANELS = {"explained": "variance explained", "l0": "L0", "dead": "dead features"}


def training_figure(history: xarray.DataArray, *, title: str, subtitle: str) -> Figure:
    """Lines over the steps, one above the other. history: (step, measure)."""
    figure = plotly("subplots").make_subplots(rows=len(PANELS), cols=1, shared_xaxes=True, vertical_spacing=0.06)
    steps = history["step"].values.tolist()
    for row, (measure, name) in enumerate(PANELS.items(), start=1):
        figure.add_scatter(
            x=steps,
            y=history.sel(measure=measure).values.tolist(),
            mode="lines",
            line_color=PLAIN,
            name=name,
            hovertemplate=f"step %{{x:,}}<br>{name} %{{y:.4g}}<extra></extra>",
            row=row,
            col=1,
        )
        figure.update_yaxes(title=name, zeroline=False, row=row, col=1)
    figure.update_yaxes(tickformat=".0%", range=[max(0.0, _low(history)), 1.0], row=1, col=1)
    figure.update_yaxes(type="log", row=2, col=1)
    figure.update_yaxes(rangemode="tozero", row=3, col=1)
    figure.update_xaxes(zeroline=False)
    figure.update_xaxes(title="step", row=len(PANELS), col=1)
    style_figure(figure, title, subtitle, height=640, margin={"t": 88})
    figure.update_layout(showlegend=False)
    return figure


def _low(history: xarray.DataArray) -> float:
    """The lowest share of variance of the last nine tenths of the steps."""
    values = history.sel(measure="explained").values
    return float(values[len(values) // 10 :].min()) - 0.05
