"""gs.graph_view: an attribution graph as a page to look into."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from gemmascope.arguments import whole_number
from gemmascope.circuits.graph.nodes import BIAS, ERROR, FEATURE, KINDS, LOGIT
from gemmascope.circuits.graph.result import AttributionGraph
from gemmascope.errors import GraphError
from gemmascope.examples.result import TopExamples
from gemmascope.tokens.tokenizer import visible_text
from gemmascope.views.graphs.details import carried_by, raised_tokens
from gemmascope.views.graphs.examples import examples_of_nodes
from gemmascope.views.graphs.shown import Shown, shown_part
from gemmascope.views.labels import are_special, position_label
from gemmascope.views.packing import PackedArray, pack
from gemmascope.views.page import View

# How many nodes the table has that stands in for the picture.
TABLE_ROWS = 10


def graph_view(
    graph: AttributionGraph,
    *,
    most: int = 300,
    heads: int = 300,
    examples: TopExamples | None = None,
    progress: bool = True,
) -> View:
    """An attribution graph to look into: tokens to the right, layers upwards.

    A slider leaves the nodes that hold a share of the influence. Pointing at a node lights what it reads and what it writes
    to; a click opens both as lists, with the heads that carried the strongest edges and the tokens whose logits the node
    raises. Nodes are dragged into named groups, which start as the graph's supernodes; groups and names are saved with the
    page, and taken away as JSON, as a picture and as Python. The graph itself is not changed.

    Args:
        graph: What `gs.attribution_graph` or `gs.open_graph` returned; pruned or whole.
        most: The most nodes to show; those with the most influence, and every output. Default 300.
        heads: For how many edges to find the heads that carried them: the strongest edge into each node, nodes by influence,
            then the second into each, and so on. Default 300.
        examples: What gs.top_examples returned of the graph's dictionaries, or of "neuron": the pane of a node then shows
            the texts on which it is strongest. None: it does not.
        progress: Show a progress bar when it takes more than a second.

    Returns:
        The picture, self-contained. A graph that was opened without its model has neither heads nor tokens.

    Raises:
        GraphError: `graph` is something else, `most` is below 1 or above 5,000, or `heads` is below 0.
        ExamplesError: `examples` is something else, of another model, or has none of the nodes that are shown.

    Examples:
        >>> graph = gs.attribution_graph("Mary and John went to the", basis="neuron", max_nodes=50, progress=False)
        >>> view = gs.graph_view(graph.prune(nodes=0.5), heads=5)
        >>> view.title
        'Attribution graph of nano'
        >>> view.save("graph.html")
    """
    if not isinstance(graph, AttributionGraph):
        raise GraphError(f"a view of a graph is of what gs.attribution_graph returns; given {type(graph).__name__}")
    most = whole_number(most, "most, how many nodes to show,", least=1, most=5000, error=GraphError)
    heads = whole_number(heads, "heads, for how many edges to find heads,", least=0, error=GraphError)
    shown = shown_part(graph, most)
    spec, arrays = drawn(graph, shown)
    if graph.run is not None:
        spec["carried"] = carried_by(graph, shown, heads, progress)
        spec["raises"] = raised_tokens(graph, shown)
    if examples is not None:
        spec["examples"] = examples_of_nodes(graph, shown, examples)
    return view_of(graph, shown, spec, arrays)


def view_of(graph: AttributionGraph, shown: Shown, spec: Mapping[str, object], arrays: Mapping[str, PackedArray]) -> View:
    """A view of what drawn() returned, with a table that stands in for it."""
    return View(spec, arrays, repr(graph), _table(graph, shown))


def drawn(graph: AttributionGraph, shown: Shown) -> tuple[dict[str, object], dict[str, PackedArray]]:
    """What the page draws of a graph: its spec, without what is said of single nodes, and its arrays."""
    spec: dict[str, object] = {
        "view": "graph",
        "title": f"Attribution graph of {graph.about.model}",
        "note": _note(graph, shown),
        "tokens": _labels(graph),
        "layers": graph.about.n_layers,
        "basis": graph.about.basis,
        "scores": [
            value if math.isfinite(value) else None for value in (graph.scores.replacement, graph.scores.completeness)
        ],
        "nodes": _nodes(graph, shown),
        "groups": {name: [one for one in ids if one in shown.ids] for name, ids in graph.supernodes.items()},
        "left_out": sorted({one for ids in graph.supernodes.values() for one in ids} - shown.ids),
    }
    arrays = {
        "influence": pack(_numbers(graph.influence[shown.nodes])),
        "before": pack(_numbers((graph.cumulative - _share_of_all(graph))[shown.nodes])),
        "activation": pack(_numbers(graph.activation[shown.nodes])),
        "input": pack(_numbers(shown.input)),
        "bias": pack(_numbers(shown.bias)),
        "rest": pack(_numbers(shown.rest)),
        "target": pack(shown.target.numpy().astype(np.uint16)),
        "source": pack(shown.source.numpy().astype(np.uint16)),
        "weight": pack(_numbers(shown.weight)),
    }
    return spec, arrays


def _numbers(values: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return values.numpy().astype(np.float32)


def _share_of_all(graph: AttributionGraph) -> Tensor:
    """Each node's own part of `cumulative`, so that a share of influence takes the nodes that prune() takes.

    Nodes that pruning took away count on: between two nodes that stayed, `cumulative` rises by at least the second's part,
    and by just that where they follow each other.
    """
    order = graph.influence.argsort(descending=True, stable=True)[:100]
    rises = torch.diff(graph.cumulative[order], prepend=torch.zeros(1, dtype=torch.float64))
    parts = graph.influence[order] / rises.clamp(min=1e-300)
    return graph.influence / parts.max().clamp(min=1e-300)


def _note(graph: AttributionGraph, shown: Shown) -> str:
    outputs = ", ".join(one.label if one.token is None else visible_text(one.label) for one in graph.outputs)
    of = "" if shown.is_whole else f" The {len(shown.nodes):,} strongest of {len(graph) - 1:,} nodes."
    cut = f" The {len(shown.weight):,} strongest of {shown.n_edges:,} edges." if len(shown.weight) < shown.n_edges else ""
    unfinished = "" if graph.about.is_finished else " Interrupted: not all rows are there."
    return f"What gave {outputs} its value at position {graph.about.pos}.{of}{cut}{unfinished}"


def _labels(graph: AttributionGraph) -> list[object]:
    model = None if graph.run is None else graph.run.trace.model
    special = are_special(model, graph.about.ids) if model is not None else [None] * len(graph.about.ids)
    return [position_label(pos, graph.about.tokens[pos], special[pos]) for pos in range(len(graph.about.ids))]


def _nodes(graph: AttributionGraph, shown: Shown) -> list[dict[str, object]]:
    """Of each node: its id, kind and position, and what it has of layer, number, site, name, token and weight."""
    kinds, units, _, features = (part.tolist() for part in graph.decoded)
    sites = {unit.site for unit in graph.keys.units}
    made = []
    for node in shown.nodes.tolist():
        one: dict[str, object] = {"id": graph.ids[node], "kind": KINDS[kinds[node]], "pos": graph.positions[node]}
        if kinds[node] in (FEATURE, ERROR):
            unit = graph.keys.units[units[node]]
            one |= {"layer": unit.layer} | ({"site": unit.site} if len(sites) > 1 else {})
        if kinds[node] == FEATURE:
            one["number"] = features[node]
        if kinds[node] == LOGIT:
            output = graph.outputs[features[node]]
            one |= {"text": output.label, "isToken": output.token is not None, "weight": output.weight}
        if graph.ids[node] in graph.labels:
            one["label"] = graph.labels[graph.ids[node]]
        made.append(one)
    return made


def _table(graph: AttributionGraph, shown: Shown) -> list[list[str]]:
    rows = [["node", "kind", "token", "influence"]]
    kinds = graph.decoded[0].tolist()
    strongest = torch.argsort(graph.influence[shown.nodes], descending=True, stable=True)
    for node in shown.nodes[strongest[:TABLE_ROWS]].tolist():
        token = visible_text(graph.about.tokens[graph.positions[node]]) if kinds[node] not in (BIAS, LOGIT) else ""
        name = graph.labels.get(graph.ids[node], graph.ids[node])
        rows.append([name, KINDS[kinds[node]], token, f"{float(graph.influence[node]):.1%}"])
    return rows
