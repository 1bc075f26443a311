"""Pictures of how heads compose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gemmascope.figures.labelled import GLOBAL, MOST_TICKS, labelled_figure

if TYPE_CHECKING:
    import xarray

    from gemmascope.analysis.composition import Composition


def composition_figure(found: Composition) -> Any:
    """A heat map, senders down and receivers along: heads, or layers where there are more heads than ticks."""
    scores = found.scores.dropna("from_layer", how="all").dropna("to_layer", how="all")
    n_heads = scores.sizes["from_head"]
    by_layer = max(scores.sizes["from_layer"], scores.sizes["to_layer"]) * n_heads > MOST_TICKS
    drawn = _by_layer(scores) if by_layer else _by_head(scores)
    which = ", the largest of each two layers" if by_layer else ""
    title = f"composition through {scores.attrs['long_name'].split()[-1]}, {found.model}{which}"
    return labelled_figure(drawn, title=title, unit="composition, 0 to 1", diverging=False)


def _by_head(scores: xarray.DataArray) -> xarray.DataArray:
    import xarray

    def names(side: str) -> list[str]:
        return [f"{name}.{head}" for name in _layers(scores, side) for head in scores[f"{side}_head"].values]

    senders, receivers = names("from"), names("to")
    coords = {"sender (layer.head)": senders, "receiver (layer.head)": receivers}
    return xarray.DataArray(scores.values.reshape(len(senders), len(receivers)), coords=coords, dims=list(coords))


def _by_layer(scores: xarray.DataArray) -> xarray.DataArray:
    import xarray

    coords = {"sending layer": _layers(scores, "from"), "receiving layer": _layers(scores, "to")}
    # Of two layers either all heads have a score or none.
    return xarray.DataArray(scores.values.max(axis=(1, 3)), coords=coords, dims=list(coords))


def _layers(scores: xarray.DataArray, side: str) -> list[str]:
    """Each layer by its number, global ones with their mark."""
    numbers, kinds = scores[f"{side}_layer"].values, scores[f"{side}_kind"].values
    return [f"{number}{GLOBAL if kind == 'global' else ''}" for number, kind in zip(numbers, kinds, strict=True)]
