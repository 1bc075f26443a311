"""What a user asks to be changed, as a change of nodes."""

from __future__ import annotations

from collections.abc import Mapping

from gemmascope.arguments import finite_number, short_repr
from gemmascope.circuits.graph.data import GraphData
from gemmascope.circuits.graph.nodes import FEATURE
from gemmascope.errors import GraphError


def change_of(graph: GraphData, nodes: object, scale: object, value: object) -> dict[int, float]:
    """How many times what each node wrote is to be added, by the node's index.

    Args:
        graph: The graph.
        nodes: The name of a supernode, an id, or several; or a mapping from those to the factor of each.
        scale: What to multiply activations by; None for 0.
        value: The activation to set them to; None to scale them.

    Raises:
        GraphError: A node is no feature, is named twice with two factors, or more than one way to change it is given.
    """
    if isinstance(nodes, Mapping):
        if scale is not None or value is not None:
            raise GraphError("a mapping says by what each node is multiplied: leave scale and value out")
        return _of_mapping(graph, nodes)
    if scale is not None and value is not None:
        raise GraphError("scale and value both say what to do: give one of them")
    found = _features(graph, nodes)
    if value is None:
        factor = 0.0 if scale is None else finite_number(scale, "scale", error=GraphError)
        return dict.fromkeys(found, factor - 1.0)
    wanted = finite_number(value, "value", error=GraphError)
    if silent := [graph.ids[i] for i in found if float(graph.activation[i]) == 0]:
        raise GraphError(f"{silent[0]!r} has activation 0, which no factor makes another: leave it out")
    return {i: wanted / float(graph.activation[i]) - 1.0 for i in found}


def changed_name(graph: GraphData, nodes: object, change: Mapping[int, float]) -> str:
    """What a change is called: the names that the user gave, with factors where each has its own."""
    if isinstance(nodes, str):
        return graph.labels.get(nodes, nodes)
    if isinstance(nodes, Mapping):
        return ", ".join(f"{graph.labels.get(name, name)} x {factor:g}" for name, factor in nodes.items())
    names = [graph.ids[i] for i in change]
    return ", ".join(graph.labels.get(name, name) for name in names)


def _of_mapping(graph: GraphData, factors: Mapping[object, object]) -> dict[int, float]:
    if not factors:
        raise GraphError("an empty mapping changes nothing: give names of supernodes or ids, each with its factor")
    change: dict[int, float] = {}
    for name, factor in factors.items():
        by = finite_number(factor, f"the factor of {short_repr(name)}", error=GraphError) - 1.0
        for node in _features(graph, name):
            if change.get(node, by) != by:
                raise GraphError(f"{graph.ids[node]!r} is named twice, with two factors: name it once")
            change[node] = by
    return change


def _features(graph: GraphData, nodes: object) -> list[int]:
    found = graph.indices(nodes)
    if wrong := [graph.ids[i] for i in found if int(graph.decoded[0][i]) != FEATURE]:
        raise GraphError(f"only features and neurons can be changed; {wrong[0]!r} is none")
    return found
