"""The texts on which the nodes of a graph are strongest, for their panes."""

from __future__ import annotations

import numpy as np

from gemmascope.circuits.graph.nodes import FEATURE
from gemmascope.circuits.graph.result import AttributionGraph
from gemmascope.errors import ExamplesError
from gemmascope.examples.group import UnitExamples
from gemmascope.examples.result import TopExamples
from gemmascope.examples.units import NEURON
from gemmascope.views.graphs.shown import Shown
from gemmascope.views.units.page import require_examples
from gemmascope.views.units.rows import example_rows

# How many texts a pane shows, and how much of each: a pane is narrow.
MOST, BEFORE, AFTER = 4, 8, 4


def examples_of_nodes(graph: AttributionGraph, shown: Shown, examples: TopExamples) -> dict[str, list[dict[str, object]]]:
    """Of each feature or neuron that has some, by index of the node: its strongest examples, as pages of units draw them.

    A neuron's are those of the sign that it has in the graph.

    Args:
        graph: The graph.
        shown: The nodes that are shown.
        examples: What gs.top_examples returned.

    Raises:
        ExamplesError: This is something else, of another model, or has none of these nodes.
    """
    require_examples(examples)
    if graph.run is not None and examples.fingerprint != graph.run.trace.model.fingerprint:
        raise ExamplesError(f"the graph is of {graph.about.model!r}, and the examples are of another state of it or of "
                            f"{examples.model!r}: find them with that model")  # fmt: skip
    kinds, units, _, features = (part.tolist() for part in graph.decoded)
    by_name = {_name(group): group for group in examples.each}
    made: dict[str, list[dict[str, object]]] = {}
    for i, node in enumerate(shown.nodes.tolist()):
        if kinds[node] != FEATURE:
            continue
        unit = graph.keys.units[units[node]]
        name = f"neurons {unit.layer}" if unit.name == "neurons" else f"features of {unit.name}"
        group = by_name.get(name)
        if group is None or not np.isin(features[node], group.units):
            continue
        part = "bottom" if group.kind == NEURON and float(graph.activation[node]) < 0 else "top"
        rows = example_rows(examples, group, features[node], part, most=MOST, around=(BEFORE, AFTER))
        if rows:
            made[str(i)] = rows
    if not made:
        wanted = sorted({unit.name for unit in graph.keys.units})
        raise ExamplesError(
            f"the examples have none of the nodes that are shown: those are of {', '.join(wanted[:4])}, and the examples of "
            f"{', '.join(examples.groups)}"
        )
    return made


def _name(group: UnitExamples) -> str:
    return f"neurons {group.layer}" if group.kind == NEURON else group.name
