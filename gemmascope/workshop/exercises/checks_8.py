"""Exercises of notebook 8: attribution graphs. Rows that add up, influence along all paths, and what a change will do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gemmascope.workshop.exercises.inputs import normal
from gemmascope.workshop.grading import Exercise, Wrong

if TYPE_CHECKING:
    import pandas

# 8.1: a row of the graph adds up to what its node reads


def _edges(seed: int) -> tuple[pandas.DataFrame, float, str]:
    """A table of edges as a graph has it, the sum of a node's unlisted edges, and that node's id."""
    import pandas

    ids = [f"{layer}_{7 * layer + seed % 5}_4" for layer in range(5)]
    embeddings = ["E_12_1", "E_30_2", "bias"]
    pairs = [(ids[i], source) for i in range(5) for source in (*embeddings, *ids[:i])]
    shuffled = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed)).tolist()
    weights = (2 * normal(seed + 1, len(pairs)) + 0.4).tolist()
    rows = [(*pairs[i], weights[i]) for i in shuffled]
    return pandas.DataFrame(rows, columns=["target", "source", "weight"]), 0.7 + seed % 3, ids[2]


def _row(edges: pandas.DataFrame, target: str) -> pandas.DataFrame:
    found: pandas.DataFrame = edges[edges["target"] == target]
    return found


ex_8_1 = Exercise(
    "8.1",
    _edges,
    lambda edges, rest, target: float(_row(edges, target)["weight"].sum()) + rest,
    [
        Wrong(
            lambda edges, rest, target: _row(edges, target)["weight"].sum(),
            "the edges that are not listed were left out: their sum is rest",
        ),
        Wrong(
            lambda edges, rest, target: _row(edges[edges["source"] != "bias"], target)["weight"].sum() + rest,
            "the bias node was left out: biases are part of what a node reads",
        ),
        Wrong(
            lambda edges, rest, target: _row(edges, target)["weight"].abs().sum() + rest,
            "sizes were added up: edges that speak against the node count with their sign",
        ),
        Wrong(
            lambda edges, rest, target: edges[edges["source"] == target]["weight"].sum() + rest,
            "these are the edges out of the node: what it reads comes in, along edges whose target it is",
        ),
        Wrong(
            lambda edges, rest, target: edges["weight"].sum() + rest,
            "the edges of all nodes were added up: take those into the target",
        ),
    ],
    "what the target reads, one number",
)


# 8.2: influence along all paths


def _weights(seed: int) -> tuple[Tensor, Tensor]:
    """Edge weights [target, source], of nodes in an order in which edges lead forward, and the outputs' weights [node]."""
    size = 7
    edges = normal(seed, size, size).tril(-1)
    edges[:2] = 0.0  # the first two are embeddings: nothing leads to them
    edges[-2, -1] = edges[-1, -2] = 0.0
    counts = torch.zeros(size)
    counts[-2:] = torch.tensor([0.6, 0.4])
    return edges, counts


def _shares(edges: Tensor) -> Tensor:
    size: Tensor = edges.abs()
    return size / size.sum(1, keepdim=True).clamp(min=1e-12)


def _influence(shares: Tensor, counts: Tensor, *, itself: bool = False) -> Tensor:
    total, step = counts * float(itself), counts
    for _ in range(len(counts)):
        step = step @ shares
        total = total + step
    return total


def _steps(shares: Tensor, counts: Tensor) -> list[Tensor]:
    """What arrives over one edge, over two, and so on."""
    return [counts @ torch.linalg.matrix_power(shares, n) for n in range(1, len(counts))]


