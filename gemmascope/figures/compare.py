"""How near the streams of two models are, layer by layer, as lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gemmascope.packages import plotly

if TYPE_CHECKING:
    from gemmascope.analysis.comparison import Comparison

COLOURS = ("#2166ac", "#b2182b")


def nearness_figure(found: Comparison) -> Any:
    """A plotly figure of a comparison: cosine above and relative error below, one point for each entry of the stream."""
    figure = plotly("subplots").make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    rows = [(found.cosine, "cosine"), (found.relative_error, "relative error |a - b| / |a|")]
    for row, ((values, title), colour) in enumerate(zip(rows, COLOURS, strict=True), start=1):
        figure.add_scatter(
            x=values["layer"].values.tolist(),
            y=values.values.tolist(),
            customdata=values["site"].values.tolist(),
            hovertemplate="%{customdata}<br>%{y:.6g}<extra></extra>",
            mode="lines+markers",
            marker_color=colour,
            name=title,
            row=row,
            col=1,
        )
        figure.update_yaxes(title=title, row=row, col=1)
    last = int(found.cosine["layer"][-1])
    figure.update_xaxes(tickformat="d", dtick=max(1, last // 12))
    figure.update_xaxes(title=f"layer that the stream enters ({last}: it leaves the last)", row=2, col=1)
    title = "The stream of model b beside that of model a, mean over positions without the first"
    figure.update_layout(title=title, template="plotly_white", showlegend=False, margin={"t": 60})
    return figure
