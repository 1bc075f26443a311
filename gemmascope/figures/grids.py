"""Several labelled arrays as one figure: a row of subplots for each unit, with one colour scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gemmascope.figures.labelled import labelled_figure
from gemmascope.figures.theme import DIVERGING, escape_label, style_figure

if TYPE_CHECKING:
    import xarray
    from plotly.graph_objects import Figure

# Pixels: of a row of a heat map, of a subplot at least and at most, between rows (axis labels stand there), above and below.
ROW, LEAST, MOST, BETWEEN, MARGINS = 24, 210, 700, 100, 170
# How many subplots, and how many columns of heat maps, stand beside each other.
MOST_BESIDE, MOST_COLUMNS = 3, 64


@dataclass(frozen=True)
class Panel:
    """A subplot. title: plain text, escaped here. values: NaN where there is none."""

    title: str
    values: xarray.DataArray


def grids_figure(rows: Sequence[tuple[str, Sequence[Panel]]], *, title: str, subtitle: str = "") -> Figure:
    """A figure of arrays with one or two axes, labelled as in `labelled_figure`.

    Args:
        rows: Of each unit, which is written beside its colours, the subplots that share its colours and are centred on 0.
            Those that do not fit beside each other stand in several rows.
        title: Plain text, escaped here.
        subtitle: A smaller line below the title; empty for none.
    """
    n_beside = min(_n_beside(panel.values) for _, panels in rows for panel in panels)
    n_beside = min(n_beside, max(len(panels) for _, panels in rows))
    lines = [
        (number, panels[start : start + n_beside])
        for number, (_, panels) in enumerate(rows)
        for start in range(0, len(panels), n_beside)
    ]
    heights = [max(_height(panel.values) for panel in line) for _, line in lines]
    from plotly.subplots import make_subplots

    plotted = sum(heights) + BETWEEN * (len(lines) - 1)
    titles = [title for _, line in lines for title in [*_titles(line), *[""] * (n_beside - len(line))]]
    spacing = {"vertical_spacing": BETWEEN / plotted, "horizontal_spacing": 0.08 / n_beside}
    figure = make_subplots(len(lines), n_beside, row_heights=heights, subplot_titles=titles, **spacing)
    extremes = [_extremes(panels) for _, panels in rows]
    for i, (number, line) in enumerate(lines, 1):
        for j, panel in enumerate(line, 1):
            _add(figure, panel, rows[number][0], number, extremes[number], (i, j))
    for number, (unit, _) in enumerate(rows):
        mine = [i for i, (of, _) in enumerate(lines) if of == number]
        top, bottom = _domain(figure, mine[0], n_beside)[1], _domain(figure, mine[-1], n_beside)[0]
        unit_label = {"text": escape_label(unit), "side": "right", "font": {"size": 11}}
        bar = {"title": unit_label, "y": (top + bottom) / 2, "len": top - bottom}
        bound = max(map(abs, extremes[number]))
        scale = {"colorscale": DIVERGING, "cmin": -bound, "cmax": bound, "colorbar": bar}
        figure.update_layout({_colours(number): scale})
    style_figure(figure, title, subtitle, height=plotted + MARGINS, margin={"t": 100, "b": 70})
    figure.update_annotations(font_size=12)
    return figure


def _n_beside(array: xarray.DataArray) -> int:
    return max(1, min(MOST_BESIDE, MOST_COLUMNS // array.shape[-1]))


def _titles(line: Sequence[Panel]) -> list[str]:
    return [escape_label(panel.title) for panel in line]


def _height(array: xarray.DataArray) -> int:
    return int(np.clip(ROW * array.shape[0], LEAST, MOST)) if array.ndim == 2 else LEAST


def _extremes(panels: Sequence[Panel]) -> tuple[float, float]:
    """The smallest and the largest value of these subplots, 0 among them; (-1, 1) where all are 0."""
    values = np.concatenate([[0.0], *(panel.values.values.ravel() for panel in panels)])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    return (low, high) if low < high else (-1.0, 1.0)


def _colours(number: int) -> str:
    return f"coloraxis{number + 1 if number else ''}"


def _domain(figure: Figure, line: int, n_beside: int) -> tuple[float, float]:
    low, high = figure.layout[f"yaxis{line * n_beside + 1 if line else ''}"].domain
    return low, high


def _add(
    figure: Figure, panel: Panel, unit: str, number: int, extremes: tuple[float, float], place: tuple[int, int]
) -> None:
    """Put a subplot in its place: what is drawn of its array alone, in shared colours, with its title under the pointer."""
    row, column = place
    alone = labelled_figure(panel.values, title=panel.title, unit=unit, diverging=True)
    for drawn in alone.data:
        if drawn.hovertemplate:
            drawn.hovertemplate = f"{escape_label(panel.title)}<br>{drawn.hovertemplate}"
        if drawn.type == "heatmap":
            drawn.update(coloraxis=_colours(number), colorbar=None, colorscale=None, zmin=None, zmax=None)
        figure.add_trace(drawn, row=row, col=column)
    figure.update_xaxes(alone.layout.xaxis.to_plotly_json(), row=row, col=column)
    figure.update_xaxes(tickfont_size=10, row=row, col=column)
    figure.update_yaxes(alone.layout.yaxis.to_plotly_json(), row=row, col=column)
    if panel.values.ndim == 1:
        low, high = extremes
        margin = 0.05 * (high - low)
        figure.update_yaxes(range=[low - margin, high + margin], title_font_size=11, row=row, col=column)
    if column > 1:
        figure.update_yaxes(title=None, row=row, col=column)
