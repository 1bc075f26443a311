"""Figures of edge scores: a heat map of senders and receivers, and estimates against exact scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gemmascope.figures.theme import DIVERGING, HATCH, INK, LINE, PLAIN, escape_label, style_figure
from gemmascope.packages import plotly
from gemmascope.values import Array

if TYPE_CHECKING:
    import xarray
    from plotly.graph_objects import Figure

# An axis with more layers than this names every second, third, ... of them.
MOST_LAYERS = 24

# More points than this are drawn with WebGL, which has no limit that matters here.
MOST_SVG_POINTS = 3000


def edge_map(scores: xarray.DataArray, *, title: str, unit: str, subtitle: str = "") -> Figure:
    """A heat map of scores (sender, receiver), ticked by layer, with thin lines between the layers."""
    go = plotly()
    values = scores.values
    bound = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    senders, receivers = ([escape_label(str(name)) for name in scores[axis].values] for axis in ("sender", "receiver"))
    hover = [[f"{sender} → {receiver}" for receiver in receivers] for sender in senders]
    heat_map = go.Heatmap(
        z=values,
        colorscale=DIVERGING,
        zmin=-bound,
        zmax=bound,
        colorbar={"title": {"text": escape_label(unit), "side": "right"}},
        customdata=hover,
        hovertemplate="%{customdata}<br>%{z:+.4g}<extra></extra>",
        hoverongaps=False,
    )
    figure = go.Figure(heat_map)
    for update, axis, what in (
        (figure.update_xaxes, "receiver", "receiver: q, k, v of the heads and the MLP, by layer; logits"),
        (figure.update_yaxes, "sender", "sender: embedding; heads and the MLP, by layer"),
    ):
        ticks, texts = _layer_ticks(scores[f"{axis}_layer"].values, scores[f"{axis}_kind"].values)
        update(title=what, tickmode="array", tickvals=ticks, ticktext=texts, showgrid=False, zeroline=False)
    for at in _layer_starts(scores["receiver_layer"].values)[1:]:
        figure.add_vline(x=at - 0.5, line_width=1, line_color=LINE)
    for at in _layer_starts(scores["sender_layer"].values):
        figure.add_hline(y=at - 0.5, line_width=1, line_color=LINE)
    style_figure(figure, title, subtitle, height=560)
    return figure


def scatter_figure(
    truth: Array,
    panels: Mapping[str, Array],
    names: Sequence[str],
    *,
    title: str,
    truth_name: str,
    unit: str,
    subtitle: str = "",
) -> Figure:
    """Panels side by side, each of estimates (y) against the true scores (x) with the line where both are equal.

    panels: the estimates by their heading. names: of the points.
    """
    go = plotly()
    from plotly.subplots import make_subplots

    figure = make_subplots(cols=len(panels), subplot_titles=list(map(escape_label, panels)))
    scatter = go.Scatter if len(truth) <= MOST_SVG_POINTS else go.Scattergl
    hover = "%{text}<br>" + escape_label(truth_name) + " %{x:+.4g}, estimate %{y:+.4g}<extra></extra>"
    for column, scores in enumerate(panels.values(), 1):
        ends = [float(min(truth.min(), scores.min())), float(max(truth.max(), scores.max()))]
        equal = {"x": ends, "y": ends, "mode": "lines", "line": {"color": HATCH, "width": 1.5}}
        marks = {"color": PLAIN, "size": 5, "opacity": 0.55}
        points = scatter(
            x=truth, y=scores, mode="markers", marker=marks, text=list(map(escape_label, names)), hovertemplate=hover
        )
        figure.add_traces([go.Scatter(**equal, hoverinfo="skip"), points], rows=1, cols=column)
        figure.update_xaxes(title=escape_label(truth_name), row=1, col=column)
    figure.update_yaxes(title=escape_label(f"estimate: {unit}"), row=1, col=1)
    figure.update_annotations(font_size=12)
    style_figure(figure, title, subtitle, height=420, margin={"t": 104})
    return figure


def curves_figure(curves: Mapping[str, tuple[Sequence[float], Array]], *, title: str, subtitle: str = "") -> Figure:
    """Faithfulness over the share of edges, a line for each name, with lines at 0 and 1."""
    go = plotly()
    figure = go.Figure(
        [
            go.Scatter(
                x=[100 * size for size in sizes], y=heights, name=escape_label(name), mode="lines+markers",
                hovertemplate="%{x:.3g}% of the edges<br>%{y:+.3f}<extra>%{fullData.name}</extra>",
            )
            for name, (sizes, heights) in curves.items()
        ]
    )  # fmt: skip
    for height in (0, 1):
        figure.add_hline(y=height, line_width=1, line_dash="dot", line_color=INK)
    figure.update_xaxes(type="log", title="edges of the circuit, % of all")
    figure.update_yaxes(title="faithfulness", zeroline=False)
    style_figure(figure, title, subtitle, showlegend=True)
    return figure


def _layer_starts(layers: Array) -> list[int]:
    """Where each layer begins along an axis whose entries are in the order of layers; -1 is none."""
    found = [i for i in range(len(layers)) if layers[i] >= 0 and (i == 0 or layers[i] != layers[i - 1])]
    return [int(i) for i in found]


def _layer_ticks(layers: Array, kinds: Array) -> tuple[list[float], list[str]]:
    """A tick in the middle of each layer, and one for the embedding and the logits."""
    ticks: list[float] = []
    texts: list[str] = []
    n_layers = int(layers.max()) + 1
    every = -(-n_layers // MOST_LAYERS)
    for layer in range(0, n_layers, every):
        at = np.flatnonzero((layers == layer) & (kinds != "logits"))
        ticks.append(float(at.mean()))
        texts.append(str(layer))
    for kind in ("embed", "logits"):
        for i in np.flatnonzero(kinds == kind):
            ticks.append(float(i))
            texts.append(kind)
    return ticks, texts
