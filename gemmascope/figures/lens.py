"""A heat map of a lens: the most likely token of every layer and position, over a colour."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gemmascope.figures.labelled import GLOBAL, escape_label, labelled_figure
from gemmascope.legible import legible_line
from gemmascope.tokens.tokenizer import visible_text

if TYPE_CHECKING:
    import xarray
    from plotly.graph_objects import Figure

# A figure with more columns has no tokens in its cells; with fewer they are cut to so many characters.
MOST_COLUMNS, MOST_LETTERS = 40, 9


def lens_figure(
    values: xarray.DataArray, tokens: xarray.DataArray, *, title: str, unit: str, bound: float | None = None
) -> Figure:
    """Values as colours, tokens as the cells' text; both (layer, pos), or (entry, pos) with layer, kind and site."""
    if by_entry := "entry" in values.dims:
        values = values.assign_coords(entry=_entry_names(values))
    figure = labelled_figure(values, title=title, unit=unit, diverging=False, bound=bound)
    if tokens.sizes["pos"] <= MOST_COLUMNS:
        cells = [
            [escape_label(legible_line(visible_text(str(token)))[:MOST_LETTERS]) for token in row] for row in tokens.values
        ]
        heat_map = figure.data[-1]
        heat_map.text, heat_map.texttemplate, heat_map.textfont = cells, "%{text}", {"size": 10}
    if by_entry:
        names = values["entry"].values.tolist()
        ticks = {"tickmode": "array", "tickvals": list(range(len(names))), "ticktext": names}
        figure.update_yaxes(title=f"stream ({GLOBAL} global layer)", **ticks)
    return figure


def _entry_names(values: xarray.DataArray) -> list[str]:
    """Each entry of the stream: 'embed', '3 ◆ resid_mid'."""
    entries = zip(*(values[label].values.tolist() for label in ("layer", "kind", "site")), strict=True)
    return [f"{layer} {GLOBAL if kind == 'global' else ''} {site}".replace("  ", " ") if kind else site
            for layer, kind, site in entries]  # fmt: skip
