"""Supplies: where what a sweep's cells write comes from.

A number; a trace; the mean over traces; or a run that rides in the pass of the cells' own runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gemmascope.edits.bound import BoundEdit, DeferredRead, DeferredValues, Target, mesh
from gemmascope.edits.edit import Ablate, Edit, Patch
from gemmascope.edits.sources import check_reference, mean_of
from gemmascope.model.model import Model
from gemmascope.sites import Address, Site

if TYPE_CHECKING:
    from gemmascope.run.trace import Trace

# The places of an edit, by the names of its arguments.
Words = dict[str, Any]


class ValueSource(ABC):
    """Gives a cell's edit of one layer."""

    @abstractmethod
    def edit(self, layer: int, site: Site, places: tuple[Tensor, ...], words: Words) -> BoundEdit:
        """The edit that writes at these places of the site."""


class PrecomputedValues(ValueSource):
    """A supply that knows what to write before the pass: a layer's value of the site, whole."""

    @abstractmethod
    def whole(self, layer: int) -> Tensor:
        """The site's value at every place of a layer."""

    @abstractmethod
    def made(self, words: Words) -> Edit:
        """The edit as a user would make it."""

    def edit(self, layer: int, site: Site, places: tuple[Tensor, ...], words: Words) -> BoundEdit:
        made = self.made({"site": site.name, "layer": layer, **words})
        return BoundEdit(made, Address(site, layer), places, self.whole(layer)[mesh(places)])


class CachedValues(PrecomputedValues):
    """Values that are dear to have: those of the last few layers are held, for all the cells of a layer."""

    def __init__(self, n_held: int) -> None:
        self.n_held = n_held
        self._values: dict[int, Tensor] = {}

    def whole(self, layer: int) -> Tensor:
        if layer not in self._values:
            self._values[layer] = self.read(layer)
            if len(self._values) > self.n_held:
                del self._values[next(iter(self._values))]
        return self._values[layer]

    @abstractmethod
    def read(self, layer: int) -> Tensor:
        """The site's value at every place of a layer, made anew."""


class ConstantValue(PrecomputedValues):
    """The same number, written everywhere."""

    def __init__(self, value: float, site: Site, model: Model, n_pos: int) -> None:
        self.value = value
        size = [model.config.size_of(axis, n_pos) for axis in site.axes]
        self._whole = torch.full((), value, dtype=model.dtype, device=model.device).expand(size)

    def whole(self, layer: int) -> Tensor:
        return self._whole

    def made(self, words: Words) -> Edit:
        return Ablate(value=self.value, **words)


class ValuesFromTrace(CachedValues):
    """A site's values in a trace."""

    def __init__(self, trace: Trace, site: Site, n_held: int) -> None:
        super().__init__(n_held)
        self.trace, self.site = trace, site

    def read(self, layer: int) -> Tensor:
        return self.trace[self.site.name, layer]

    def made(self, words: Words) -> Edit:
        return Patch(source=self.trace, **words)


class MeanValues(CachedValues):
    """The mean of a site over reference traces. EditError, when it is made, for a reference that does not fit."""

    def __init__(self, how: str, reference: Sequence[Trace], site: Site, model: Model, ids: Tensor, n_held: int) -> None:
        super().__init__(n_held)
        self.how, self.reference, self.site, self.model, self.ids = how, reference, site, model, ids
        sizes = [model.config.size_of(axis, len(ids)) for axis in site.axes if not axis.startswith("d_")]
        self._everywhere = tuple(torch.arange(size, device=model.device) for size in sizes)
        check_reference(how, reference, self._target(0))

    def read(self, layer: int) -> Tensor:
        return mean_of(self.how, self.reference, self._target(layer))

    def made(self, words: Words) -> Edit:
        return Ablate(value=self.how, reference=self.reference, **words)

    def _target(self, layer: int) -> Target:
        return Target(self.model, self.ids, Address(self.site, layer), self._everywhere)


class ValuesFromPass(ValueSource):
    """A site's values in a run of the pass that carries the cells' runs."""

    def __init__(self) -> None:
        self.feed = DeferredValues()

    def edit(self, layer: int, site: Site, places: tuple[Tensor, ...], words: Words) -> BoundEdit:
        made = Patch(site=site.name, source=self.feed, layer=layer, **words)
        return BoundEdit(made, Address(site, layer), places, DeferredRead(self.feed, layer, places))
