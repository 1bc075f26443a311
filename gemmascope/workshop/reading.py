"""draw_reading(): a drawing of what chosen heads read at one position."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray

from gemmascope.arguments import as_list, whole_number
from gemmascope.errors import GemmascopeError
from gemmascope.figures.reading import reading_figure
from gemmascope.sites import find_layer

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from gemmascope.run.trace import Trace


def draw_reading(trace: Trace, heads: Iterable[Sequence[int]], pos: int = -1) -> Figure:
    """Draw where heads read at one position: a row for each head, a dot at each token, as large as its attention.

    Args:
        trace: A run.
        heads: (layer, head) each, drawn from the bottom up in this order.
        pos: The position whose query reads; -1 for the last one.

    Returns:
        A plotly figure. Attention below 3% has no dot.

    Raises:
        GemmascopeError: There are no heads, or the model has no such layer, head or position.

    Examples:
        >>> t = gs.trace("When Mary and John went to the store, John gave a drink to")
        >>> figure = gs.workshop.draw_reading(t, [(2, 3), (3, 0)])
    """
    chosen = [_head(trace, head) for head in heads]
    if not chosen:
        raise GemmascopeError("there is no head to draw: give (layer, head) pairs, such as [(2, 3), (3, 0)]")
    n_pos = len(trace)
    query = whole_number(pos, "pos", least=-n_pos, most=n_pos - 1, error=GemmascopeError) % n_pos
    attention = xarray.DataArray(
        np.stack([trace["pattern", layer][head, query].float().cpu().numpy() for layer, head in chosen]),
        dims=["head", "k_pos"],
        coords={"head": [f"{layer}.{head}" for layer, head in chosen], "k_token": ("k_pos", trace.tokens)},
    )
    return reading_figure(attention, query=query, title=f"What heads read at position {query}, {trace.tokens[query]!r}")


def _head(trace: Trace, head: Sequence[int]) -> tuple[int, int]:
    """A head as a layer and a number. GemmascopeError if the model has no such head."""
    pair = as_list(head, "a head", error=GemmascopeError)
    if len(pair) != 2:
        raise GemmascopeError(f"a head is (layer, head), such as (2, 3); given {head!r}")
    layer = find_layer(pair[0], trace.model.n_layers)
    return layer, whole_number(pair[1], "head", least=0, most=trace.model.config.n_heads - 1, error=GemmascopeError)
