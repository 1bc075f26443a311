"""The part of a graph that a page has room for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gemmascope.circuits.graph.data import GraphData
from gemmascope.circuits.graph.nodes import BIAS, LOGIT

# The most edges of a page: 220 kB.
MOST_EDGES = 20_000


@dataclass(frozen=True)
class Shown:
    """Nodes and edges of a graph.

    Attributes:
        nodes: The nodes as indices of the graph's, rising, [node].
        ids: Their ids.
        target, source: The edges between them as indices of `nodes`, those of a target together, [edge].
        weight: [edge].
        input, bias: Each node's input in the run, and the bias' edge into it, [node]; NaN where inputs are not known.
        rest: The sum of its edges that are not shown, [node].
        n_edges: How many edges the graph lists between these nodes.
        is_whole: Whether all of the graph's nodes are shown, but for the bias.
    """

    nodes: Int[Tensor, " node"]
    ids: frozenset[str]
    target: Int[Tensor, " edge"]
    source: Int[Tensor, " edge"]
    weight: Float[Tensor, " edge"]
    input: Float[Tensor, " node"]
    bias: Float[Tensor, " node"]
    rest: Float[Tensor, " node"]
    n_edges: int
    is_whole: bool


def shown_part(graph: GraphData, most: int) -> Shown:
    """The strongest nodes, at most `most` and every output, and the strongest edges between them."""
    kind, influence = graph.decoded[0], graph.influence.clone()
    influence[kind == LOGIT] = torch.inf
    influence[kind == BIAS] = -1.0
    n = min(max(most, len(graph.outputs)), len(graph) - 1)
    nodes = influence.argsort(descending=True, stable=True)[:n].sort().values
    number = torch.full((len(graph),), -1)
    number[nodes] = torch.arange(n)
    arrows, rows = graph.arrows, graph.rows
    inner = ((number[arrows.target] >= 0) & (number[arrows.source] >= 0)).nonzero().flatten()
    kept = inner
    if len(inner) > MOST_EDGES:
        kept = inner[edge_scores(graph)[inner].topk(MOST_EDGES).indices].sort().values
    rest = torch.full((n,), torch.nan, dtype=torch.float64)
    values, bias = rest.clone(), rest.clone()
    of_rows = number[graph.index_of(rows.targets)]
    are_here = of_rows >= 0
    at = of_rows[are_here]
    listed = torch.zeros(n, dtype=torch.float64).index_add_(0, number[arrows.target[kept]], arrows.weight[kept].double())
    values[at], bias[at] = rows.inputs[are_here].double(), rows.bias[are_here].double()
    rest[at] = (rows.sums - rows.bias.double())[are_here] - listed[at]
    return Shown(
        nodes, frozenset(graph.ids[i] for i in nodes.tolist()), number[arrows.target[kept]], number[arrows.source[kept]],
        arrows.weight[kept], values, bias, rest, len(inner), n == len(graph) - 1,
    )  # fmt: skip


def edge_scores(graph: GraphData) -> Float[Tensor, " edge"]:
    """How much of the outputs goes over each listed edge, as prune() ranks them."""
    reach = graph.influence + graph.weights
    scores: Tensor = graph.arrows.shares * reach[graph.arrows.target]
    return scores
