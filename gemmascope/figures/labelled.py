"""Figures of labelled arrays: bars for one axis, a heat map for two.

Axes are numeric, with tokens, layers and heads as tick text: a category axis would merge repeated tokens. Cells without a
value are hatched. Global layers carry a mark, so that the two kinds of layer differ without colour.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from gemmascope.errors import GemmascopeError
from gemmascope.figures.theme import (
    DIVERGING,
    HATCH,
    NEGATIVE,
    PLAIN,
    POSITIVE,
    SEQUENTIAL,
    TRANSPARENT,
    ColourScale,
    escape_label,
    style_figure,
)  # fmt: skip
from gemmascope.legible import signed
from gemmascope.packages import plotly
from gemmascope.tokens.characters import characters_of
from gemmascope.tokens.tokenizer import visible_text

if TYPE_CHECKING:
    import xarray
    from plotly.graph_objects import Figure, Scatter

GLOBAL = "◆"
TITLES = {
    "pos": "position", "q_pos": "query position", "k_pos": "key position", "kv_head": "kv head",
    "layer": f"layer ({GLOBAL} global)",
}  # fmt: skip
TOKENS_OF = {"pos": "token", "q_pos": "q_token", "k_pos": "k_token"}

# An axis with more labels than this is numbered by plotly, which skips some.
MOST_TICKS, MOST_TOKENS = 48, 80


class UpdateAxes(Protocol):
    """A figure's update_xaxes or update_yaxes."""

    def __call__(self, **properties: object) -> object: ...


def labelled_figure(
    array: xarray.DataArray,
    *,
    title: str,
    unit: str,
    diverging: bool,
    bound: float | None = None,
    subtitle: str = "",
) -> Figure:
    """A figure of an array with one or two axes, labelled by its coordinates (kind, token, q_token, k_token).

    Args:
        array: The values; NaN where there is none.
        title: Plain text, escaped here; so are tokens.
        unit: What the values measure, written beside the colour bar or the y axis.
        diverging: Colours are centred on 0 and reach as far as the largest absolute value, or `bound`. Otherwise they
            run from the smallest to the largest value, or from 0 to `bound`.
        bound: The end of the colour range; None to take it from the values.
        subtitle: A smaller line below the title; empty for none.

    Raises:
        GemmascopeError: The array has more than two axes, or none.
    """
    if array.ndim not in (1, 2):
        axes = ", ".join(map(str, array.dims))
        raise GemmascopeError(
            f"a picture has one or two axes; this has {array.ndim} ({axes}): choose some of it first, with .sel or .isel"
        )
    figure = _bars(array, unit, diverging) if array.ndim == 1 else _heat_map(array, unit, diverging, bound)
    style_figure(figure, title, subtitle)
    figure.update_xaxes(showgrid=False, zeroline=False)
    return figure


def axis_labels(array: xarray.DataArray, axis: str) -> list[str]:
    """The label of each index of an axis: '·Mary' for a position, '5 ◆' for a global layer, '2' for a head."""
    numbers = _numbers(array, axis)
    if (tokens := TOKENS_OF.get(axis)) in array.coords:
        return [escape_label(visible_text(str(token))) for token in array[tokens].values]
    if axis == "layer" and "kind" in array.coords:
        return [
            f"{n} {GLOBAL}" if kind == "global" else str(n) for n, kind in zip(numbers, array["kind"].values, strict=True)
        ]
    return [escape_label(str(n)) for n in (array[axis].values if axis in array.coords else numbers)]


def label_axis(update_axes: UpdateAxes, array: xarray.DataArray, axis: str) -> None:
    """Set the title and ticks of a figure's axis from an axis of the array."""
    labels, numbers = axis_labels(array, axis), _numbers(array, axis)
    if (tokens := TOKENS_OF.get(axis)) in array.coords:  # a character of several tokens stands at the first
        characters = characters_of([str(token) for token in array[tokens].values])
        labels = [
            label if one is None else "" if one.nth else escape_label(one.text)
            for label, one in zip(labels, characters, strict=True)
        ]
    most = MOST_TOKENS if axis in TOKENS_OF else MOST_TICKS
    title = TITLES.get(axis, axis)
    if len(labels) > most and axis != "layer":
        update_axes(title=title, tickformat="d")
    else:  # layers keep their labels at any number: plotly's own would lose the mark of global ones
        update_axes(title=title, tickmode="array", tickvals=numbers, ticktext=labels)


def hatching(array: xarray.DataArray) -> Scatter | None:
    """A trace that hatches the cells of a heat map that have no value; None if there are none."""
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
    pattern = {"shape": "/", "size": 6, "solidity": 0.15, "fgcolor": HATCH, "bgcolor": TRANSPARENT}
    return go.Scatter(
        x=x, y=y, mode="lines", line_width=0, fill="toself", fillpattern=pattern, hoverinfo="skip", name="not run"
    )


