"""Grids: which cells a sweep has, and the edits that each cell makes.

A cell is a choice along each axis of `by`; along the other axes all its places are edited together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from gemmascope.arguments import as_list, as_numbers, as_words, shown, whole_number
from gemmascope.edits.bound import BoundEdit, mesh
from gemmascope.edits.places import find_heads, find_positions
from gemmascope.errors import SiteError, SweepError
from gemmascope.model.model import Model
from gemmascope.sites import Site, find_layer, parse_site_name
from gemmascope.sweeps.sources import PrecomputedValues, ValueSource


@dataclass(frozen=True)
class Places:
    """Which layers, positions and heads a sweep covers, as users write them. None means all."""

    layer: Any = None
    pos: Any = None
    head: Any = None
    q_pos: Any = None
    k_pos: Any = None

    def __post_init__(self) -> None:
        for name, given in vars(self).items():
            if isinstance(given, Iterator):  # it is asked for every pair
                object.__setattr__(self, name, as_list(given, name, error=SiteError))


EVERYWHERE = Places()

# Of a site's axes, those that cells can be laid along, beside the layers.
_LAID = ("head", "kv_head", "pos", "q_pos", "k_pos")


@dataclass(frozen=True)
class Grid:
    """The cells of a sweep over one base run.

    axes: the axes of the grid, by name, with the numbers along each. rest: the same for the axes that are not of the grid.
    window: how many neighbouring layers a cell edits, centred on its own.
    """

    site: Site
    axes: dict[str, list[int]]
    rest: dict[str, list[int]]
    window: int = 1

    @classmethod
    def over(cls, site: str, by: Sequence[str], places: Places, window: int, model: Model, ids: Tensor) -> Grid:
        """The grid that was asked for. SweepError for an axis the site does not have, SiteError for a place not there.

        site: its name here or in TransformerLens, which may say the layer as well.
        """
        found, at, wanted = asked_axes(site, by)
        if at is not None:
            places = replace(places, layer=_named_layer(site, at, places.layer, model.n_layers))
        numbers = _numbers(found, places, model, ids)
        window = whole_number(window, "window", least=1, most=model.n_layers, error=SweepError)
        if window > 1 and "layer" not in wanted:
            raise SweepError(f"window needs layer in by: without it a cell edits all its layers; given by={shown(by)}")
        rest = {name: n for name, n in numbers.items() if name not in wanted}
        return cls(found, {name: numbers[name] for name in wanted}, rest, window)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(numbers) for numbers in self.axes.values())

    @property
    def layers_at_once(self) -> list[int]:
        """Layers whose values the cells of a layer need together."""
        return list(range(self.window)) if "layer" in self.axes else self.rest["layer"]

    def cells(self) -> Iterator[dict[str, list[int]]]:
        """For each cell, the numbers that it edits along every axis, layers included."""
        for choice in product(*self.axes.values()):
            yield {**self.rest, **{name: [number] for name, number in zip(self.axes, choice, strict=True)}}

    def layers_of(self, cell: dict[str, list[int]], n_layers: int) -> list[int]:
        """The layers that a cell edits: its own, or the window around it as far as there are layers."""
        if "layer" not in self.axes:
            return cell["layer"]
        first = cell["layer"][0] - (self.window - 1) // 2
        return [layer for layer in range(first, first + self.window) if 0 <= layer < n_layers]


class CellEdits:
    """Makes the edits of a cell, of what its supply has to write."""

    def __init__(self, grid: Grid, model: Model, supply: ValueSource) -> None:
        self.grid, self.model, self.supply = grid, model, supply
        self._tensors: dict[tuple[int, ...], Tensor] = {}

    def of(self, cell: dict[str, list[int]]) -> tuple[BoundEdit, ...]:
        """The edits of a cell; none where it names only edges that the mask hides."""
        layers = self.grid.layers_of(cell, self.model.n_layers)
        return tuple(self._edit(layer, cell) for layer in layers if self.any_seen(layer, cell))

    def can_run(self, cell: dict[str, list[int]]) -> bool:
        """Whether a cell has edits at all: whether it names more than edges that the mask hides."""
        return any(self.any_seen(layer, cell) for layer in self.grid.layers_of(cell, self.model.n_layers))

    def whole(self, layer: int) -> Tensor:
        """What cells write at a layer: the whole site. Not to be had from a pass that is still to come."""
        assert isinstance(self.supply, PrecomputedValues)
        return self.supply.whole(layer)

    def index_of(self, cell: dict[str, list[int]]) -> tuple[Tensor, ...]:
        """Indices of a cell's places, their outer product, into a value of the site."""
        return mesh([self._tensor(cell[axis]) for axis in self.grid.site.axes if axis in cell])

    def any_seen(self, layer: int, cell: dict[str, list[int]]) -> bool:
        """Whether a cell names, at an edge site, at least one edge that the mask lets through; True at other sites."""
        if not self.grid.site.is_edges:
            return True
        window = self.model.config.window_of(layer) or self.model.config.context + 1
        return any(0 <= q - k < window for q in cell["q_pos"] for k in cell["k_pos"])

    def _edit(self, layer: int, cell: dict[str, list[int]]) -> BoundEdit:
        names = [axis for axis in self.grid.site.axes if axis in cell]
        words = {"head" if name == "kv_head" else name: cell[name] for name in names}
        return self.supply.edit(layer, self.grid.site, tuple(self._tensor(cell[name]) for name in names), words)

    def _tensor(self, numbers: list[int]) -> Tensor:
        key = tuple(numbers)
        if key not in self._tensors:
            self._tensors[key] = torch.tensor(numbers, device=self.model.device)
        return self._tensors[key]


