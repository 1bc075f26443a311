"""The nodes of an attribution graph as whole numbers, so that edges are arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

KINDS = ("feature", "error", "embedding", "logit", "bias")
FEATURE, ERROR, EMBEDDING, LOGIT, BIAS = range(5)


@dataclass(frozen=True)
class Unit:
    """What has features and an error in a graph: a dictionary, the neurons of a layer, or a cross-layer one's layer.

    Attributes:
        site: The site whose value the features and the error stand for, such as "mlp_out".
        layer: The layer that the features read.
        n_features: How many features there are.
        name: What to call them: the call that loads the dictionary, or "neurons".
    """

    site: str
    layer: int
    n_features: int
    name: str


@dataclass(frozen=True)
class NodeKeys:
    """One whole number for each node that there can be, in the order in which a graph lists them.

    The order is that of other libraries: features by layer, position and number; errors by layer and position; embeddings;
    logits; and, last, the bias.
    """

    units: tuple[Unit, ...]
    n_pos: int
    n_logits: int

    @property
    def width(self) -> int:
        """The most features of a unit."""
        return max((unit.n_features for unit in self.units), default=1)

    @property
    def _first(self) -> tuple[int, int, int, int]:
        errors = len(self.units) * self.n_pos * self.width
        embeddings = errors + len(self.units) * self.n_pos
        return errors, embeddings, embeddings + self.n_pos, embeddings + self.n_pos + self.n_logits

    def features(self, unit: int, pos: Tensor, feature: Tensor) -> Int[Tensor, " node"]:
        """The keys of features of a unit."""
        return (unit * self.n_pos + pos.long()) * self.width + feature.long()

    def errors(self, unit: int) -> Int[Tensor, " pos"]:
        """The keys of a unit's errors."""
        return self._first[0] + unit * self.n_pos + torch.arange(self.n_pos)

    @property
    def embeddings(self) -> Int[Tensor, " pos"]:
        """The keys of the embeddings."""
        return self._first[1] + torch.arange(self.n_pos)

    @property
    def logits(self) -> Int[Tensor, " logit"]:
        """The keys of the logits and directions."""
        return self._first[2] + torch.arange(self.n_logits)

    @property
    def bias(self) -> int:
        """The key of the bias node."""
        return self._first[3]

    def kinds(self, keys: Int[Tensor, " node"]) -> Int[Tensor, " node"]:
        """The kind of each node, as an index of KINDS."""
        return torch.bucketize(keys, torch.tensor(self._first, device=keys.device), right=True)

    def decode(self, keys: Int[Tensor, " node"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The kind, the unit, the position and the feature of each node.

        unit is -1 where there is none, pos is -1 for logits and the bias, and feature, the number of a feature or a logit,
        is -1 for other nodes.
        """
        kind, first = self.kinds(keys), self._first
        none = torch.full_like(keys, -1)
        place = torch.where(kind == FEATURE, keys // self.width, keys - first[0])
        has_unit = kind <= ERROR
        unit = torch.where(has_unit, place // self.n_pos, none)
        pos = torch.where(has_unit, place % self.n_pos, torch.where(kind == EMBEDDING, keys - first[1], none))
        feature = torch.where(kind == FEATURE, keys % self.width, torch.where(kind == LOGIT, keys - first[2], none))
        return kind, unit, pos, feature


def sorted_units(units: Sequence[Unit], site_order: Sequence[str]) -> list[int]:
    """The indices of units by layer, and in a layer in the order of its sites."""
    return sorted(range(len(units)), key=lambda i: (units[i].layer, site_order.index(units[i].site)))
