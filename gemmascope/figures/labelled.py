"""Figures of labelled arrays: bars for one axis, a heat map for two. What every result's plot() is made of.

Axes are numbers, with tokens, layers and heads as tick text: a category axis would merge tokens that repeat. Cells without
a value are hatched. Global layers carry a mark, so that the two kinds are told apart without colour.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gemmascope.errors import GemmascopeError
from gemmascope.legible import spelled
from gemmascope.packages import plotly
from gemmascope.tokens.tokenizer import shown

if TYPE_CHECKING:
    import xarray

# ColorBrewer's RdBu and Blues, told apart by the colour-blind: red is negative, blue positive.
DIVERGING = [[0.0, "#b2182b"], [0.25, "#ef8a62"], [0.5, "#f7f7f7"], [0.75, "#67a9cf"], [1.0, "#2166ac"]]
SEQUENTIAL = [[0.0, "#f7fbff"], [0.25, "#c6dbef"], [0.5, "#6baed6"], [0.75, "#2171b5"], [1.0, "#08306b"]]
NEGATIVE, POSITIVE, PLAIN, HATCH = "#b2182b", "#2166ac", "#2171b5", "#9a9a9a"

GLOBAL = "◆"
TITLES = {
    "pos": "position", "q_pos": "query position", "k_pos": "key position", "kv_head": "kv head",
    "layer": f"layer ({GLOBAL} global)",
}  # fmt: skip
TOKENS_OF = {"pos": "token", "q_pos": "q_token", "k_pos": "k_token"}

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "&#36;", "%{": "&#37;{"}

# More ticks than this are left to plotly, which numbers some of them.
MOST_TICKS, MOST_TOKENS = 48, 80


def labelled_figure(array: xarray.DataArray, *, title: str, unit: str, diverging: bool, bound: float | None = None) -> Any:
    """A plotly figure of an array with one or two axes, labelled by its coordinates (kind, token, q_token, k_token).

    title and unit are text; so are tokens. diverging: a scale around 0, as wide as the largest number, or as bound; else
    from the least to the largest, or from 0 to bound. GemmascopeError for more axes: choose with .sel first.
    """
    if array.ndim not in (1, 2):
        axes = ", ".join(map(str, array.dims))
        raise GemmascopeError(
            f"a picture has one or two axes; this has {array.ndim} ({axes}): choose some of it first, with .sel or .isel"
        )
    figure = _bars(array, unit, diverging) if array.ndim == 1 else _heat(array, unit, _range(array, diverging, bound))
    figure.update_layout(
        title={"text": text(title), "font_size": 15}, template="plotly_white", margin={"t": 70}, showlegend=False
    )
    figure.update_xaxes(showgrid=False, zeroline=False)
    return figure


def text(label: str) -> str:
    """Text as plotly draws it: a token is text.

    plotly reads a little HTML in labels, TeX between two dollars where MathJax is loaded, and places for values after a
    percent sign in hover texts. It draws what is written as an entity and looks for none of these in it.
    """
    for char, entity in _ENTITIES.items():
        label = label.replace(char, entity)
    return spelled(label)


def axis_labels(array: xarray.DataArray, axis: str) -> list[str]:
    """What each number of an axis is called: '·Mary' for a position, '5 ◆' for a global layer, '2'."""
    numbers = _numbers(array, axis)
    if (tokens := TOKENS_OF.get(axis)) in array.coords:
        return [text(shown(str(token))) for token in array[tokens].values]
    if axis == "layer" and "kind" in array.coords:
        return [
            f"{n} {GLOBAL}" if kind == "global" else str(n) for n, kind in zip(numbers, array["kind"].values, strict=True)
        ]
    return [text(str(n)) for n in (array[axis].values if axis in array.coords else numbers)]


def label_axis(update: Any, array: xarray.DataArray, axis: str) -> None:
    """Give an axis of a figure (its update_xaxes or update_yaxes) the title and ticks of an array's axis."""
    labels, numbers = axis_labels(array, axis), _numbers(array, axis)
    marks = axis == "layer" and len(labels) > MOST_TICKS
    ticks: dict[str, Any] = {"tickmode": "array", "tickvals": numbers, "ticktext": labels}
    if len(labels) > (MOST_TOKENS if axis in TOKENS_OF else MOST_TICKS) and not marks:
        ticks = {"tickformat": "d"}
    update(title=TITLES.get(axis, axis), **ticks)


