"""UnitGroup: units of one kind at one place - the heads or neurons of a layer, a dictionary's features, directions - and how
their values are read from rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from gemmascope.errors import StoreError
from gemmascope.legible import legible_line
from gemmascope.model.model import Model
from gemmascope.sae.weights import DictionaryWeights
from gemmascope.sites import SiteKey
from gemmascope.values import Array, chunks, moved

HEAD, NEURON, FEATURE, DIRECTION = KINDS = ("head", "neuron", "feature", "direction")
# Rows whose heads' outputs are in memory at once, in elements.
_HEAD_ELEMENTS = 2**24


class Active(NamedTuple):
    """Values above zero: the row, the unit (its place in the group), and the value of each; rows rise."""

    row: Tensor
    unit: Tensor
    value: Tensor


@dataclass(frozen=True, eq=False)
class UnitGroup(ABC):
    """Units of one kind at one place.

    kind: "head", "neuron", "feature" or "direction". site, layer: where their values are read. numbers: the unit numbers,
    rising. name: what the group is called. measure: what a value is, in words. signed: whether values below zero are as
    strong as those above. sparse: whether values are zero at most rows.
    """

    numbers: Array
    site: str
    layer: int | None
    name: str

    kind = ""
    measure = ""
    signed = False
    sparse = False

    @property
    def key(self) -> SiteKey:
        return self.site, self.layer

    @property
    def width(self) -> int:
        """How many values a row has while it is read."""
        return len(self.numbers)

    @abstractmethod
    def values(self, rows: Tensor) -> Float[Tensor, "row unit"]:
        """The values of all units, float32."""

    def active(self, rows: Tensor) -> Active:
        """The values above zero, of a sparse group."""
        raise NotImplementedError(self.kind)

    def _chosen(self, values: Tensor) -> Tensor:
        """The columns of the group's units, of those of all units of its place."""
        if np.array_equal(self.numbers, np.arange(values.shape[1])):
            return values
        return values[:, torch.from_numpy(self.numbers).to(values.device)]


@dataclass(frozen=True, eq=False)
class Heads(UnitGroup):
    """Heads of a layer, read from head_out; or from z, with the layer's weights."""

    model: Model | None = None

    kind = HEAD
    measure = "length of what the head adds to the stream"

    def values(self, rows: Tensor) -> Tensor:
        if self.site == "head_out":
            return self._chosen(rows.float().norm(dim=-1))
        assert self.model is not None
        assert self.layer is not None
        layer = self.model.layer(self.layer)
        step = max(1, _HEAD_ELEMENTS // (rows.shape[1] * self.model.config.d_model))
        found = []
        with torch.no_grad():
            for part in chunks(len(rows), step):
                z = moved(rows[part], layer.device).to(self.model.dtype)
                found.append(layer.head_out(layer.self_attn.write(z), z).float().norm(dim=-1))
        return self._chosen(torch.cat(found))


@dataclass(frozen=True, eq=False)
class Neurons(UnitGroup):
    """Neurons of a layer."""

    kind = NEURON
    measure = "activation, gelu(gate) x up"
    signed = True

    def values(self, rows: Tensor) -> Tensor:
        return self._chosen(rows.float())


@dataclass(frozen=True, eq=False)
class Directions(UnitGroup):
    """Directions at a site: the dot product of the row, or of its head's part, with each."""

    vectors: Float[Tensor, "unit d"]
    head: int | None = None

    kind = DIRECTION
    measure = "dot product with the direction"
    signed = True

    def values(self, rows: Tensor) -> Tensor:
        x = rows if self.head is None else rows[:, self.head]
        return rearrange(x, "row ... -> row (...)").float() @ moved(self.vectors, rows.device).float().T


@dataclass(frozen=True, eq=False)
class SaeFeatures(UnitGroup):
    """Features of a dictionary."""

    sae: DictionaryWeights

    kind = FEATURE
    measure = "activation of the feature"
    sparse = True

    @property
    def width(self) -> int:
        return self.sae.n_features

    @cached_property
    def _place(self) -> Tensor:
        place = torch.full((self.sae.n_features,), -1, device=self.sae.device)
        place[torch.from_numpy(self.numbers).to(self.sae.device)] = torch.arange(len(self.numbers), device=self.sae.device)
        return place

    def values(self, rows: Tensor) -> Tensor:
        return self._chosen(self.sae.activations(self.sae.input_of(rows)))

    def of_all(self, rows: Tensor) -> Active:
        """The activations of all features, chosen or not."""
        return Active(*self.sae.sparse(self.sae.input_of(rows)))

    def chosen(self, found: Active) -> Active:
        """Those of the group's features alone, by their place in the group."""
        unit = self._place[found.unit]
        kept = unit >= 0
        return Active(found.row[kept], unit[kept], found.value[kept])

    def active(self, rows: Tensor) -> Active:
        return self.chosen(self.of_all(rows))


def require_width(group: UnitGroup, shape: tuple[int, ...], where: str) -> None:
    """StoreError where rows of this shape cannot be what a group reads."""
    width = int(np.prod(shape, dtype=np.int64))
    wanted = {
        SaeFeatures: lambda: group.sae.d_in,  # type: ignore[attr-defined]
        Directions: lambda: group.vectors.shape[1] * (1 if group.head is None else shape[0]),  # type: ignore[attr-defined]
    }.get(type(group), lambda: width)()
    if width != wanted:
        raise StoreError(f"{group.name} reads rows of {wanted} numbers, and those of {legible_line(where)} have {width}")
