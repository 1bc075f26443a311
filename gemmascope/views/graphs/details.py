"""What a page says of single nodes and edges: the heads that carried an edge, and the tokens that a node raises.

Each part is a table by the index of the node or edge, which stands in the page's spec under a name of its own and is drawn
by a function of js/graph/pane.js.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from gemmascope.circuits.frozen import FrozenLayer
from gemmascope.circuits.graph.bases.basis import SITES, LayerNodes
from gemmascope.circuits.graph.loadings import loadings_into
from gemmascope.circuits.graph.nodes import FEATURE
from gemmascope.circuits.graph.result import AttributionGraph
from gemmascope.values import moved
from gemmascope.views.graphs.shown import Shown

# How many heads of an edge, and how many tokens that a node raises and lowers, are listed.
HEADS, RAISED, LOWERED = 4, 5, 3
# Heads that carried less than this share of what the strongest one did are not listed.
LEAST = 0.01


def carried_by(graph: AttributionGraph, shown: Shown, most: int, progress: bool) -> dict[str, list[list[float]]]:
    """Of `most` edges, by index of the edge: the heads that carried most of it as [layer, head, what it carried].

    The outputs and the nodes with the most influence come first: of each its strongest edge, then of each its second.
    """
    return _carried_by(graph, shown, _edges_by_turns(graph, shown)[:most], progress)


def carried_into(graph: AttributionGraph, shown: Shown, node: int, most: int) -> dict[str, list[list[float]]]:
    """The same of the strongest edges into a node, by its index among those that are shown."""
    edges = (shown.target == node).nonzero().flatten()
    strongest = shown.weight[edges].abs().argsort(descending=True, stable=True)[:most]
    return _carried_by(graph, shown, edges[strongest].tolist(), False)


def _carried_by(
    graph: AttributionGraph, shown: Shown, chosen: Sequence[int], progress: bool
) -> dict[str, list[list[float]]]:
    from tqdm.auto import tqdm

    run, basis = graph._live()
    found: dict[str, list[list[float]]] = {}
    by_target: dict[int, list[int]] = {}
    for edge in chosen:
        by_target.setdefault(int(shown.nodes[shown.target[edge]]), []).append(edge)
    n_edges = sum(map(len, by_target.values()))
    with tqdm(total=n_edges, desc="heads", unit="edge", delay=1.0, leave=False, disable=not progress) as bar:
        for target, edges in by_target.items():
            sources = shown.nodes[shown.source[edges]].tolist()
            for edge, loading in zip(edges, loadings_into(graph, run, basis, target, sources), strict=True):
                found[str(edge)] = _strongest_heads(loading["carried"].values)
                bar.update()
    return found


def _edges_by_turns(graph: AttributionGraph, shown: Shown) -> list[int]:
    """All edges that are shown: the strongest one into each node, nodes by influence, then the second of each."""
    reach = (graph.influence + graph.weights)[shown.nodes][shown.target].tolist()
    order = shown.weight.abs().argsort(descending=True, stable=True).tolist()
    targets = shown.target.tolist()
    turn: dict[int, int] = {}
    turns = [0] * len(reach)
    for edge in order:
        target = targets[edge]
        turns[edge] = turn[target] = turn.get(target, -1) + 1
    return sorted(order, key=lambda edge: (turns[edge], -reach[edge]))


def _strongest_heads(carried: NDArray[np.floating]) -> list[list[float]]:
    flat = np.nan_to_num(carried.ravel())
    strongest = np.argsort(-np.abs(flat), kind="stable")[:HEADS]
    kept = [int(i) for i in strongest if abs(flat[i]) > LEAST * abs(flat[strongest[0]])]
    return [[*divmod(i, carried.shape[1]), float(flat[i])] for i in kept]


def raised_tokens(graph: AttributionGraph, shown: Shown, only: Sequence[int] | None = None) -> dict[str, list[list[object]]]:
    """Of each feature, by index of the node: the tokens whose logits it raises and lowers most, as [token, by how much].
    only: indices of the nodes to do that for; None for all.

    What it wrote, as the last norm reads it at its position, times the unembedding, less the vocabulary's mean: nothing
    between it and the logits is counted.
    """
    run, _ = graph._live()
    model = run.trace.model
    kinds, positions = graph.decoded[0].tolist(), graph.positions
    nodes = shown.nodes.tolist()
    features = [(i, nodes[i]) for i in (range(len(nodes)) if only is None else only) if kinds[nodes[i]] == FEATURE]
    if not features:
        return {}
    with torch.no_grad():
        last = moved(run.trace.residuals[-1][[positions[node] for _, node in features]], model.device).float()
        written = written_by(graph, [node for _, node in features]).to(model.device)
        directions = written * model.network.model.norm.gain(last)
        logits = torch.cat(
            [directions @ moved(rows, model.device).float().T for _, rows in model.network.model.embed_tokens.parts()], 1
        )
        logits = (logits - logits.mean(1, keepdim=True)).cpu()
    n = logits.shape[1]
    high, low = logits.topk(min(RAISED, n)), logits.topk(min(LOWERED, n), largest=False)
    found: dict[str, list[list[object]]] = {}
    for row, (i, _) in enumerate(features):
        ids = torch.cat((high.indices[row], low.indices[row].flip(0)))
        values = torch.cat((high.values[row], low.values[row].flip(0))).tolist()
        found[str(i)] = [[text, round(value, 5)] for text, value in zip(model.texts(ids), values, strict=True)]
    return found


def written_by(graph: AttributionGraph, nodes: Sequence[int]) -> Float[Tensor, "node d_model"]:
    """What features added to the stream, in all layers that they write to. nodes: indices of the graph's nodes."""
    run, basis = graph._live()
    _, units, positions, _ = (part.tolist() for part in graph.decoded)
    total = torch.zeros(len(nodes), run.trace.model.config.d_model)
    with torch.no_grad(), closing(run.trace.model.layers()) as layers:
        for module in layers:
            frozen = run.layer(module)
            here = basis.at(frozen, graph.keys)
            for row, node in enumerate(nodes):
                if graph.keys.units[units[node]].layer <= module.index:
                    total[row] += _written_here(frozen, here, int(graph.node_keys[node]), positions[node]).cpu()
    return total


def _written_here(frozen: FrozenLayer, here: LayerNodes, key: int, pos: int) -> Tensor:
    total = torch.zeros(frozen.config.d_model, device=frozen.device)
    for site in SITES:
        written = here.written(site)
        part = None if written is None else written.contribution(key)
        if part is not None:
            total += (part @ frozen.w_o.T) * frozen.attn_out_gain[pos] if site == "z" else part
    return total
