"""SweepSpec: what a sweep patches, and at which places, as users write it; and the look-up of those places."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

from torch import Tensor

from gemmascope.arguments import as_list, as_numbers, as_words, short_repr
from gemmascope.edits.call_text import traces_verbatim
from gemmascope.edits.edit import Edit, listed_edits
from gemmascope.edits.places import Head, Pos, find_heads, find_positions
from gemmascope.edits.sources import listed_reference
from gemmascope.errors import SiteError, SweepError
from gemmascope.model.model import Model
from gemmascope.run.trace import Trace
from gemmascope.sites import Site, find_layer, parse_site_name
from gemmascope.workers.choice import RayWorkers

Layers = int | Iterable[int] | None

_PLACES = ("layer", "pos", "head", "q_pos", "k_pos")

# The axes of a site that a grid can have, beside the layers.
_GRID_AXES = ("head", "kv_head", "pos", "q_pos", "k_pos")


@dataclass(frozen=True)
class SweepSpec:
    """What a sweep patches, and at which places. Each field is the argument of gs.sweep of that name.

    Iterators become lists here, because each pair looks its places up. EditError or SiteError for what is no list.
    """

    site: str | Sequence[str]
    by: Sequence[str] = ("layer", "pos")
    into: str = "corrupt"
    ablate: float | str | None = None
    reference: Sequence[Trace] = ()
    layer: Layers = None
    pos: Pos = None
    head: Head = None
    q_pos: Pos = None
    k_pos: Pos = None
    window: int = 1
    edits: Sequence[Edit] = ()

    def __post_init__(self) -> None:
        if isinstance(self.site, (list, tuple)):
            object.__setattr__(self, "site", self._listed_sites(self.site))
        object.__setattr__(self, "reference", listed_reference(self.reference))
        for name in _PLACES:
            if isinstance(value := getattr(self, name), Iterator):
                object.__setattr__(self, name, as_list(value, name, error=SiteError))
        object.__setattr__(self, "edits", listed_edits(self.edits))

    @staticmethod
    def _listed_sites(sites: object) -> list[str]:
        names = as_words(sites)
        if not names:
            raise SweepError(f"site is the name of a site, or a list of names; given {short_repr(sites)}")
        return names

    def each_site(self) -> list[SweepSpec]:
        """The spec of every site."""
        return [replace(self, site=name) for name in self.site] if isinstance(self.site, list) else [self]

    def as_arguments(self, **more: object) -> dict[str, object]:
        """The keyword arguments of the call that repeats the sweep."""
        names = ("site", "by", "into", "ablate", *_PLACES, "window")
        arguments = {name: getattr(self, name) for name in names}
        return {**arguments, "reference": traces_verbatim(self.reference), **more, "edits": list(self.edits)}


class SweepOptions(TypedDict, total=False):
    """The keyword arguments of gs.sweep beside site, for type checkers."""

    by: Sequence[str]
    into: str
    ablate: float | str | None
    reference: Sequence[Trace]
    layer: Layers
    pos: Pos
    head: Head
    q_pos: Pos
    k_pos: Pos
    window: int
    edits: Sequence[Edit]
    model: Model | None
    memory: int | str | None
    progress: bool
    out: str | os.PathLike[str] | None
    workers: RayWorkers | int | None


def grid_axes(site: object, by: object) -> tuple[Site, int | None, list[str]]:
    """The site of a grid, the layer if its name says one, and the grid's axes: all that can be checked without a model.

    SiteError for an unknown site, SweepError for one outside the layers and for axes that it does not have.
    """
    named, layer = parse_site_name(site)
    if not named.in_layer:
        raise SweepError(f"'{named.name}' is outside the layers, so there is no grid over it: use gs.trace with an edit")
    possible = ["layer", *(axis for axis in named.axes if axis in _GRID_AXES)]
    names = as_words(by)
    names = names and [named.heads if name == "head" and named.heads else name for name in names]
    if not names or len(set(names)) < len(names) or set(names) - set(possible):
        raise SweepError(f"by names axes of '{named.name}', each once: {', '.join(possible)}; given {short_repr(by)}")
    return named, layer, names


def numbers_along(spec: SweepSpec, site: Site, layer: int | None, model: Model, ids: Tensor) -> dict[str, list[int]]:
    """The layers, heads and positions that a spec covers in a run of these ids, by axis, in the order of the site's axes.

    layer: the one that the site's name says. SiteError for places that are not there, SweepError for other axes' places.
    """
    layers = _layers(spec.layer, model.n_layers) if layer is None else [_named_layer(spec, layer, model.n_layers)]
    numbers = {"layer": layers}
    heads = find_heads(spec.head, site, model)
    edges = {"q_pos": spec.q_pos, "k_pos": spec.k_pos}
    if site.is_edges and spec.pos is not None:
        raise SweepError(f"'{site.name}' lives on attention edges: say q_pos and k_pos instead of pos")
    if not site.is_edges and any(value is not None for value in edges.values()):
        raise SweepError(f"'{site.name}' has positions, not edges: say pos instead of q_pos and k_pos")
    for axis in site.axes:
        if axis in ("head", "kv_head"):
            assert heads is not None
            numbers[axis] = heads
        elif axis in ("pos", "q_pos", "k_pos"):
            numbers[axis] = find_positions(edges.get(axis, spec.pos), model, ids)
    return numbers


def _named_layer(spec: SweepSpec, named: int, n_layers: int) -> int:
    """The layer that the site's name says. SiteError if the spec says another."""
    layer = find_layer(named, n_layers)
    if spec.layer is not None and _layers(spec.layer, n_layers) != [layer]:
        raise SiteError(
            f"{spec.site!r} names layer {named}, and layer={short_repr(spec.layer)} was given as well; give one of them"
        )
    return layer


def _layers(layer: Layers, n_layers: int) -> list[int]:
    if layer is None:
        return list(range(n_layers))
    values = as_numbers(layer)
    values = [layer] if values is None else values
    numbers = [find_layer(value, n_layers) for value in values]
    if not numbers:
        raise SweepError("layer is an empty list: name at least one, or leave it out for all")
    if len(set(numbers)) < len(numbers):
        raise SiteError(f"layer names one twice: {short_repr(values)}")
    return numbers
