"""Pictures of heads' scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gemmascope.figures.labelled import labelled_figure, text

if TYPE_CHECKING:
    from gemmascope.analysis.heads import HeadScores

# What the colours are of, and how far they go; other kinds are shares of attention.
_UNITS: dict[str, tuple[str, float | None]] = {
    "local_reach": ("distance (positions)", None),
    "copying": ("copying, -1 to 1", 1.0),
}


def scores_figure(found: HeadScores) -> Any:
    """A heat map, layer by head, that says what was scored and over what."""
    unit, bound = _UNITS.get(found.kind, ("share of attention", 1.0))
    title = f"{found.kind}, {found.model}"
    figure = labelled_figure(found.scores, title=title, unit=unit, diverging=found.kind == "copying", bound=bound)
    said = text(f"{found.meaning}; {found.over}")
    figure.update_layout(title_subtitle={"text": said, "font_size": 12}, margin={"t": 90})
    return figure
