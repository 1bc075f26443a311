"""Building a graph: the logits go down first, then features, in chunks within a budget of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gemmascope.circuits.frozen import FrozenRun
from gemmascope.circuits.graph.bases.basis import SITES, Basis
from gemmascope.circuits.graph.data import About, GraphData
from gemmascope.circuits.graph.descent import Targets, descend
from gemmascope.circuits.graph.files.journal import GraphJournal, digest_of, question_of
from gemmascope.circuits.graph.memory import PassMemory
from gemmascope.circuits.graph.nodes import FEATURE, LOGIT, NodeKeys
from gemmascope.circuits.graph.outputs import Logits, Output
from gemmascope.circuits.graph.rows import Rows

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
        memory: What a pass takes.
        budget: How many bytes it may take.
        parts: The rows that are done.
        left: The targets that were chosen and are not done.
        journal: Where finished rows are written.
    """

    run: FrozenRun
    basis: Basis
    keys: NodeKeys
    outputs: tuple[Output, ...]
    logits: Logits
    about: About
    max_nodes: int
    keep: int
    memory: PassMemory
    budget: int
    parts: list[Rows] = field(default_factory=list)
    left: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    journal: GraphJournal = field(default_factory=GraphJournal)

    @property
    def n_done(self) -> int:
        """How many rows are done."""
        return sum(len(part.targets) for part in self.parts)

    def n_targets(self) -> int:
        """How many rows there will be, at most."""
        active = self.basis.active(self.keys)
        n_features = self.max_nodes if active is None else min(len(active), self.max_nodes)
        return len(self.outputs) + n_features

    def continue_from(self, journal: GraphJournal, *, same_chunks: bool) -> None:
        """Take up the rows of a file, and write the next ones there. same_chunks: in the memory that it was begun with."""
        self.journal, self.parts, self.left = journal, [*journal.parts], journal.left
        if same_chunks and journal.budget is not None:
            self.budget = journal.budget

    def question(self) -> Mapping[str, object]:
        """What tells this graph from another, for its file."""
        asked = {"max_nodes": self.max_nodes, "keep": self.keep, "features": digest_of(self.basis.active(self.keys))}
        return question_of(self.about, self.keys, self.outputs, self.logits, asked)

    def chunks(self) -> Iterator[Targets]:
        """The targets of each pass that is still to come. Their rows must be in parts before the next is asked for."""
        yield from self._in_chunks(self.left)  # what a file says comes next, or what was stopped
        yield from self._in_chunks(self._undone(self.keys.logits))
        active = self.basis.active(self.keys)
        if active is not None and len(active) <= self.max_nodes:
            if len(undone := self._undone(active)):
                yield from self._in_chunks(self._targets(undone).in_order().keys)
            return
        while (chosen := self._most_influential()) is not None:
            yield from self._in_chunks(chosen)

    def run_chunk(self, targets: Targets, tell: Callable[[], None]) -> None:
        """Take a chunk down."""
        rows = descend(self.run, self.basis, self.keys, targets, self.logits, self.keep, tell)
        self.parts.append(rows)
        self.left = self.left[len(targets) :]
        self.journal.write(rows, self.left)

    def _undone(self, nodes: Tensor) -> Tensor:
        """Those of some nodes whose rows are not there."""
        done = torch.cat([part.targets for part in self.parts]) if self.parts else nodes[:0]
        return nodes[~torch.isin(nodes, done)]

    def data(self, *, is_finished: bool) -> GraphData:
        """The graph of the rows that are done."""
        rows = Rows.joined(self.parts).in_order()
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

    def _in_chunks(self, nodes: Tensor) -> Iterator[Targets]:
        """Targets in chunks that fit the memory."""
        targets = self._targets(nodes)
        while len(targets):
            n = self.memory.fitting(targets.pos, self.budget)
            self.left = targets.keys  # with the chunk, in case it is stopped
            chunk, targets = targets.of(slice(0, n)), targets.of(slice(n, None))
            yield chunk

    def _most_influential(self) -> Tensor | None:
        """The features to explain next: those with the most influence in the graph so far. None if all is done."""
        graph = GraphData(self.about, self.keys, self.outputs, self.logits, *self._nodes_so_far(), self.parts[0])
        graph.rows = Rows.joined(self.parts)
        left = self.max_nodes + len(self.outputs) - self.n_done
        candidates = (graph.decoded[0] == FEATURE) & ~torch.isin(graph.node_keys, graph.rows.targets) & (graph.influence > 0)
        at_once = self.memory.fitting(torch.full((max(1, left),), self.run.n_pos - 1), self.budget)
        n = min(left, max(LEAST_CHOSEN, at_once), int(candidates.sum()))
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