def _numbers(site: Site, places: Places, model: Model, ids: Tensor) -> dict[str, list[int]]:
    """Every axis that cells can be laid along, in the order of the site's axes, with the numbers covered."""
    numbers = {"layer": _layers(places.layer, model.n_layers)}
    heads = find_heads(places.head, site, model)
    edges = {"q_pos": places.q_pos, "k_pos": places.k_pos}
    if site.is_edges and places.pos is not None:
        raise SweepError(f"'{site.name}' lives on attention edges: say q_pos and k_pos instead of pos")
    if not site.is_edges and any(value is not None for value in edges.values()):
        raise SweepError(f"'{site.name}' has positions, not edges: say pos instead of q_pos and k_pos")
    for axis in site.axes:
        if axis in ("head", "kv_head"):
            assert heads is not None
            numbers[axis] = heads
        elif axis in ("pos", "q_pos", "k_pos"):
            numbers[axis] = find_positions(edges.get(axis, places.pos), model, ids)
    return numbers


def _named_layer(name: str, at: int, given: Any, n_layers: int) -> int:
    """The layer that a site's name says. SiteError if another was given."""
    found = find_layer(at, n_layers)
    if given is not None and _layers(given, n_layers) != [found]:
        raise SiteError(f"{name!r} names layer {at}, and layer={shown(given)} was given as well; give one of them")
    return found


def _layers(given: Any, n_layers: int) -> list[int]:
    if given is None:
        return list(range(n_layers))
    found = as_numbers(given)
    found = [given] if found is None else found
    numbers = [find_layer(layer, n_layers) for layer in found]
    if not numbers:
        raise SweepError("layer is an empty list: name at least one, or leave it out for all")
    if len(set(numbers)) < len(numbers):
        raise SiteError(f"layer names one twice: {shown(found)}")
    return numbers


def asked_axes(site: str, by: Sequence[str]) -> tuple[Site, int | None, list[str]]:
    """The site of a grid, the layer if its name says one, and the grid's axes: all that can be said without a model.

    SiteError for no site, SweepError for one outside the layers and for axes that it does not have.
    """
    found, at = parse_site_name(site)
    if not found.in_layer:
        raise SweepError(f"'{found.name}' is outside the layers, so there is no grid over it: use gs.trace with an edit")
    there = ["layer", *(axis for axis in found.axes if axis in _LAID)]
    names = as_words(by)
    names = names and [found.heads if name == "head" and found.heads else name for name in names]
    if not names or len(set(names)) < len(names) or set(names) - set(there):
        raise SweepError(f"by names axes of '{found.name}', each once: {', '.join(there)}; given {shown(by)}")
    return found, at, names
