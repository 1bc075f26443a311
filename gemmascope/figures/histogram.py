"""A histogram as bars."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gemmascope.figures.theme import PLAIN, escape_label, style_figure
from gemmascope.packages import plotly

if TYPE_CHECKING:
    import xarray
    from plotly.graph_objects import Figure


def histogram_figure(counts: xarray.DataArray, *, title: str, subtitle: str, unit: str) -> Figure:
    """Counts [bin] with the coordinates low and high, on a logarithmic axis; empty bins at both ends are left out."""
    go = plotly()
    full = np.flatnonzero(counts.values)
    part = slice(int(full[0]), int(full[-1]) + 1) if len(full) else slice(0, 0)
    low, high = counts["low"].values[part], counts["high"].values[part]
    figure = go.Figure(
        go.Bar(
            x=(low + high) / 2,
            y=counts.values[part],
            width=high - low,
            marker={"color": PLAIN, "line": {"width": 0}},
            customdata=np.stack((low, high), 1),
            hovertemplate="%{customdata[0]:.4g} to %{customdata[1]:.4g}: %{y:,} rows<extra></extra>",
        )
    )
    figure.update_xaxes(title=escape_label(unit))
    figure.update_yaxes(title="rows", type="log")
    style_figure(figure, title, subtitle, height=320)
    return figure
