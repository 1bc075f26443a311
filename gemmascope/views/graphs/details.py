"""What a page says of single nodes and edges: the heads that carried an edge, and the tokens that a node raises."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gemmascope.circuits.frozen import FrozenLayer
from gemmascope.circuits.graph.bases.basis import SITES, LayerNodes
from gemmascope.circuits.graph.nodes import FEATURE
from gemmascope.circuits.graph.result import AttributionGraph
from gemmascope.values import moved
from gemmascope.views.graphs.shown import Shown, edge_scores

# How many heads of an edge, and how many tokens that a node raises and lowers, are listed.
HEADS, RAISED, LOWERED = 4, 5, 3


def carried_by(graph: AttributionGraph, shown: Shown, most: int, progress: bool) -> dict[str, list[list[float]]]:
    """Of the strongest edges, by index of the edge: the heads that carried most of it as [layer, head, what it carried]."""
    from tqdm.auto import tqdm

    arrows = graph.arrows
    between = torch.stack((shown.nodes[shown.target], shown.nodes[shown.source]), 1)
    number = {pair: i for i, pair in enumerate(map(tuple, between.tolist()))}
    found: dict[str, list[list[float]]] = {}
    every = zip(arrows.target.tolist(), arrows.source.tolist(), strict=True)
    chosen = [(pair, score) for pair, score in zip(every, edge_scores(graph).tolist(), strict=True) if pair in number]
    chosen.sort(key=lambda one: -one[1])
    for pair, _ in tqdm(chosen[:most], desc="heads", unit="edge", delay=1.0, leave=False, disable=not progress):
        carried = graph.loadings((graph.ids[pair[0]], graph.ids[pair[1]]))["carried"].values
        flat = np.nan_to_num(carried.ravel())
        strongest = np.argsort(-np.abs(flat), kind="stable")[:HEADS]
        heads = [[int(i) // carried.shape[1], int(i) % carried.shape[1], float(flat[i])] for i in strongest if flat[i]]
        found[str(number[pair])] = heads
    return found


def raised_tokens(graph: AttributionGraph, shown: Shown) -> dict[str, list[list[object]]]:
    """Of each feature, by index of the node: the tokens whose logits it raises and lowers most, as [token, by how much].

    What it wrote, as the last norm reads it at its position, times the unembedding, less the vocabulary's mean: nothing
    between it and the logits is counted.
    """
    run, _ = graph._live()
    model = run.trace.model
    kinds, positions = graph.decoded[0].tolist(), graph.positions
    features = [(i, node) for i, node in enumerate(shown.nodes.tolist()) if kinds[node] == FEATURE]
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
