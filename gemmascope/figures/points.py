"""Points and lines of a few series, with levels to compare them with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from gemmascope.figures.theme import INK, LINE, PLAIN, escape_label, style_figure
from gemmascope.packages import plotly
from gemmascope.values import Array

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# Blue and red first, which colour-blind readers can tell apart.
COLOURS = (PLAIN, "#d6604d", "#5b9f00", "#9b6fb5")

Numbers = Sequence[float] | Tensor | Array
Series = Mapping[str, tuple[Numbers, Numbers]]


def points_figure(
    series: Series, *, title: str, x: str, y: str, lines: bool, equal: bool, levels: Mapping[str, float]
) -> Figure:
    """Series by name, each (x, y). lines: joined. equal: with the line on which both are equal. levels: heights by name."""
    go = plotly()
    figure = go.Figure()
    if equal:
        every = [float(value) for pair in series.values() for part in pair for value in part]
        ends = [min(every), max(every)]
        line = {"color": LINE, "width": 1.5}
        figure.add_trace(go.Scatter(x=ends, y=ends, mode="lines", line=line, hoverinfo="skip", showlegend=False))
    for number, (name, (at, height)) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        figure.add_trace(
            go.Scatter(
                x=[float(one) for one in at],
                y=[float(one) for one in height],
                name=escape_label(name),
                mode="lines+markers" if lines else "markers",
                marker={"size": 8, "opacity": 1 if lines else 0.75, "color": colour},
                line={"color": colour},
            )
        )
    for name, level in levels.items():
        text = {"annotation_text": escape_label(name), "annotation_position": "top right", "annotation_font_color": INK}
        figure.add_hline(y=float(level), line_width=1, line_dash="dot", line_color=INK, **text)
    figure.update_xaxes(title=escape_label(x))
    figure.update_yaxes(title=escape_label(y))
    style_figure(figure, title, height=400, showlegend=len(series) > 1)
    return figure
