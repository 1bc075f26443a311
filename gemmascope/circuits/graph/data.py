"""GraphData: the numbers of an attribution graph, and what follows from them alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gemmascope.arguments import as_list, finite_number, is_list, short_repr
from gemmascope.circuits.graph.influence import Arrows, cumulative, prune
from gemmascope.circuits.graph.nodes import BIAS, EMBEDDING, ERROR, FEATURE, KINDS, LOGIT, NodeKeys
from gemmascope.circuits.graph.outputs import Logits, Output
from gemmascope.circuits.graph.rows import Rows
from gemmascope.errors import GraphError
from gemmascope.sites import did_you_mean
from gemmascope.values import labelled

if TYPE_CHECKING:
    import pandas
    import xarray

# The most nodes of a matrix of all edges: 400 MB.
MOST_IN_MATRIX = 10_000
BIAS_ID = "bias"


@dataclass(frozen=True)
class About:
    """What a graph is of.

    Attributes:
        model: The model's name.
        fingerprint: A digest of its weights, Model.network_fingerprint.
        n_layers: How many layers it has.
        vocab_size: How many tokens its vocabulary has.
        ids: The prompt's token ids.
        tokens: The same as text.
        basis: "transcoder", "neuron" or "sae".
        pos: The position that is explained.
        is_finished: Whether every row that was asked for is there; False after an interrupt.
    """

    model: str
    fingerprint: str
    n_layers: int
    vocab_size: int
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    basis: str
    pos: int
    is_finished: bool = True


@dataclass(frozen=True)
class Scores:
    """How much of a graph goes through its features.

    Attributes:
        replacement: The embeddings' share of the influence of embeddings and errors: 1 if nothing goes through errors.
        completeness: The mean share of a node's inputs that does not come from errors, weighted by influence.
    """

    replacement: float
    completeness: float


@dataclass(eq=False)
class GraphData:
    """The nodes and edges of a graph.

    Attributes:
        about: What the graph is of.
        keys: The numbers of its nodes.
        outputs: What it explains.
        logits: The same as directions in the last stream.
        node_keys: The key of each node, rising, [node].
        activation: The activation of each feature, [node]; NaN for other nodes.
        rows: The edges.
        labels: What the user calls nodes, by id.
        supernodes: Groups of nodes by name: ids.
        whole: The influence of each node, its cumulative share and the scores in the graph before it was pruned; None for a
            whole graph.
    """

    about: About
    keys: NodeKeys
    outputs: tuple[Output, ...]
    logits: Logits
    node_keys: Int[Tensor, " node"]
    activation: Float[Tensor, " node"]
    rows: Rows
    labels: dict[str, str] = field(default_factory=dict)
    supernodes: dict[str, list[str]] = field(default_factory=dict)
    whole: tuple[Tensor, Tensor, Scores] | None = None

    def __len__(self) -> int:
        return len(self.node_keys)

    # -- nodes --

    @cached_property
    def decoded(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The kind, unit, position and feature of each node, as NodeKeys.decode has them."""
        return self.keys.decode(self.node_keys)

    @cached_property
    def ids(self) -> list[str]:
        """The id of each node, as in Neuronpedia's files: layer_feature_position, E_token_position and so on."""
        return [self._id(*parts) for parts in zip(*(part.tolist() for part in self.decoded), strict=True)]

    def _id(self, kind: int, unit: int, pos: int, feature: int) -> str:
        if kind in (FEATURE, ERROR):
            one = self.keys.units[unit]
            site = f"{one.site}." if len({unit.site for unit in self.keys.units}) > 1 else ""
            return f"{site}{one.layer}_{feature if kind == FEATURE else -1}_{pos}"
        if kind == EMBEDDING:
            return f"E_{self.about.ids[pos]}_{pos}"
        if kind == LOGIT:
            token = self.outputs[feature].token
            number = self.about.vocab_size + feature if token is None else token
            return f"{self.about.n_layers + 1}_{number}_{self.about.pos}"
        return BIAS_ID

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.ids)}

    def index(self, node: object) -> int:
        """The index of a node by its id, or by its label if only one node has it.

        Args:
            node: The id or the label.

        Raises:
            GraphError: There is no such node.
        """
        close = ""
        if isinstance(node, str):
            if node in self._numbers:
                return self._numbers[node]
            labelled = [name for name, label in self.labels.items() if label == node and name in self._numbers]
            if len(labelled) == 1:
                return self._numbers[labelled[0]]
            several = f" {len(labelled)} nodes have that label: {', '.join(labelled[:5])}." if labelled else ""
            close = several or did_you_mean(node, [*self.ids[:5000], *self.labels.values()])
        some = f"Nodes have ids such as {', '.join(self.ids[:2])}; graph.nodes lists them"
        raise GraphError(f"there is no node {short_repr(node)} in the graph.{close} {some}")

    def indices(self, nodes: object) -> list[int]:
        """The indices of nodes.

        Args:
            nodes: A supernode's name, an id, or several of them as a list, a pandas Series or an array.
        """
        if isinstance(nodes, str):
            return [self.index(node) for node in self.supernodes.get(nodes, [nodes])]
        if not is_list(nodes) or not (listed := as_list(nodes, "nodes", error=GraphError)):
            raise GraphError(f"nodes are the name of a supernode, an id or a list of ids; given {short_repr(nodes)}")
        return [number for node in listed for number in self.indices(node)]

    # -- edges --

    @cached_property
    def arrows(self) -> Arrows:
        """The listed edges between node indices, without those of the bias."""
        of_target = self.index_of(self.rows.targets)
        total = torch.zeros(len(self), dtype=torch.float64)
        total[of_target] = self.rows.total.double()
        return Arrows(of_target[self.rows.target], self.index_of(self.rows.source), self.rows.weight, total)

    def index_of(self, keys: Tensor) -> Tensor:
        """The indices of nodes by their keys.

        Args:
            keys: Some of node_keys.
        """
        return torch.searchsorted(self.node_keys, keys)

    @cached_property
    def weights(self) -> Float[Tensor, " node"]:
        """How much each output counts for influence, 0 for other nodes. float64."""
        weights = torch.zeros(len(self), dtype=torch.float64)
        weights[self.index_of(self.keys.logits)] = torch.tensor([one.weight for one in self.outputs], dtype=torch.float64)
        return weights

    @cached_property
    def influence(self) -> Float[Tensor, " node"]:
        """How much of the outputs comes from each node along all paths, float64; in a pruned graph that of the whole."""
        return self.arrows.influence(self.weights) if self.whole is None else self.whole[0]

    @cached_property
    def cumulative(self) -> Float[Tensor, " node"]:
        """For each node the share of all influence that it and the stronger ones hold; in a pruned graph of the whole."""
        return cumulative(self.influence) if self.whole is None else self.whole[1]

    @cached_property
    def scores(self) -> Scores:
        """The replacement and completeness scores, of the graph before pruning."""
        if self.whole is not None:
            return self.whole[2]
        kind, influence = self.decoded[0], self.influence
        of_kind = {name: float(influence[kind == number].sum()) for number, name in enumerate(KINDS)}
        known = torch.ones(len(self), dtype=torch.float64)
        known[self.index_of(self.rows.targets)] -= (self.rows.error / self.rows.total.clamp(min=1e-10)).double()
        weight = influence + self.weights
        through = of_kind["embedding"] + of_kind["error"]
        replacement = of_kind["embedding"] / through if through else float("nan")
        return Scores(replacement, float((known * weight).sum() / weight.sum()))

    def pruned(self, nodes: float, edges: float) -> GraphData:
        """The part that holds these shares of the influence, with the influence and scores of the whole; see prune.

        Args:
            nodes: The share of the influence that its nodes hold, 0 to 1.
            edges: The share that its edges hold, 0 to 1.
        """
        shares = (_share(nodes, "nodes"), _share(edges, "edges"))
        kind = self.decoded[0]
        always = (kind == EMBEDDING) | (kind == LOGIT)
        kept = prune(self.arrows, self.influence, self.weights, always, kind == FEATURE, shares)
        stays = kept.nodes | (kind == BIAS)
        rows = self.rows.of_nodes(stays[self.index_of(self.rows.targets)], kept.edges)
        ids = {name for name, keep in zip(self.ids, stays.tolist(), strict=True) if keep}
        return replace(
            self,
            node_keys=self.node_keys[stays],
            activation=self.activation[stays],
            rows=rows,
            labels={name: label for name, label in self.labels.items() if name in ids},
            supernodes={name: left for name, of in self.supernodes.items() if (left := [one for one in of if one in ids])},
            whole=(self.influence[stays], self.cumulative[stays], self.scores),
        )

    # -- tables --

    def node_table(self) -> pandas.DataFrame:
        """One row for each node; see nodes."""
        import pandas

        kind, unit, _, feature = (part.tolist() for part in self.decoded)
        layers = [self._layer(k, u) for k, u in zip(kind, unit, strict=True)]
        columns: Mapping[str, object] = {
            "id": self.ids,
            "kind": [KINDS[one] for one in kind],
            "layer": pandas.array(layers, dtype="Int64"),
            "pos": pandas.array([None if one < 0 else one for one in self.positions], dtype="Int64"),
            "token": [self._token(k, p, f) for k, p, f in zip(kind, self.positions, feature, strict=True)],
            "feature": pandas.array([f if k == FEATURE else None for k, f in zip(kind, feature, strict=True)], "Int64"),
            "activation": self.activation.tolist(),
            "influence": self.influence.tolist(),
            "cumulative": self.cumulative.tolist(),
            "label": [self.labels.get(name, "") for name in self.ids],
        }
        return pandas.DataFrame(columns)

    @cached_property
    def positions(self) -> list[int]:
        """The position of each node; a logit's is the one that is explained, the bias' is -1."""
        kind, _, pos, _ = self.decoded
        return torch.where(kind == LOGIT, self.about.pos, pos).tolist()

    def _layer(self, kind: int, unit: int) -> int | None:
        return self.keys.units[unit].layer if kind in (FEATURE, ERROR) else None

    def _token(self, kind: int, pos: int, feature: int) -> str:
        return self.outputs[feature].label if kind == LOGIT else "" if pos < 0 else self.about.tokens[pos]

    def edge_table(self) -> pandas.DataFrame:
        """One row for each listed edge, then those of the bias; see edges."""
        import pandas

        names = self.ids
        targets, sources = ([names[i] for i in part.tolist()] for part in (self.arrows.target, self.arrows.source))
        of_bias = [names[i] for i in self.index_of(self.rows.targets).tolist()]
        columns = {
            "target": [*targets, *of_bias],
            "source": [*sources, *[BIAS_ID] * len(of_bias)],
            "weight": [*self.rows.weight.tolist(), *self.rows.bias.tolist()],
        }
        return pandas.DataFrame(columns)

    def matrix(self) -> xarray.DataArray:
        """All listed edges and those of the bias, [target, source] by id. GraphError for more than 10,000 nodes."""
        if (n := len(self)) > MOST_IN_MATRIX:
            raise GraphError(f"a matrix of {n:,} nodes has {n**2:,} cells: prune the graph, or read .edges")
        cells = torch.zeros(n, n)
        cells[self.arrows.target, self.arrows.source] = self.rows.weight
        cells[self.index_of(self.rows.targets), self.index_of(torch.tensor([self.keys.bias]))] = self.rows.bias
        return labelled(cells, {"target": self.ids, "source": self.ids}, ("target", "source"), "edge")


def _share(value: object, name: str) -> float:
    if 0 <= (number := finite_number(value, name, error=GraphError)) <= 1:
        return number
    raise GraphError(f"{name} is a share from 0 to 1; given {short_repr(value)}")