def _numbers(array: xarray.DataArray, axis: str) -> list[int]:
    """Where each index of an axis is drawn: at its coordinate if that is a whole number, else at 0, 1, 2..."""
    if axis in array.coords and array[axis].dtype.kind in "iu":
        return [int(n) for n in array[axis].values]
    return list(range(array.sizes[axis]))


def _colours(array: xarray.DataArray, diverging: bool, bound: float | None) -> tuple[float, float, ColourScale]:
    """The least and the largest value that colours show, and the colour scale."""
    values = array.values[np.isfinite(array.values)]
    if diverging:
        bound = bound or float(np.abs(values).max(initial=0.0)) or 1.0
        return -bound, bound, DIVERGING
    low = 0.0 if bound is not None else float(values.min(initial=0.0))
    high = bound if bound is not None else float(values.max(initial=0.0))
    return low, high if high > low else low + 1.0, SEQUENTIAL


def _bars(array: xarray.DataArray, unit: str, diverging: bool) -> Figure:
    go = plotly()
    axis = str(array.dims[0])
    colours = [(POSITIVE if v >= 0 else NEGATIVE) if diverging else PLAIN for v in array.values]
    labels = _hover_names(array, axis)
    shown = _shown(array.values, diverging)
    hover = [f"{label}<br>{number}" for label, number in zip(labels, shown, strict=True)]
    template = "%{customdata}<extra></extra>"
    bars = go.Bar(x=_numbers(array, axis), y=array.values, marker_color=colours, customdata=hover, hovertemplate=template)
    figure = go.Figure(bars)
    label_axis(figure.update_xaxes, array, axis)
    figure.update_yaxes(title=escape_label(unit))
    return figure


def _heat_map(array: xarray.DataArray, unit: str, diverging: bool, bound: float | None) -> Figure:
    go = plotly()
    rows, columns = map(str, array.dims)
    low, high, colours = _colours(array, diverging, bound)
    heat_map = go.Heatmap(
        z=array.values,
        x=_numbers(array, columns),
        y=_numbers(array, rows),
        colorscale=colours,
        zmin=low,
        zmax=high,
        colorbar={"title": {"text": escape_label(unit), "side": "right", "font": {"size": 11}}},
        customdata=_hover(array, rows, columns, low < 0),
        hovertemplate="%{customdata}<extra></extra>",
        hoverongaps=False,
        xgap=1,
        ygap=1,
    )
    hatched = hatching(array)
    figure = go.Figure([heat_map] if hatched is None else [hatched, heat_map])
    label_axis(figure.update_xaxes, array, columns)
    label_axis(figure.update_yaxes, array, rows)
    first_on_top = rows == "q_pos"  # attention patterns are read from the top
    figure.update_yaxes(showgrid=False, zeroline=False, autorange="reversed" if first_on_top else True)
    figure.update_layout(height=max(360, min(1100, 160 + 26 * array.sizes[rows])))
    return figure


def _hover(array: xarray.DataArray, rows: str, columns: str, with_sign: bool) -> list[list[str]]:
    row_names, column_names = (_hover_names(array, axis) for axis in (rows, columns))
    shown = iter(_shown(array.values.ravel(), with_sign))
    return [[f"{row}<br>{column}<br>{next(shown)}" for column in column_names] for row in row_names]


def _shown(values: NDArray[np.floating], with_sign: bool) -> list[str]:
    """Numbers as hover text shows them: '0' for what is rounding beside the largest."""
    largest = float(np.nanmax(np.abs(values), initial=0.0))
    return [signed(value, largest) if with_sign else f"{value:.4g}" for value in values.tolist()]


def _hover_names(array: xarray.DataArray, axis: str) -> list[str]:
    """Each index of an axis in words: 'position 3: ·Mary', 'layer 5, global', 'head 2'."""
    labels, numbers = axis_labels(array, axis), _numbers(array, axis)
    if axis == "layer" and "kind" in array.coords:
        return [f"layer {n}, {kind}" for n, kind in zip(numbers, array["kind"].values, strict=True)]
    if (tokens := TOKENS_OF.get(axis)) in array.coords:
        characters = characters_of([str(token) for token in array[tokens].values])
        labels = [
            f"{label} ({escape_label(str(one))})" if one else label for label, one in zip(labels, characters, strict=True)
        ]
    named = [n if label == str(n) else f"{n}: {label}" for n, label in zip(numbers, labels, strict=True)]
    return [f"{TITLES.get(axis, axis)} {name}" for name in named]
