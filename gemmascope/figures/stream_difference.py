"""How far the streams of two models differ, layer by layer, as lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gemmascope.figures.theme import NEGATIVE, POSITIVE, style_figure
from gemmascope.packages import plotly

if TYPE_CHECKING:
    import xarray
    from plotly.graph_objects import Figure

COLOURS = (POSITIVE, NEGATIVE)


def stream_difference_figure(
    cosine: xarray.DataArray, relative_error: xarray.DataArray, *, title: str, subtitle: str = ""
) -> Figure:
    """Cosine above and relative error below, each with one point for each entry of the stream."""
    figure = plotly("subplots").make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    panels = [(cosine, "cosine"), (relative_error, "relative error |a - b| / |a|")]
    for row, ((values, unit), colour) in enumerate(zip(panels, COLOURS, strict=True), start=1):
        figure.add_scatter(
            x=values["layer"].values.tolist(),
            y=values.values.tolist(),
            customdata=values["site"].values.tolist(),
            hovertemplate="%{customdata}<br>%{y:.6g}<extra></extra>",
            mode="lines+markers",
            marker_color=colour,
            name=unit,
            row=row,
            col=1,
        )
        figure.update_yaxes(title=unit, row=row, col=1)
    last = int(cosine["layer"][-1])
    figure.update_xaxes(tickformat="d", dtick=max(1, last // 12))
    figure.update_xaxes(title=f"layer that the stream enters ({last}: it leaves the last)", row=2, col=1)
    style_figure(figure, title, subtitle, height=560)
    return figure
