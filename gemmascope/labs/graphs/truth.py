"""Truth: what the changes of a graph lab do to every output and every later node, beside what the graph says."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gemmascope.circuits.graph.result import AttributionGraph
from gemmascope.circuits.graph.truth.changes import change_of
from gemmascope.circuits.graph.truth.effects import effects
from gemmascope.circuits.graph.truth.opened import node_effects
from gemmascope.labs.graphs.settings import EVERYTHING, GraphSettings
from gemmascope.model.modes import default_modes


@dataclass(frozen=True)
class Truth:
    """By how much the input of each target moves, float64 [target].

    targets: the nodes, as indices of the graph's. is_later: whether a changed node comes before it.
    """

    targets: Tensor
    predicted: Tensor
    true: Tensor
    is_later: Tensor


def truth_of(graph: AttributionGraph, settings: GraphSettings) -> Truth | None:
    """What the changes do; None without changes. Raises what graph.intervene would."""
    if not settings.changes:
        return None
    run, basis = graph._live()
    change = change_of(graph, dict(settings.changes), None, None)
    with default_modes():
        hold = "nothing" if settings.hold == EVERYTHING else settings.hold
        nodes = node_effects(graph, run, basis, [change], hold)
        if settings.hold != EVERYTHING:
            return Truth(nodes.targets, nodes.predicted[0], nodes.true[0], nodes.is_later[0])
        found = effects(graph, run, basis, [change])
        known = nodes.is_later[0] & found.is_whole[0]
        return Truth(nodes.targets, found.direct[0], found.held[0].double(), known)


def output_moves(graph: AttributionGraph, truth: Truth) -> tuple[list[float], list[float]]:
    """By how much each output moves, predicted and true, in the order of graph.outputs."""
    at = torch.searchsorted(truth.targets, graph.index_of(graph.keys.logits))
    return truth.predicted[at].tolist(), truth.true[at].tolist()
