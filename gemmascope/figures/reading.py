"""A drawing of where chosen heads read: a row for each head, a dot at each token that it reads, as large as its share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gemmascope.figures.labelled import axis_labels
from gemmascope.figures.theme import HATCH, PLAIN, escape_label, style_figure
from gemmascope.packages import plotly

if TYPE_CHECKING:
    import xarray
    from plotly.graph_objects import Figure

# Attention below this share has no dot; from LABELLED on the share is written beside it.
LEAST, LABELLED = 0.03, 0.2
ROW, MARGINS = 52, 150  # pixels


def reading_figure(attention: xarray.DataArray, *, query: int, title: str) -> Figure:
    """Lines from the query's position to what each head reads there.

    attention: (head, k_pos), with tokens; heads by name, first one at the bottom. query: the position that reads.
    """
    go = plotly()
    names = [str(name) for name in attention["head"].values]
    figure = go.Figure()
    for row in range(len(names)):
        shares = attention.values[row]
        read = [pos for pos in range(len(shares)) if shares[pos] >= LEAST]
        if read:
            ends = [min(*read, query), max(*read, query)]
            figure.add_scatter(x=ends, y=[row, row], mode="lines", line={"color": HATCH, "width": 1}, hoverinfo="skip")
        figure.add_scatter(
            x=read,
            y=[row] * len(read),
            mode="markers+text",
            marker={"size": [6 + 14 * float(shares[pos]) ** 0.5 for pos in read], "color": PLAIN, "opacity": 1},
            text=[f"{shares[pos]:.0%}" if shares[pos] >= LABELLED else "" for pos in read],
            textposition="top center",
            hovertext=[f"head {names[row]} reads position {pos}: {shares[pos]:.1%}" for pos in read],
            hoverinfo="text",
        )
    figure.add_vline(x=query, line={"color": HATCH, "width": 1, "dash": "dot"})
    figure.update_xaxes(
        title="position", tickvals=list(range(attention.sizes["k_pos"])), ticktext=axis_labels(attention, "k_pos"),
        range=[-0.5, attention.sizes["k_pos"] - 0.5], showgrid=False, zeroline=False,
    )  # fmt: skip
    rows = list(range(len(names)))
    figure.update_yaxes(
        title="head", tickvals=rows, ticktext=list(map(escape_label, names)), showgrid=False, zeroline=False,
        range=[-0.6, len(names) - 0.2],
    )  # fmt: skip
    style_figure(figure, title, height=MARGINS + ROW * len(names))
    return figure
