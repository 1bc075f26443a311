"""Pictures of steering: prompts along a direction, and what its strength does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gemmascope.figures.labelled import NEGATIVE, PLAIN, POSITIVE, text
from gemmascope.packages import plotly
from gemmascope.tokens.tokenizer import shown

if TYPE_CHECKING:
    from gemmascope.steering.direction import Direction
    from gemmascope.steering.strength_result import StrengthSweep

# How much of a prompt the pointer shows: its end, which is nearest to what was read.
MOST_SHOWN = 80

# A logarithmic axis that spans less than this factor is numbered within its decades.
MANY_DECADES = 1e3
# Marks at 1, 2 and 5 of a decade are at most a factor of 2.5 apart: so much wider a span has two of them.
FEW_TICKS = 6.25


def direction_figure(found: Direction) -> Any:
    """A plotly figure of the prompts of a direction, a strip for each class: where they are along it."""
    go = plotly()
    frame = found.to_dataframe()
    figure = go.Figure()
    for row, (name, colour, sign) in enumerate((("negative", NEGATIVE, -1), ("positive", POSITIVE, 1))):
        cases = frame[frame["class"] == name]
        right = np.isnan(cases["log_odds"]) | (sign * cases["log_odds"] > 0)
        figure.add_scatter(
            x=cases["projection"],
            y=row + _spread(len(cases)),
            customdata=[_hover(t, odds) for t, odds in zip(cases["text"], cases["log_odds"], strict=True)],
            hovertemplate="%{customdata}<br>projection %{x:.4g}<extra></extra>",
            mode="markers",
            marker={"color": colour, "size": 9, "opacity": 0.75, "symbol": ["circle" if r else "x" for r in right]},
            name=name,
        )
    figure.add_vline(x=0, line_color="#555555", line_dash="dot")
    figure.update_xaxes(title="projection on the direction, from the midpoint of the means", zeroline=False)
    figure.update_yaxes(
        tickmode="array",
        tickvals=[0, 1],
        ticktext=["negative", "positive"],
        range=[-0.6, 1.6],
        showgrid=False,
        zeroline=False,
    )
    figure.update_layout(
        title={"text": text(f"Direction at {found.where_text()}"), "font_size": 15},
        title_subtitle={"text": text(_said(found)), "font_size": 12},
        template="plotly_white",
        showlegend=False,
        height=360,
        margin={"t": 90},
    )
    return figure


def _said(found: Direction) -> str:
    wrong = "; crosses: on the wrong side when held out" if found.n_folds and found.accuracy < 1 else ""
    return f"{found.accuracy_text()}{wrong}"


def _spread(n: int) -> Any:
    """Heights around 0 that keep neighbours apart, the same every time: the golden ratio's multiples."""
    return (np.arange(n) * 0.6180339887498949 % 1.0 - 0.5) * 0.7


def _hover(prompt: str, log_odds: float) -> str:
    end = prompt if len(prompt) <= MOST_SHOWN else f"...{prompt[-MOST_SHOWN:]}"
    odds = "" if np.isnan(log_odds) else f"<br>held-out log-odds {log_odds:+.3g}"
    return f"{text(shown(end))}{odds}"


def strengths_figure(found: StrengthSweep) -> Any:
    """A plotly figure: the metric over strength above, perplexity below on a logarithmic axis; dots: the unsteered run."""
    figure = plotly("subplots").make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    panels = (
        (found.metric, found.unsteered_metric, found.question, PLAIN),
        (found.perplexity, found.unsteered_perplexity, "perplexity", NEGATIVE),
    )
    for row, (values, unsteered, title, colour) in enumerate(panels, start=1):
        drawn = values.sortby("strength")
        figure.add_scatter(
            x=drawn["strength"].values.tolist(),
            y=drawn.values.tolist(),
            hovertemplate=f"strength %{{x:g}}<br>{text(title)} %{{y:.4g}}<extra></extra>",
            mode="lines+markers",
            marker_color=colour,
            row=row,
            col=1,
        )
        if np.isfinite(unsteered):
            figure.add_hline(y=unsteered, line_color="#777777", line_dash="dot", row=row, col=1)
        figure.update_yaxes(title=text(_cut(title)), zeroline=False, row=row, col=1)
    seen = found.perplexity.values[np.isfinite(found.perplexity.values)]
    figure.update_yaxes(type="log", **_numbering(seen), row=2, col=1)
    figure.update_xaxes(zeroline=False)
    figure.update_xaxes(title="strength, in lengths of the vector", row=2, col=1)
    figure.update_layout(
        title={"text": text(f"Steering {found.model} with {_cut(found.edit, 90)}"), "font_size": 15},
        title_subtitle={"text": "dotted: unsteered", "font_size": 12},
        template="plotly_white",
        showlegend=False,
        height=560,
        margin={"t": 90},
    )
    return figure


def _numbering(seen: np.ndarray[Any, Any]) -> dict[str, Any]:
    """How a logarithmic axis over these numbers is marked, so that at least two marks are within them."""
    if not seen.size or seen.max() >= MANY_DECADES * seen.min():
        return {}
    if seen.max() >= FEW_TICKS * seen.min() or seen.max() == seen.min():
        return {"dtick": "D2"}
    low, high = float(seen.min()), float(seen.max())
    decade = 10.0 ** np.floor(np.log10(high - low))
    step = next(n * decade for n in (2, 1, 0.5, 0.2) if (high - low) / (n * decade) >= 3)
    return {"tickvals": [round(n * step, 10) for n in range(int(low // step), int(high // step) + 2)]}


def _cut(label: str, most: int = 36) -> str:
    return label if len(label) <= most else f"{label[:most]}..."
