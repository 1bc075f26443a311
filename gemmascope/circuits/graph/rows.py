"""The rows of a graph's edges: of each target only the strongest, and the sum of the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gemmascope.circuits.graph.bases.written import Edges
from gemmascope.circuits.graph.nodes import ERROR, NodeKeys

# How many times as many edges as are kept wait until the strongest are chosen.
WAITING = 2


@dataclass(frozen=True)
class Rows:
    """The edges into some targets.

    Attributes:
        targets: The nodes that the edges go into, [target].
        inputs: What each took as its input in the run: a feature's pre-activation, a logit before the cap, [target].
        bias: The edge from the bias node, [target].
        rest: The sum of the edges that are not listed, [target].
        total: The sum of the absolute values of all edges but the bias', [target].
        error: The part of total that comes from errors, [target].
        target: For each edge the index of its target above, [edge], rising.
        source: Its source's key, [edge]; a row's strongest edge comes first.
        weight: Its weight, [edge].
    """

    targets: Int[Tensor, " target"]
    inputs: Float[Tensor, " target"]
    bias: Float[Tensor, " target"]
    rest: Float[Tensor, " target"]
    total: Float[Tensor, " target"]
    error: Float[Tensor, " target"]
    target: Int[Tensor, " edge"]
    source: Int[Tensor, " edge"]
    weight: Float[Tensor, " edge"]

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """Rows of different targets together."""
        names = ("targets", "inputs", "bias", "rest", "total", "error", "source", "weight")
        joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        firsts = torch.tensor([0, *(len(part.targets) for part in parts)]).cumsum(0).tolist()
        target = torch.cat([part.target + first for part, first in zip(parts, firsts, strict=False)])
        return cls(target=target, **joined)

    def in_order(self) -> Rows:
        """The same rows by their targets' keys."""
        order = self.targets.argsort()
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order))
        target = place[self.target]
        by_target = target.argsort(stable=True)
        return Rows(
            self.targets[order], self.inputs[order], self.bias[order], self.rest[order], self.total[order],
            self.error[order], target[by_target], self.source[by_target], self.weight[by_target],
        )  # fmt: skip

    @property
    def sums(self) -> Float[Tensor, " target"]:
        """What each row adds up to, float64."""
        sums = self.bias.double() + self.rest.double()
        return sums.index_add_(0, self.target, self.weight.double())

    def of_nodes(self, targets: Tensor, edges: Tensor) -> Rows:
        """The rows of some targets with some edges; those that go are added to the rest."""
        kept = edges & targets[self.target]
        rest = self.rest.double().index_add_(0, self.target[~kept], self.weight[~kept].double()).float()
        number = torch.cumsum(targets.long(), 0) - 1
        return Rows(
            self.targets[targets], self.inputs[targets], self.bias[targets], rest[targets], self.total[targets],
            self.error[targets], number[self.target[kept]], self.source[kept], self.weight[kept],
        )  # fmt: skip


class RowStore:
    """Collects the edges into the targets of a block, layer by layer. Targets join in order, so that a layer's edges go
    into the first ones.

    Args:
        n: The number of targets.
        keep: The most edges to keep of a row.
        keys: The nodes.
        device: Where the edges come from.
    """

    def __init__(self, n: int, keep: int, keys: NodeKeys, device: torch.device) -> None:
        self.n, self.keep, self.keys = n, keep, keys
        self.bias, self.sum, self.total, self.error = (
            torch.zeros(n, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device) for _ in range(4)
        )
        self.kept_keys = torch.zeros(0, 0, dtype=torch.long, device=device)
        self.kept = torch.zeros(0, 0, device=device)
        self.waiting: list[tuple[Tensor, Tensor]] = []
        self.unfinished: dict[int, Tensor] = {}

    def add(self, part: Edges, first: int = 0) -> None:
        """Take edges into targets, from the target `first` on."""
        edges = part.weights
        if first:
            edges = torch.cat((edges.new_zeros(first, edges.shape[1]), edges))
        if part.unit >= 0:
            sums = self.unfinished.setdefault(part.unit, edges.new_zeros(self.n, edges.shape[1]))
            sums[: len(edges)] += edges
            if part.has_more:
                return
            edges = self.unfinished.pop(part.unit)
        self._add(part.keys, edges)

    def _add(self, keys: Int[Tensor, " source"], edges: Float[Tensor, "target source"]) -> None:
        if not edges.numel():
            return
        n = len(edges)
        absolute = edges.abs().sum(1, dtype=self.total.dtype)
        self.sum[:n] += edges.sum(1, dtype=self.sum.dtype)
        self.total[:n] += absolute
        if int(self.keys.kinds(keys[:1])) == ERROR:
            self.error[:n] += absolute
        if edges.shape[1] > self.keep:
            strongest = edges.abs().topk(self.keep, dim=1, sorted=False).indices
            self._wait(keys.to(edges.device)[strongest], edges.gather(1, strongest))
        else:
            self._wait(keys.to(edges.device).expand(n, -1), edges)

    def _wait(self, keys: Tensor, edges: Tensor) -> None:
        self.waiting.append((keys, edges))
        width = sum(edges.shape[1] for _, edges in self.waiting)
        if len(edges) * width > WAITING * self.n * self.keep:
            self._choose()

    def _choose(self) -> None:
        """Keep the strongest of what was kept and what waits."""
        if not self.waiting:
            return
        n = max(len(self.kept), *(len(edges) for _, edges in self.waiting))  # later targets have not joined yet
        width = self.kept.shape[1] + sum(edges.shape[1] for _, edges in self.waiting)
        all_keys, all_edges = self.kept_keys.new_zeros(n, width), self.kept.new_zeros(n, width)
        at = 0
        for keys, edges in [(self.kept_keys, self.kept), *self.waiting]:
            stop = at + edges.shape[1]
            all_keys[: len(edges), at:stop], all_edges[: len(edges), at:stop] = keys, edges
            at = stop
        self.waiting = []
        order = all_edges.abs().topk(min(self.keep, width), dim=1).indices
        self.kept_keys, self.kept = all_keys.gather(1, order), all_edges.gather(1, order)

    def rows(self, targets: Tensor, inputs: Tensor) -> Rows:
        """The rows, once all layers gave their edges."""
        self._choose()
        kept, keys = self.kept.cpu(), self.kept_keys.cpu()
        rest = (self.sum.cpu() - kept.sum(1, dtype=torch.float64)).float()
        is_edge = kept != 0
        target = is_edge.nonzero(as_tuple=True)[0]
        numbers = (part.cpu().float() for part in (self.bias, self.total, self.error))
        bias, total, error = numbers
        return Rows(targets, inputs.cpu().float(), bias, rest, total, error, target, keys[is_edge], kept[is_edge])
