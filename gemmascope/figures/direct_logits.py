"""Pictures of direct contributions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gemmascope.figures.labelled import labelled_figure

if TYPE_CHECKING:
    from gemmascope.analysis.direct_logits import DirectLogits

# As many neurons, or heads with their sources, as a picture shows: the strongest.
MOST = 24


def direct_figure(found: DirectLogits) -> Any:
    """Bars for sublayers and the strongest neurons, heat maps for heads and for heads' sources."""
    unit = str(found.parts.attrs["long_name"])
    drawn, which = _drawn(found)
    title = f"{found.about}{which}"
    figure = labelled_figure(drawn, title=title, unit=unit, diverging=True)
    cap = f"together {found.total:+.3g} before the soft cap, {found.capped:+.3g} after it"
    hidden = drawn.size < found.parts.size + found.rest.size
    rest = f"; {found.total - float(drawn.sum()):+.3g} of it in parts not drawn" if hidden else ""
    figure.update_layout(title_subtitle={"text": cap + rest, "font_size": 12})
    return figure


def _drawn(found: DirectLogits) -> tuple[Any, str]:
    """What a picture has room for, and what the title says of it. What edits wrote stands beside sublayers."""
    import xarray

    if found.by == "sublayer":
        return xarray.concat([found.parts, found.rest], dim="part") if found.rest.size else found.parts, ""
    return (found.parts, "") if found.by == "head" else _strongest(found)


def _strongest(found: DirectLogits) -> tuple[Any, str]:
    """The strongest neurons as an array (neuron), or the heads that move most as (head, k_pos), named by their layer."""
    if found.by == "neuron":
        flat = found.parts.stack(neuron=("layer", "d_mlp")).drop_vars("kind")
        order = abs(flat).argsort().values[::-1][:MOST]
        names = [f"{layer}.{neuron}" for layer, neuron in flat["neuron"].values[order]]
        array = flat[order].drop_vars(["neuron", "layer", "d_mlp"]).assign_coords(neuron=names)
        return array, f", the {len(names)} strongest neurons (layer.neuron)"
    flat = found.parts.stack(source=("layer", "head")).transpose("source", "k_pos").drop_vars("kind")
    order = np.sort(abs(flat).sum("k_pos").argsort().values[::-1][:MOST])
    names = [f"{layer}.{head}" for layer, head in flat["source"].values[order]]
    array = flat[order].drop_vars(["source", "layer", "head"]).rename(source="heads").assign_coords(heads=names)
    return array, f", the {len(names)} strongest heads (layer.head)"