ex_8_2 = Exercise(
    "8.2",
    _weights,
    lambda edges, counts: _influence(_shares(edges), counts),
    [
        Wrong(
            lambda edges, counts: counts @ _shares(edges),
            "only direct edges count here: what an output reads has been read from others, and so on, path by path",
        ),
        Wrong(
            lambda edges, counts: _influence(_shares(edges), counts, itself=True),
            "the outputs' own weights were added: influence is what comes in over one edge or more",
        ),
        Wrong(
            lambda edges, counts: _influence(edges.abs(), counts),
            "rows were not divided by their sums: each node hands on shares of what it counts for",
        ),
        Wrong(
            lambda edges, counts: _influence(edges / edges.abs().sum(1, keepdim=True).clamp(min=1e-12), counts),
            "edges kept their signs: paths for and against would cancel, and both matter; take abs",
        ),
        Wrong(
            lambda edges, counts: _influence(edges.abs() / edges.abs().sum(0, keepdim=True).clamp(min=1e-12), counts),
            "columns were divided by their sums: it is a row, what one node reads, that is shared out",
        ),
        Wrong(
            lambda edges, counts: _influence(edges.abs() / edges.abs().sum(1).clamp(min=1e-12), counts),
            "the sums of rows have lost their axis, and divide columns: keep it, sum(1, keepdim=True)",
        ),
        Wrong(
            lambda edges, counts: sum(_steps(_shares(edges), counts)[:2]),
            "paths of two edges or fewer were counted: go on until nothing arrives any more",
        ),
        Wrong(
            lambda edges, counts: torch.zeros_like(counts),
            "nothing arrives: what an output counts for goes back to what it reads, counts @ shares, not shares @ counts; "
            "and what arrives in each step is added up",
        ),
        Wrong(
            lambda edges, counts: _influence(edges.abs() / edges.abs().sum(1, keepdim=True), counts),
            "a row without edges was divided by its sum, 0, and gave NaN: such a row stays 0",
        ),
    ],
    "the influence of every node [node]",
)


# 8.3: what the graph predicts for a node that is switched off


def _switched(seed: int) -> tuple[Tensor, Tensor, int]:
    """Edge weights [target, source] as in 8.2 with one output, the last node; activations [node]; the node to switch off."""
    size = 7
    edges = normal(seed, size, size).tril(-1)
    edges[:2] = 0.0
    return edges, normal(seed + 1, size).abs() + 0.5, 2 + seed % 2


def _off(edges: Tensor, activation: Tensor, node: int, *, direct: bool = True, factor: float = -1.0) -> float:
    amount = torch.zeros(len(edges))
    amount[node] = factor
    for later in range(node + 1, len(edges) - 1):
        amount[later] = edges[later] @ amount / activation[later]
    if not direct:
        amount[node] = 0.0
    return float(edges[-1] @ amount)


ex_8_3 = Exercise(
    "8.3",
    _switched,
    _off,
    [
        Wrong(
            lambda edges, activation, node: -float(edges[-1, node]),
            "only the edge straight into the output was taken: other features read this one too, and hand it on",
        ),
        Wrong(
            lambda edges, activation, node: _off(edges, torch.ones_like(activation), node),
            "an edge says how far a feature's activation moves: as a share of what it writes, divide by the activation",
        ),
        Wrong(
            lambda edges, activation, node: _off(edges, activation, node, factor=1.0),
            "the sign is turned round: switched off, the node writes once less what it wrote",
        ),
        Wrong(
            lambda edges, activation, node: _off(edges, activation, node, factor=-float(activation[node])),
            "multiplied by the node's activation: an edge's weight holds it already",
        ),
        Wrong(
            lambda edges, activation, node: _off(edges, activation, node, direct=False),
            "the edge from the node straight into the output was left out",
        ),
        Wrong(
            lambda edges, activation, node: _off(edges, activation, node) / float(activation[-1]),
            "the output was divided by its activation: it is asked by how much it moves, and not by which share",
        ),
        Wrong(
            lambda edges, activation, node: _off(edges, 1 / activation, node),
            "multiplied by each target's activation: an edge moves the activation by so much, so divide by it",
        ),
        Wrong(
            lambda edges, activation, node: 0.0,
            "nothing moves: either rows and columns are the other way round (edges[later] is what `later` reads), or the "
            "loop begins at the node that is off, and should begin after it",
        ),
        Wrong(
            lambda edges, activation, node: abs(_off(edges, activation, node)),
            "the size of the move alone: it moves up or down, so keep the sign",
        ),
    ],
    "how far the output moves, one number",
)
