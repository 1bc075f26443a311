"""What the page of a graph lab draws: the graph, what is said of a node, and what changes do."""

from __future__ import annotations

import math
from collections.abc import Mapping

from gemmascope.circuits.graph.nodes import LOGIT
from gemmascope.circuits.graph.result import AttributionGraph
from gemmascope.labs.graphs.settings import GraphSettings
from gemmascope.labs.graphs.truth import Truth, output_moves
from gemmascope.views.graphs.details import carried_into, raised_tokens
from gemmascope.views.graphs.shown import shown_part
from gemmascope.views.graphs.view import drawn, view_of
from gemmascope.views.page import View

# For how many of the strongest edges into a node that is looked at the heads are found: as many as its page lists.
EDGES = 8
HOLD_WORDS = {
    "nothing": ("nothing: the model as it is", "nothing"),
    "patterns": ("patterns and norms' scales, as in the graph's run", "patterns and norms"),
    "everything": ("all that the graph holds, against its edges alone", "everything"),
}


def picture_of(graph: AttributionGraph, most: int, number: int) -> dict[str, object]:
    """The graph as its page draws it. number: another one for each picture."""
    spec, arrays = drawn(graph, shown_part(graph, most))
    return {"number": number, "spec": {**spec, "carried": {}, "raises": {}}, "arrays": arrays}


def still_of(graph: AttributionGraph, most: int, result: Mapping[str, object] | None) -> View:
    """The lab as a page without a kernel. result: as result_of gives it; None without changes."""
    shown = shown_part(graph, most)
    spec, arrays = drawn(graph, shown)
    found = {} if result is None else {"result": result}
    return view_of(graph, shown, {**spec, **found}, arrays)


def details_of(graph: AttributionGraph, node: str, most: int) -> dict[str, object]:
    """What is said of a node that is looked at: the heads that carried edges into it, and the tokens that it raises.

    {} for one that the page has no room for.
    """
    shown = shown_part(graph, most)
    if node not in shown.ids:
        return {}
    index = shown.nodes.tolist().index(graph.index(node))
    return {
        "node": node,
        "carried": carried_into(graph, shown, index, EDGES),
        "raises": raised_tokens(graph, shown, [index]),
    }


def result_of(graph: AttributionGraph, truth: Truth, settings: GraphSettings, most: int) -> dict[str, object]:
    """What changes do: outputs before, predicted and true; and [id, predicted, true] of every later node that is shown."""
    predicted, true = output_moves(graph, truth)
    before = graph.logits.inputs.tolist()
    outputs = [
        {
            "name": one.label,
            "isToken": one.token is not None,
            "before": value,
            "predicted": _number(value + expected),
            "true": _number(value + found),
        }
        for one, value, expected, found in zip(graph.outputs, before, predicted, true, strict=True)
    ]
    shown, kinds = shown_part(graph, most).ids, graph.decoded[0].tolist()
    nodes = [
        [graph.ids[node], _number(a), _number(b)]
        for node, a, b, later in zip(
            truth.targets.tolist(), truth.predicted.tolist(), truth.true.tolist(), truth.is_later.tolist(), strict=True
        )
        if later and kinds[node] != LOGIT and graph.ids[node] in shown
    ]
    words = HOLD_WORDS[settings.hold][1]
    return {"outputs": outputs, "nodes": nodes, "changes": dict(settings.changes), "hold": words}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
