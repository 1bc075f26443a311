"""Figures of steering: prompts along a direction, and what a vector's strength does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gemmascope.figures.theme import INK, NEGATIVE, PLAIN, POSITIVE, escape_label, style_figure
from gemmascope.packages import plotly
from gemmascope.tokens.tokenizer import visible_text

if TYPE_CHECKING:
    import xarray
    from plotly.graph_objects import Figure

# How many characters of a prompt the hover text shows: its end, which is nearest to the value that was read.
MOST_SHOWN = 80

# A logarithmic axis that spans less than this factor needs marks within its decades.
MANY_DECADES = 1e3
# Marks at 1, 2 and 5 of a decade are at most a factor of 2.5 apart, so a span of 2.5 squared holds at least two.
FEW_TICKS = 6.25


def direction_figure(projections: xarray.DataArray, log_odds: xarray.DataArray, *, title: str, subtitle: str) -> Figure:
    """A strip of points for each class, by their projection; a cross is a prompt whose log-odds have the wrong sign.

    projections, log_odds: (prompt), with the class ("positive" or "negative") and the text as coordinates.
    """
    go = plotly()
    figure = go.Figure()
    classes = projections["class"].values
    for row, (name, colour, sign) in enumerate((("negative", NEGATIVE, -1), ("positive", POSITIVE, 1))):
        in_class = classes == name
        odds = log_odds.values[in_class]
        right = np.isnan(odds) | (sign * odds > 0)
        figure.add_scatter(
            x=projections.values[in_class],
            y=row + _spread(int(in_class.sum())),
            customdata=[_hover(t, one) for t, one in zip(projections["text"].values[in_class], odds, strict=True)],
            hovertemplate="%{customdata}<br>projection %{x:.4g}<extra></extra>",
            mode="markers",
            marker={"color": colour, "size": 9, "opacity": 0.75, "symbol": ["circle" if r else "x" for r in right]},
            name=name,
        )
    figure.add_vline(x=0, line_color=INK, line_dash="dot")
    figure.update_xaxes(title="projection on the direction, from the midpoint of the means", zeroline=False)
    figure.update_yaxes(
        tickmode="array",
        tickvals=[0, 1],
        ticktext=["negative", "positive"],
        range=[-0.6, 1.6],
        showgrid=False,
        zeroline=False,
    )
    style_figure(figure, title, subtitle, height=360, margin={"t": 88})
    return figure


def _spread(n: int) -> NDArray[np.floating]:
    """Heights around 0 that keep neighbours apart and are always the same: multiples of the golden ratio."""
    return (np.arange(n) * 0.6180339887498949 % 1.0 - 0.5) * 0.7


def _hover(prompt: str, log_odds: float) -> str:
    end = prompt if len(prompt) <= MOST_SHOWN else f"...{prompt[-MOST_SHOWN:]}"
    odds = "" if np.isnan(log_odds) else f"<br>held-out log-odds {log_odds:+.3g}"
    return f"{escape_label(visible_text(end))}{odds}"


def strengths_figure(
    metric: xarray.DataArray,
    perplexity: xarray.DataArray,
    *,
    unsteered: tuple[float, float],
    title: str,
    unit: str,
    subtitle: str,
) -> Figure:
    """The metric by strength above, the perplexity below on a logarithmic axis; dotted lines are the unsteered run.

    metric, perplexity: (strength). unsteered: both values without steering, NaN for none. unit: what the metric measures.
    """
    figure = plotly("subplots").make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    panels = ((metric, unsteered[0], unit, PLAIN), (perplexity, unsteered[1], "perplexity", NEGATIVE))
    for row, (values, without, label, colour) in enumerate(panels, start=1):
        ordered = values.sortby("strength")
        figure.add_scatter(
            x=ordered["strength"].values.tolist(),
            y=ordered.values.tolist(),
            hovertemplate=f"strength %{{x:g}}<br>{escape_label(label)} %{{y:.4g}}<extra></extra>",
            mode="lines+markers",
            marker_color=colour,
            row=row,
            col=1,
        )
        if np.isfinite(without):
            figure.add_hline(y=without, line_color=INK, line_dash="dot", row=row, col=1)
        figure.update_yaxes(title=escape_label(shortened(label)), zeroline=False, row=row, col=1)
    finite = perplexity.values[np.isfinite(perplexity.values)]
    figure.update_yaxes(type="log", **log_ticks(finite), row=2, col=1)
    figure.update_xaxes(zeroline=False)
    figure.update_xaxes(title="strength, in lengths of the vector", row=2, col=1)
    style_figure(figure, title, subtitle, height=560, margin={"t": 88})
    return figure


def log_ticks(values: NDArray[np.floating]) -> dict[str, object]:
    """Plotly's tick settings for a logarithmic axis over these values, so that it has at least two marks.

    Marks at 1, 2 and 5 of a decade say whole numbers, "20, 50, 100": plotly's own would say "2, 5, 100".
    """
    if not values.size or values.max() >= MANY_DECADES * values.min():
        return {}
    if values.max() >= FEW_TICKS * values.min() or values.max() == values.min():
        first, last = (int(np.floor(np.log10(end))) for end in (values.min(), values.max()))
        marks = [float(f"{n}e{decade}") for decade in range(first, last + 2) for n in (1, 2, 5)]
        return {"tickvals": marks, "ticktext": [f"{mark:,g}" if mark < 1e6 else f"{mark:g}" for mark in marks]}
    low, high = float(values.min()), float(values.max())
    decade = 10.0 ** np.floor(np.log10(high - low))
    step = next(n * decade for n in (2, 1, 0.5, 0.2) if (high - low) / (n * decade) >= 3)
    return {"tickvals": [round(n * step, 10) for n in range(int(low // step), int(high // step) + 2)]}


def shortened(label: str, most: int = 36) -> str:
    return label if len(label) <= most else f"{label[:most]}..."