def hatched(array: xarray.DataArray) -> Any | None:
    """A trace that hatches the cells of a heat map that have no value; None where all have one."""
    go = plotly()
    rows, columns = (_numbers(array, str(axis)) for axis in array.dims)
    x: list[float | None] = []
    y: list[float | None] = []
    for i, j in np.argwhere(np.isnan(array.values)):
        left, right, low, high = columns[j] - 0.5, columns[j] + 0.5, rows[i] - 0.5, rows[i] + 0.5
        x += [left, right, right, left, left, None]
        y += [low, low, high, high, low, None]
    if not x:
        return None
    pattern = {"shape": "/", "size": 6, "solidity": 0.15, "fgcolor": HATCH, "bgcolor": "#ffffff"}
    return go.Scatter(
        x=x, y=y, mode="lines", line_width=0, fill="toself", fillpattern=pattern, hoverinfo="skip", name="not run"
    )


def _numbers(array: xarray.DataArray, axis: str) -> list[int]:
    """The places of an axis: its coordinate where that is whole numbers, else 0, 1, 2."""
    if axis in array.coords and array[axis].dtype.kind in "iu":
        return [int(n) for n in array[axis].values]
    return list(range(array.sizes[axis]))


def _range(array: xarray.DataArray, diverging: bool, bound: float | None) -> tuple[float, float, Any]:
    values = array.values[np.isfinite(array.values)]
    if diverging:
        bound = bound or float(np.abs(values).max(initial=0.0)) or 1.0
        return -bound, bound, DIVERGING
    low = 0.0 if bound is not None else float(values.min(initial=0.0))
    high = bound if bound is not None else float(values.max(initial=0.0))
    return low, high if high > low else low + 1.0, SEQUENTIAL


def _bars(array: xarray.DataArray, unit: str, diverging: bool) -> Any:
    go = plotly()
    axis = str(array.dims[0])
    colours = [(POSITIVE if v >= 0 else NEGATIVE) if diverging else PLAIN for v in array.values]
    labels = _places(array, axis)
    hover = "%{customdata}<br>%{y:+.4g}<extra></extra>" if diverging else "%{customdata}<br>%{y:.4g}<extra></extra>"
    bars = go.Bar(x=_numbers(array, axis), y=array.values, marker_color=colours, customdata=labels, hovertemplate=hover)
    figure = go.Figure(bars)
    label_axis(figure.update_xaxes, array, axis)
    figure.update_yaxes(title=text(unit))
    return figure


def _heat(array: xarray.DataArray, unit: str, scale: tuple[float, float, Any]) -> Any:
    go = plotly()
    rows, columns = map(str, array.dims)
    low, high, colours = scale
    drawn = go.Heatmap(
        z=array.values,
        x=_numbers(array, columns),
        y=_numbers(array, rows),
        colorscale=colours,
        zmin=low,
        zmax=high,
        colorbar={"title": {"text": text(unit), "side": "right"}},
        customdata=_hover(array, rows, columns),
        hovertemplate=f"%{{customdata}}<br>%{{z:{'+' if low < 0 else ''}.4g}}<extra></extra>",
        hoverongaps=False,
        xgap=1,
        ygap=1,
    )
    hatch = hatched(array)
    figure = go.Figure([drawn] if hatch is None else [hatch, drawn])
    label_axis(figure.update_xaxes, array, columns)
    label_axis(figure.update_yaxes, array, rows)
    down = rows == "q_pos"  # as a pattern is read: the first query on top
    figure.update_yaxes(showgrid=False, zeroline=False, autorange="reversed" if down else True)
    figure.update_layout(height=max(360, min(1100, 160 + 26 * array.sizes[rows])))
    return figure


def _hover(array: xarray.DataArray, rows: str, columns: str) -> list[list[str]]:
    down, across = (_places(array, axis) for axis in (rows, columns))
    return [[f"{row}<br>{column}" for column in across] for row in down]


def _places(array: xarray.DataArray, axis: str) -> list[str]:
    """Each place of an axis in words: 'position 3: ·Mary', 'layer 5, global', 'head 2'."""
    labels, numbers = axis_labels(array, axis), _numbers(array, axis)
    if axis == "layer" and "kind" in array.coords:
        return [f"layer {n}, {kind}" for n, kind in zip(numbers, array["kind"].values, strict=True)]
    named = [n if label == str(n) else f"{n}: {label}" for n, label in zip(numbers, labels, strict=True)]
    return [f"{TITLES.get(axis, axis)} {name}" for name in named]
