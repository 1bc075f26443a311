"""Heat maps of sweeps: effects on a diverging scale around 0, positions as numbers with their tokens as tick text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gemmascope.errors import SweepError
from gemmascope.tokens import shown

if TYPE_CHECKING:
    from gemmascope.run.result import SweepResult

# ColorBrewer's RdBu, told apart by the colour-blind: red lowers the metric, blue raises it.
DIVERGING = [[0.0, "#b2182b"], [0.25, "#ef8a62"], [0.5, "#f7f7f7"], [0.75, "#67a9cf"], [1.0, "#2166ac"]]
NOT_RUN = "#d9d9d9"

_TITLES = {"pos": "position", "q_pos": "query position", "k_pos": "key position", "kv_head": "kv head"}


def sweep_figure(result: SweepResult, *, normalized: bool = False) -> Any:
    """A plotly figure of a sweep over one or two axes. SweepError for more: select some with .effect.sel first."""
    import plotly.graph_objects as go

    values = result.normalized if normalized else result.effect
    if values.ndim > 2:
        axes = ", ".join(map(str, values.dims))
        raise SweepError(f"a heat map has two axes; this sweep has {values.ndim} ({axes}): plot result.effect.sel(...)")
    unit = "share of the gap" if normalized else _text(f"change of {result.question.metric}")
    bound = float(np.nanmax(np.abs(values.values), initial=0.0)) or 1.0
    names = [str(dim) for dim in values.dims]
    if len(names) == 1:
        colours = ["#2166ac" if v >= 0 else "#b2182b" for v in values.values]
        drawn: Any = go.Bar(x=result.question.axes[names[0]], y=values.values, marker_color=colours)
        figure = go.Figure(drawn)
        _label_axis(figure.update_xaxes, result, names[0])
        figure.update_yaxes(title=unit)
    else:
        rows, columns = names
        drawn = go.Heatmap(
            z=values.values,
            x=result.question.axes[columns],
            y=result.question.axes[rows],
            colorscale=DIVERGING,
            zmin=-bound,
            zmax=bound,
            colorbar={"title": {"text": unit, "side": "right"}},
            customdata=_hover(result, rows, columns),
            hovertemplate="%{customdata}<br>%{z:+.4g}<extra></extra>",
            hoverongaps=False,
        )
        figure = go.Figure(drawn)
        _label_axis(figure.update_xaxes, result, columns)
        _label_axis(figure.update_yaxes, result, rows)
    estimate = f" (estimate: {result.question.estimate})" if result.question.estimate else ""
    title = f"{result.question.site} patched into the {result.question.into} run{estimate}"
    if not result.question.has_source:
        title = f"{result.question.site} ablated{estimate}"
    figure.update_layout(title=title, plot_bgcolor=NOT_RUN, template="plotly_white", margin={"t": 60})
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(showgrid=False)
    return figure


def _label_axis(update: Any, result: SweepResult, axis: str) -> None:
    """Integer positions with tokens as tick text: a category axis would merge tokens that repeat."""
    numbers = result.question.axes[axis]
    ticks = {"tickmode": "array", "tickvals": numbers, "ticktext": [_label(result, axis, n) for n in numbers]}
    if len(numbers) > 60 and axis in ("layer", "head", "kv_head"):
        ticks = {}
    update(title=_TITLES.get(axis, axis), **ticks)


def _label(result: SweepResult, axis: str, number: int) -> str:
    if axis in ("pos", "q_pos", "k_pos"):
        return _text(shown(result.question.tokens[number]))
    if axis == "layer":
        return f"{number} {result.question.kinds[number][0]}"
    return str(number)


def _hover(result: SweepResult, rows: str, columns: str) -> list[list[str]]:
    down, across = (
        [f"{_TITLES.get(axis, axis)} {n}: {_label(result, axis, n)}" for n in result.question.axes[axis]]
        for axis in (rows, columns)
    )
    return [[f"{row}<br>{column}" for column in across] for row in down]


def _text(token: str) -> str:
    """A token as plotly draws it: plotly reads a little HTML in labels, and a token is text."""
    return token.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
