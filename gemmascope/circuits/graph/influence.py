"""Influence, pruning and scores of an attribution graph, from its edges alone.

With the absolute edges into each node divided by their sum, A, influence is w (A + A^2 + ...): the share of each logit, by
its weight w, that comes from a node along all paths. Biases are in no sum.

Reference: Ameisen et al., "Circuit Tracing" (transformer-circuits.pub/2025/attribution-graphs).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# The least sum that edges are divided by, so that a node without any input stays without.
_LEAST = 1e-10


@dataclass(frozen=True)
class Arrows:
    """The edges of a graph between its nodes, but for those from the bias.

    Attributes:
        target: Where each edge goes, [edge].
        source: Where it comes from, [edge].
        weight: Its weight, [edge].
        total: For each node the sum of the absolute edges into it, those that are not listed included, [node].
    """

    target: Int[Tensor, " edge"]
    source: Int[Tensor, " edge"]
    weight: Float[Tensor, " edge"]
    total: Float[Tensor, " node"]

    @property
    def shares(self) -> Float[Tensor, " edge"]:
        """Each edge's share of what goes into its target, float64."""
        return self.weight.abs().double() / self.total.double().clamp(min=_LEAST)[self.target]

    def influence(self, weights: Float[Tensor, " node"]) -> Float[Tensor, " node"]:
        """How much of the outputs comes from each node along all paths. weights: those of the outputs, 0 elsewhere."""
        shares, current = self.shares, weights.double()
        total = torch.zeros_like(current)
        for _ in range(len(current) + 1):  # no path is longer
            current = torch.zeros_like(current).index_add_(0, self.source, shares * current[self.target])
            if not bool(current.any()):
                break
            total += current
        return total

    def between(self, nodes: Bool[Tensor, " node"]) -> Arrows:
        """The edges between some nodes, whose sums hold these edges alone."""
        kept = nodes[self.target] & nodes[self.source]
        target, weight = self.target[kept], self.weight[kept]
        total = torch.zeros(len(nodes), dtype=torch.float64).index_add_(0, target, weight.abs().double())
        return Arrows(target, self.source[kept], weight, total)


@dataclass(frozen=True)
class Pruned:
    """Which nodes and which edges a pruned graph keeps."""

    nodes: Bool[Tensor, " node"]
    edges: Bool[Tensor, " edge"]


def prune(
    arrows: Arrows, influence: Tensor, weights: Tensor, always: Tensor, needs_input: Tensor, shares: tuple[float, float]
) -> Pruned:
    """The fewest nodes that hold a share of the influence, then the fewest edges between them that hold a share of theirs.

    What has no way to an output, or should have an input and has none, goes as well.

    Args:
        arrows: The edges.
        influence: As from Arrows.influence.
        weights: Those of the outputs.
        always: Nodes that stay: embeddings and outputs.
        needs_input: Nodes that go where no edge into them stays: features.
        shares: Of the nodes, and of the edges.
    """
    nodes = (influence >= _threshold(influence, shares[0])) | always
    inner = arrows.between(nodes)
    weight = inner.influence(weights) + weights.double()
    scores = torch.zeros(len(arrows.weight), dtype=torch.float64)
    scores[nodes[arrows.target] & nodes[arrows.source]] = inner.shares * weight[inner.target]
    edges = scores >= _threshold(scores, shares[1])
    edges &= scores > 0
    while True:
        edges &= nodes[arrows.target] & nodes[arrows.source]
        has_output, has_input = (torch.zeros_like(nodes) for _ in range(2))
        has_output[arrows.source[edges]] = True
        has_input[arrows.target[edges]] = True
        kept = nodes & (has_output | always) & (has_input | ~needs_input)
        if bool((kept == nodes).all()):
            return Pruned(nodes, edges)
        nodes = kept


def cumulative(influence: Float[Tensor, " node"]) -> Float[Tensor, " node"]:
    """For each node the share of all influence that it and the stronger ones hold: small for strong nodes."""
    values, order = influence.sort(descending=True, stable=True)
    return torch.empty_like(influence).scatter_(0, order, values.cumsum(0) / values.sum().clamp(min=_LEAST))


def _threshold(scores: Float[Tensor, " score"], share: float) -> Tensor:
    """The smallest score of the fewest that hold a share of their sum."""
    values = scores.sort(descending=True).values
    if not len(values) or float(values[0]) <= 0:
        return torch.tensor(0.0, dtype=scores.dtype)
    at = int(torch.searchsorted(values.cumsum(0) / values.sum(), share))
    return values[min(at, len(values) - 1)]
