"""What each head carried of an edge: the target goes down, the source goes up, and they meet in every layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

import torch
import xarray
from torch import Tensor

from gemmascope.circuits.frozen import FrozenLayer, FrozenRun
from gemmascope.circuits.graph.bases.basis import Basis, LayerNodes
from gemmascope.circuits.graph.build import targets_of
from gemmascope.circuits.graph.data import GraphData
from gemmascope.circuits.graph.descent import Block, through_layer
from gemmascope.circuits.graph.nodes import BIAS, EMBEDDING, FEATURE, LOGIT
from gemmascope.errors import GraphError
from gemmascope.values import labelled, moved


def edge_loadings(graph: GraphData, run: FrozenRun, basis: Basis, target: int, source: int) -> xarray.Dataset:
    """See AttributionGraph.loadings. target, source: indices of nodes."""
    return next(loadings_into(graph, run, basis, target, [source]))


def loadings_into(
    graph: GraphData, run: FrozenRun, basis: Basis, target: int, sources: Sequence[int]
) -> Iterator[xarray.Dataset]:
    """The loadings of several edges into a target, which goes down the layers once for all of them."""
    for source in sources:
        _require_edge(graph, target, source)
    with torch.no_grad():
        read = _down(graph, run, basis, target)
    for source in sources:
        with torch.no_grad():
            carried, around = _up(graph, run, basis, source, read)
        coords = {"layer": range(len(carried)), "head": range(carried.shape[1])}
        by_head = labelled(carried, coords, ("layer", "head"), "carried", "part of the edge")
        bypass = labelled(around, {"layer": coords["layer"]}, ("layer",), "bypass", "part of the edge")
        names = {"target": graph.ids[target], "source": graph.ids[source]}
        yield xarray.Dataset({"carried": by_head, "bypass": bypass}, attrs=names)


def _require_edge(graph: GraphData, target: int, source: int) -> None:
    """GraphError for two nodes between which there can be no edge that heads carry."""
    kind = graph.decoded[0].tolist()
    if kind[target] not in (FEATURE, LOGIT) or kind[source] == BIAS:
        raise GraphError(
            f"an edge goes into a feature or an output, from any node but the bias, which stands everywhere; given "
            f"({graph.ids[target]!r}, {graph.ids[source]!r})"
        )


class _Watched(Block):
    """A block of one target whose direction is noted before it goes through an MLP ("mlp_out") or attention."""

    seen: dict[tuple[str, int], Tensor]

    def watch(self, site: str, layer: int) -> None:
        if self.joined:
            self.seen[site, layer] = self.v[0].clone()


def _down(graph: GraphData, run: FrozenRun, basis: Basis, target: int) -> dict[tuple[str, int], Tensor]:
    """The target's direction at every layer's mlp_out and resid_mid, from where it joins."""
    targets = targets_of(graph.keys, basis, graph.logits.pos, graph.about.n_layers, graph.node_keys[target : target + 1])
    block = _Watched(targets, 1, graph.keys, graph.logits)
    block.seen = {}
    with closing(run.trace.model.layers(reverse=True)) as layers:
        for module in layers:
            frozen = run.layer(module)
            through_layer([block], frozen, basis.at(frozen, graph.keys), passes_mlp=basis.passes_mlp)
    return block.seen


def _up(
    graph: GraphData, run: FrozenRun, basis: Basis, source: int, read: dict[tuple[str, int], Tensor]
) -> tuple[Tensor, Tensor]:
    """Of each layer, what each head carried [layer, head] and what went around its attention [layer]; NaN outside."""
    kind, _, pos, _ = (int(part[source]) for part in graph.decoded)
    config, key = run.trace.model.config, int(graph.node_keys[source])
    carried = torch.full((config.n_layers, config.n_heads), torch.nan)
    around = torch.full((config.n_layers,), torch.nan)
    x = torch.zeros(run.n_pos, config.d_model, device=run.trace.model.device)
    if kind == EMBEDDING:
        x[pos] = run.trace.residuals[0][pos].float()
    with closing(run.trace.model.layers()) as layers:
        for module in layers:
            frozen, layer = run.layer(module), module.index
            nodes, x = basis.at(frozen, graph.keys), moved(x, frozen.device)
            heads = frozen.head_writes(x) if not _stands_for_attention(nodes) else x.new_zeros(config.n_heads, *x.shape)
            v = read.get(("resid_mid", layer))
            if v is not None and bool(x.any()):
                carried[layer] = (heads[:, : len(v)] * v).sum((1, 2)).cpu()
                around[layer] = float((x[: len(v)] * v).sum())
            x, written = _through_layer(frozen, nodes, basis, x + heads.sum(0), (key, pos))
            if written is not None and (v := read.get(("mlp_out", layer))) is not None and pos < len(v):
                around[: layer + 1] += float(written @ v[pos])  # a cross-layer feature writes on the way; NaN stays NaN
    return carried, around


def _stands_for_attention(nodes: LayerNodes) -> bool:
    return nodes.written("attn_out") is not None or nodes.written("z") is not None


def _through_layer(
    frozen: FrozenLayer, nodes: LayerNodes, basis: Basis, x: Tensor, source: tuple[int, int]
) -> tuple[Tensor, Tensor | None]:
    """The source's part of the stream after a layer, from that after its heads; and what it wrote to mlp_out there.

    source: its key and position.
    """
    key, pos = source

    def wrote(site: str) -> tuple[bool, Tensor | None]:
        """Whether nodes stand for the site, and what the source wrote there."""
        written = nodes.written(site)
        return written is not None, None if written is None else written.contribution(key)

    _, of_z = wrote("z")
    if of_z is not None:
        x[pos] += (of_z @ frozen.w_o.T) * frozen.attn_out_gain[pos]
    if (of_attn := wrote("attn_out")[1]) is not None:
        x[pos] += of_attn
    x = _at_stream(x, *wrote("resid_mid"), pos)
    ends, of_mlp = wrote("mlp_out")
    added = nodes.skip_written(x) if ends else frozen.mlp.written(x) if basis.passes_mlp else None
    x = x if added is None else x + added
    if of_mlp is not None:
        x[pos] += of_mlp
    return _at_stream(x, *wrote("resid_post"), pos), of_mlp


def _at_stream(x: Tensor, ends: bool, written: Tensor | None, pos: int) -> Tensor:
    """At a site of the stream whose whole value nodes stand for, only what the source wrote there goes on."""
    if not ends:
        return x
    x = torch.zeros_like(x)
    if written is not None:
        x[pos] = written
    return x
