"""A heat map of a lens: the most likely token of every layer and position, over a colour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gemmascope.figures.labelled import GLOBAL, labelled_figure
from gemmascope.figures.theme import UNDER_TEXT, escape_label
from gemmascope.legible import legible_line
from gemmascope.tokens.tokenizer import visible_text

if TYPE_CHECKING:
    import xarray
    from plotly.graph_objects import Figure

# A figure with more columns has no tokens in its cells; with fewer they are cut to so many characters.
MOST_COLUMNS, MOST_LETTERS = 40, 9
OUTLINE = "#e08a00"


# Tokens that the entry below answers as well are drawn this faint, so that those which change stand out.
FADED = 0.45


def lens_figure(
    values: xarray.DataArray,
    tokens: xarray.DataArray,
    *,
    title: str,
    unit: str,
    bound: float | None = None,
    first_leads: Sequence[int | None] = (),
    agrees: NDArray[np.bool_] | None = None,
    about: str = "",
) -> Figure:
    """Values as colours, tokens as the cells' text; both (layer, pos), or (entry, pos) with layer, kind and site.

    first_leads: For each position the row to outline, as the first in which its final answer leads; None for no row.
    about: A line below the title; empty for none.
    agrees [row, pos]: Whether a row's token is that of the row below it, from the second row on; None for no fading.
    """
    if by_entry := "entry" in values.dims:
        values = values.assign_coords(entry=_entry_names(values))
    leads = any(row is not None for row in first_leads)
    outlined = ["outlined: where the run's own answer is first the likeliest token"] if leads else []
    subtitle = "\n".join([*([about] if about else []), *outlined])
    figure = labelled_figure(values, title=title, unit=unit, diverging=False, bound=bound, subtitle=subtitle)
    if tokens.sizes["pos"] <= MOST_COLUMNS:
        heat_map = figure.data[-1]
        heat_map.update(text=_cells(tokens, agrees), texttemplate="%{text}", textfont={"size": 10}, colorscale=UNDER_TEXT)
    if by_entry:
        names = values["entry"].values.tolist()
        ticks = {"tickmode": "array", "tickvals": list(range(len(names))), "ticktext": names}
        figure.update_yaxes(title=f"stream ({GLOBAL} global layer)", **ticks)
    for column, row in zip(values["pos"].values.tolist(), first_leads or [None] * values.sizes["pos"], strict=True):
        if row is not None:
            figure.add_shape(
                type="rect",
                x0=column - 0.5,
                x1=column + 0.5,
                y0=row - 0.5,
                y1=row + 0.5,
                line={"color": OUTLINE, "width": 2},
            )
    return figure


def _cells(tokens: xarray.DataArray, agrees: NDArray[np.bool_] | None) -> list[list[str]]:
    """The text of each cell, cut, and faint where the row below says the same."""
    faint = np.zeros(tokens.shape, bool)
    if agrees is not None:
        faint[1:] = agrees

    def cell(token: object, is_faint: bool) -> str:
        text = escape_label(legible_line(visible_text(str(token)))[:MOST_LETTERS])
        return f'<span style="fill-opacity:{FADED}">{text}</span>' if is_faint and text else text

    return [list(map(cell, *row)) for row in zip(tokens.values, faint.tolist(), strict=True)]


def _entry_names(values: xarray.DataArray) -> list[str]:
    """Each entry of the stream: 'embed', '3 ◆ resid_mid'."""
    entries = zip(*(values[label].values.tolist() for label in ("layer", "kind", "site")), strict=True)
    return [f"{layer} {GLOBAL if kind == 'global' else ''} {site}".replace("  ", " ") if kind else site
            for layer, kind, site in entries]  # fmt: skip
