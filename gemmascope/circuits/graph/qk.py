"""Why a head attended: its score before the cap, split over what stood in the stream at the query and at the key.

With norms' scales held, the score is a product of two sums: of what the nodes and the layers' attention wrote to the stream
at the query, and at the key.

Reference: Kamath et al., "Tracing Attention Computation Through Feature Interactions" (transformer-circuits.pub/2025).
"""

from __future__ import annotations

from contextlib import closing

import torch
import xarray
from jaxtyping import Float
from torch import Tensor

from gemmascope.circuits.frozen import FrozenLayer, FrozenRun
from gemmascope.circuits.graph.bases.basis import Basis, LayerNodes
from gemmascope.circuits.graph.data import GraphData
from gemmascope.model.maths import rope_table, rotate
from gemmascope.model.modules import NoNorm, RMSNorm
from gemmascope.run.replay import run_again
from gemmascope.values import labelled, moved

# What adds up to the stream at a position: names, and rows [part, d_model].
Parts = tuple[list[str], Tensor]


def qk_table(graph: GraphData, run: FrozenRun, basis: Basis, head: tuple[int, int], q: int, k: int) -> xarray.DataArray:
    """See AttributionGraph.qk. head: layer and query head."""
    layer, number = head
    parts = {pos: _embedding(graph, run, pos) for pos in {q, k}}
    with torch.no_grad(), closing(run.trace.model.layers()) as layers:
        for module in layers:
            frozen = run.layer(module)
            if module.index == layer:
                values = _scores(frozen, parts[q][1], parts[k][1], number, (q, k))
                break
            nodes = basis.at(frozen, graph.keys)
            sites = run_again(run.trace, module, ["attn_out", "resid_mid", "mlp_out"])
            sites["resid_post"] = run.trace.residuals[module.index + 1]
            for pos in parts:
                at = {site: moved(rows[pos], frozen.device).float() for site, rows in sites.items()}
                parts[pos] = _after_layer(graph, nodes, at, parts[pos], (module.index, pos))
    coords = {"query_part": parts[q][0], "key_part": parts[k][0]}
    return labelled(values, coords, ("query_part", "key_part"), f"head {layer}.{number}", "score before the soft cap")


def _embedding(graph: GraphData, run: FrozenRun, pos: int) -> Parts:
    return [f"E_{graph.about.ids[pos]}_{pos}"], run.trace.residuals[0][pos : pos + 1].float()


def _after_layer(
    graph: GraphData, nodes: LayerNodes, values: dict[str, Tensor], before: Parts, place: tuple[int, int]
) -> Parts:
    """What adds up to the stream after a layer. values: its sites at the position. place: the layer, and the position."""
    layer, pos = place
    names, rows = before
    for site, whole in (("attn_out", "attention"), ("resid_mid", ""), ("mlp_out", "mlp"), ("resid_post", "")):
        written = nodes.written(site)
        if written is None and not whole:
            continue
        found: list[str] = []
        added = rows[:0].to(values[site].device)
        if written is not None:
            keys, each = written.parts(pos, graph.node_keys)
            is_node = torch.isin(keys, graph.node_keys)
            found = [graph.ids[i] for i in torch.searchsorted(graph.node_keys, keys[is_node]).tolist()]
            added = each[is_node.to(each.device)]
        rest = values[site] - added.sum(0)
        label = f"{whole} {layer}" if written is None else f"{whole or site} {layer}, the rest"
        added, found = torch.cat((added, rest[None])), [*found, label]
        rows, names = (torch.cat((rows.to(added.device), added)), [*names, *found]) if whole else (added, found)
    return names, rows


def _scores(
    frozen: FrozenLayer, queries: Tensor, keys: Tensor, head: int, at: tuple[int, int]
) -> Float[Tensor, "query_part key_part"]:
    """The score of each part at the query with each part at the key."""
    module, config = frozen.module, frozen.config
    sides = (
        (queries, module.W_Q[head], module.self_attn.q_norm, at[0]),
        (keys, module.W_K[head // config.heads_per_kv], module.self_attn.k_norm, at[1]),
    )
    turned = [_turned(frozen, *side) for side in sides]
    return turned[0] @ turned[1].T * module.self_attn.attend.scale


def _turned(
    frozen: FrozenLayer, rows: Tensor, weight: Tensor, norm: RMSNorm | NoNorm, pos: int
) -> Float[Tensor, "part d_head"]:
    """Parts of the stream at a position as parts of a query or key after RoPE, norms' scales held."""
    attention = frozen.module.self_attn
    raw = (moved(rows, frozen.device) * frozen.attn_in_gain[pos]) @ weight.float()
    if isinstance(norm, RMSNorm):
        raw = raw * norm.gain(raw.sum(0))
    positions = torch.tensor([pos], device=raw.device)
    cos, sin = rope_table(positions, raw.shape[1], attention.rope_theta, attention.rope_factor)
    return rotate(raw[:, None], cos.expand(len(raw), -1), sin.expand(len(raw), -1))[:, 0]
