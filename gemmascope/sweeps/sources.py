"""Where the values that a sweep writes come from: a number, a trace, a mean over traces, or a run of the same pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gemmascope.arguments import finite_number, short_repr
from gemmascope.edits.edit import BoundEdit, Edit
from gemmascope.edits.kinds import Ablate, Patch
from gemmascope.edits.sources import MEANS, ReadableRun, check_reference, mean_of
from gemmascope.edits.target import DeferredRead, DeferredValues, Target, mesh
from gemmascope.errors import SweepError
from gemmascope.model.model import Model
from gemmascope.run.trace import Trace
from gemmascope.sites import Address, Site, SiteKey
from gemmascope.sweeps.grid import Grid
from gemmascope.sweeps.variants import SourceRun

# An edit's positions and heads, by the names of its arguments.
Places = Mapping[str, list[int]]


# How much of means is kept for the next pair of a sweep, which asks for the same ones again.
MOST_BYTES_OF_MEANS = 2**28


@dataclass(frozen=True)
class Ablation:
    """What an ablation writes: a number, or a mean ("mean", "mean_by_pos") over reference traces.

    means: the means so far, by site and layer, which all pairs of a sweep share.
    """

    value: float | str
    reference: Sequence[ReadableRun] = ()
    means: dict[SiteKey, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, value: object, reference: Sequence[ReadableRun]) -> Ablation | None:
        """The ablation that these arguments of gs.sweep describe; None without one. SweepError for what cannot be one."""
        is_mean = isinstance(value, str) and value in MEANS
        if reference and not is_mean:
            raise SweepError(f"a reference is only for ablate='mean' or 'mean_by_pos'; given ablate={short_repr(value)}")
        if value is None:
            return None
        if isinstance(value, str) and is_mean:
            return cls(value, reference)
        try:
            return cls(finite_number(value, "ablate", error=SweepError))
        except SweepError as error:
            raise SweepError(f"ablate is a finite number, 'mean' or 'mean_by_pos'; given {short_repr(value)}") from error

    def values(self, grid: Grid, model: Model, ids: Tensor) -> ValueSource:
        """The source of what it writes in a run of these ids."""
        if isinstance(self.value, str):
            return MeanValues(self, grid.site, model, ids, grid.n_layers_at_once)
        return ConstantValue(self.value, grid.site, model, len(ids))


class ValueSource(ABC):
    """Makes a cell's edit of one layer.

    unchanged_before: the position before which the base run has the same values, so that cells there change nothing.
    """

    unchanged_before = 0

    @abstractmethod
    def edit(self, layer: int, site: Site, indices: tuple[Tensor, ...], places: Places) -> BoundEdit:
        """The edit of these places of a site: as indices of its first axes, and as arguments of the edit."""


class PrecomputedValues(ValueSource):
    """Values that are known before the pass."""

    @abstractmethod
    def at_layer(self, layer: int) -> Tensor:
        """The site's value at every place of a layer."""

    @abstractmethod
    def user_edit(self, site: str, layer: int, places: Places) -> Edit:
        """The edit as a user would make it."""

    def edit(self, layer: int, site: Site, indices: tuple[Tensor, ...], places: Places) -> BoundEdit:
        edit = self.user_edit(site.name, layer, places)
        value = self.at_layer(layer)
        values = value[mesh(indices, value.device)]
        return BoundEdit(edit, Address(site, layer), indices, values, unchanged_before=self.unchanged_before)


class CachedValues(PrecomputedValues):
    """Values that take time to compute: those of the last n_cached layers are kept, for all the cells of a layer."""

    def __init__(self, n_cached: int) -> None:
        self._n_cached = n_cached
        self._values: dict[int, Tensor] = {}

    def at_layer(self, layer: int) -> Tensor:
        if layer not in self._values:
            self._values[layer] = self.compute(layer)
            if len(self._values) > self._n_cached:
                del self._values[next(iter(self._values))]
        return self._values[layer]

    @abstractmethod
    def compute(self, layer: int) -> Tensor: ...


class ConstantValue(PrecomputedValues):
    """One number, written everywhere."""

    def __init__(self, number: float, site: Site, model: Model, n_pos: int) -> None:
        self._number = number
        size = [model.config.size_of(axis, n_pos) for axis in site.axes]
        self._values = torch.full((), number, dtype=model.dtype, device=model.device).expand(size)

    def at_layer(self, layer: int) -> Tensor:
        return self._values

    def user_edit(self, site: str, layer: int, places: Places) -> Edit:
        return Ablate(site=site, layer=layer, value=self._number, reference=(), **places)


class ValuesFromTrace(CachedValues):
    def __init__(self, trace: Trace, site: Site, n_cached: int) -> None:
        super().__init__(n_cached)
        self.trace, self._site = trace, site

    def compute(self, layer: int) -> Tensor:
        return self.trace[self._site.name, layer]

    def user_edit(self, site: str, layer: int, places: Places) -> Edit:
        return Patch(site=site, layer=layer, source=self.trace, **places)


class MeanValues(CachedValues):
    """The mean of a site over reference traces. EditError, when it is made, for a reference that does not fit."""

    def __init__(self, ablation: Ablation, site: Site, model: Model, ids: Tensor, n_cached: int) -> None:
        super().__init__(n_cached)
        self._how, self._reference, self._means = str(ablation.value), ablation.reference, ablation.means
        self._site, self._model, self._ids = site, model, ids
        sizes = [model.config.size_of(axis, len(ids)) for axis in site.axes if not axis.startswith("d_")]
        self._everywhere = tuple(torch.arange(size) for size in sizes)
        check_reference(self._how, self._reference, self._target(0))

    def compute(self, layer: int) -> Tensor:
        mean = mean_of(self._how, self._reference, self._target(layer), self._means)
        while sum(kept.nbytes for kept in self._means.values()) > MOST_BYTES_OF_MEANS:
            del self._means[next(iter(self._means))]
        return mean

    def user_edit(self, site: str, layer: int, places: Places) -> Edit:
        return Ablate(site=site, layer=layer, value=self._how, reference=self._reference, **places)

    def _target(self, layer: int) -> Target:
        return Target(self._model, self._ids, Address(self._site, layer), self._everywhere)


class ValuesFromPass(ValueSource):
    """Values of a run that goes through the layers in the pass of the cells' runs."""

    def __init__(self, run: SourceRun, site: Site) -> None:
        self.run = run
        self._values = run.values.setdefault(site.name, DeferredValues())

    def edit(self, layer: int, site: Site, indices: tuple[Tensor, ...], places: Places) -> BoundEdit:
        edit = Patch(site=site.name, source=self._values, layer=layer, **places)
        read = DeferredRead(self._values, layer, indices)
        return BoundEdit(edit, Address(site, layer), indices, read, unchanged_before=self.unchanged_before)
