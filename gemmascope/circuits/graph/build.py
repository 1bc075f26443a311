"""Building a graph: the logits go down first, then features, in chunks within a budget of memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gemmascope.circuits.frozen import FrozenRun
from gemmascope.circuits.graph.bases.basis import SITES, Basis
from gemmascope.circuits.graph.data import About, GraphData
from gemmascope.circuits.graph.descent import Targets, descend
from gemmascope.circuits.graph.nodes import FEATURE, LOGIT, NodeKeys
from gemmascope.circuits.graph.outputs import Logits, Output
from gemmascope.circuits.graph.rows import Rows
from gemmascope.errors import BudgetError
from gemmascope.memory.placement import free_bytes, parse_bytes
from gemmascope.model.model import Model

# The most positions of directions in memory at once where no layer streams: more would be no faster, and a chunk is what an
# interrupt loses and after which the next features are chosen.
RESIDENT_ROWS = 2**16
# Targets between two choices of the next ones, where not all features become targets.
LEAST_CHOSEN = 256


@dataclass
class Builder:
    """A graph that is being built.

    Attributes:
        run: The frozen run.
        basis: The nodes, encoded.
        keys: Their numbers.
        outputs, logits: What is explained.
        about: What the graph is of.
        max_nodes: The most features whose inputs are found.
        keep: The most edges of a row.
        max_rows: How many positions of directions may be in memory.
        parts: The rows that are done.
    """

    run: FrozenRun
    basis: Basis
    keys: NodeKeys
    outputs: tuple[Output, ...]
    logits: Logits
    about: About
    max_nodes: int
    keep: int
    max_rows: int
    parts: list[Rows] = field(default_factory=list)

    @property
    def n_done(self) -> int:
        """How many rows are done."""
        return sum(len(part.targets) for part in self.parts)

    def n_targets(self) -> int:
        """How many rows there will be, at most."""
        active = self.basis.active(self.keys)
        n_features = self.max_nodes if active is None else min(len(active), self.max_nodes)
        return len(self.outputs) + n_features

    def chunks(self) -> Iterator[Targets]:
        """The targets of each pass that is still to come. Their rows must be in parts before the next is asked for."""
        done = torch.cat([part.targets for part in self.parts]) if self.parts else torch.zeros(0, dtype=torch.long)
        if not bool(torch.isin(self.keys.logits, done).all()):
            yield self._targets(self.keys.logits)
        active = self.basis.active(self.keys)
        if active is not None and len(active) <= self.max_nodes:
            targets = self._targets(active[~torch.isin(active, done)])
            if len(targets):
                yield from self._in_chunks(targets.in_order())
            return
        while (chosen := self._most_influential()) is not None:
            yield from self._in_chunks(self._targets(chosen))

    def run_chunk(self, targets: Targets, tell: object) -> None:
        """Take a chunk down."""
        self.parts.append(
            descend(self.run, self.basis, self.keys, targets, self.logits, self.keep, tell)  # type: ignore[arg-type]
        )

    def data(self, *, is_finished: bool) -> GraphData:
        """The graph of the rows that are done."""
        rows = Rows.joined(self.parts)
        order = rows.targets.argsort()
        rows = _reordered(rows, order)
        active = self.basis.active(self.keys)
        whole = active is not None and len(active) <= self.max_nodes
        found = torch.cat([rows.targets, rows.source])
        errors = [self.keys.errors(unit) for unit in self._error_units()]
        fixed = [*errors, self.keys.embeddings, self.keys.logits, torch.tensor([self.keys.bias])]
        nodes = torch.unique(torch.cat([found, *fixed, *([active] if whole and active is not None else [])]))
        activation = torch.full((len(nodes),), torch.nan)
        is_feature = self.keys.kinds(nodes) == FEATURE
        activation[is_feature] = self.basis.activations(self.keys, nodes[is_feature])
        about = About(**{**vars(self.about), "is_finished": is_finished})
        return GraphData(about, self.keys, self.outputs, self.logits, nodes, activation, rows)

    def _error_units(self) -> range:
        return range(len(self.keys.units) if self.basis.active(self.keys) is not None else 0)

    def _targets(self, keys: Tensor) -> Targets:
        return targets_of(self.keys, self.basis, self.logits.pos, self.about.n_layers, keys)

    def _in_chunks(self, targets: Targets) -> Iterator[Targets]:
        """Targets in chunks whose directions fit the memory."""
        lengths = (targets.pos + 1).cumsum(0)
        start = 0
        while start < len(targets):
            before = int(lengths[start - 1]) if start else 0
            stop = max(start + 1, int(torch.searchsorted(lengths, before + self.max_rows, right=True)))
            yield targets.of(slice(start, stop))
            start = stop

    def _most_influential(self) -> Tensor | None:
        """The features to explain next: those with the most influence in the graph so far. None if all is done."""
        graph = GraphData(self.about, self.keys, self.outputs, self.logits, *self._nodes_so_far(), self.parts[0])
        graph.rows = Rows.joined(self.parts)
        left = self.max_nodes + len(self.outputs) - self.n_done
        candidates = (graph.decoded[0] == FEATURE) & ~torch.isin(graph.node_keys, graph.rows.targets) & (graph.influence > 0)
        n = min(left, max(LEAST_CHOSEN, self.max_rows // self.run.n_pos), int(candidates.sum()))
        if n <= 0:
            return None
        influence = torch.where(candidates, graph.influence, -1.0)
        return graph.node_keys[influence.topk(n).indices]

    def _nodes_so_far(self) -> tuple[Tensor, Tensor]:
        nodes = torch.unique(torch.cat([torch.cat([part.targets, part.source]) for part in self.parts]))
        return nodes, torch.full((len(nodes),), torch.nan)


def targets_of(keys: NodeKeys, basis: Basis, pos_of_logits: int, n_layers: int, nodes: Tensor) -> Targets:
    """Features and logits as targets, by their keys."""
    kind, unit, pos, feature = keys.decode(nodes)
    units, is_logit = basis.units, kind == LOGIT
    layers = torch.tensor([one.layer for one in units], dtype=torch.long)
    sites = torch.tensor([SITES.index(basis.reads(i)) for i in range(len(units))], dtype=torch.long)
    return Targets(
        nodes,
        torch.where(is_logit, n_layers - 1, layers[unit]),
        torch.where(is_logit, -1, sites[unit]),
        unit,
        torch.where(is_logit, pos_of_logits, pos),
        feature,
    )


def rows_within(memory: object, model: Model, n_pos: int) -> int:
    """How many positions of directions fit: a number of at least n_pos, which one target takes.

    Args:
        memory: The budget as a user gives it; None: what the model was loaded to leave, or a quarter of what is free.
        model: The model.
        n_pos: The positions of the run.

    Raises:
        BudgetError: The budget is less than one target takes.
    """
    free = model.network.work_bytes or min(map(free_bytes, {model.device, *model.layer_devices})) // 4
    budget = free if memory is None else parse_bytes(memory)
    config = model.config
    fixed = 4 * n_pos * (2 * config.n_heads * config.d_head + 6 * config.d_model)  # of the layer that is passed
    per_row = 4 * config.d_model + 16
    rows = (budget - fixed) // per_row
    if rows < n_pos:
        raise BudgetError(
            f"memory of {budget:,} bytes is too little for a graph of {n_pos} positions: one target takes "
            f"{fixed + n_pos * per_row:,}"
        )
    return rows if model.network.layer_source is not None else min(rows, max(n_pos, RESIDENT_ROWS))


def _reordered(rows: Rows, order: Tensor) -> Rows:
    """The same rows in another order of their targets."""
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    target = place[rows.target]
    by_target = target.argsort(stable=True)
    return Rows(
        rows.targets[order], rows.inputs[order], rows.bias[order], rows.rest[order], rows.total[order], rows.error[order],
        target[by_target], rows.source[by_target], rows.weight[by_target],
    )  # fmt: skip
