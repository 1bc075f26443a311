"""draw_points(): a few series of numbers as points or lines, in the colours of all figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from gemmascope.errors import GemmascopeError
from gemmascope.figures.points import Series, points_figure

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def draw_points(
    series: Series,
    *,
    title: str,
    x: str,
    y: str,
    lines: bool = False,
    equal: bool = False,
    levels: Mapping[str, float] | None = None,
) -> Figure:
    """Draw series of numbers against each other.

    Args:
        series: For each name the x and the y of its points, as lists, arrays or tensors of one length.
        title: The figure's title.
        x: What is on the x axis, with its unit.
        y: What is on the y axis.
        lines: Join the points of a series.
        equal: Draw the line on which x and y are equal.
        levels: Heights to compare with, by name: a dotted line each.

    Returns:
        A plotly figure.

    Raises:
        GemmascopeError: There is no series, or one has no point or not as many x as y.

    Examples:
        >>> figure = gs.workshop.draw_points({"squares": ([0, 1, 2], [0, 1, 4])}, title="Squares", x="n", y="n x n")
    """
    if not series:
        raise GemmascopeError("there is nothing to draw: give series, such as {'squares': ([0, 1, 2], [0, 1, 4])}")
    for name, (at, height) in series.items():
        if not len(at) or len(at) != len(height):
            raise GemmascopeError(f"{name!r} has {len(at)} x and {len(height)} y: give as many of both, and one at least")
    return points_figure(series, title=title, x=x, y=y, lines=lines, equal=equal, levels=levels or {})
