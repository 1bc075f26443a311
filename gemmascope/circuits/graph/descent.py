"""One reversed pass: all targets of a chunk go down the layers together, each from where it reads the stream.

A target is a row vector at one position. Attention carries it to earlier positions, nodes that it meets give it edges. So a
graph costs a pass for each chunk of targets, in which each layer is asked for once, and no gradient is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from gemmascope.circuits.frozen import PART_ROWS, FrozenLayer, FrozenRun
from gemmascope.circuits.graph.bases.basis import SITES, Basis, LayerNodes
from gemmascope.circuits.graph.bases.written import Edges, Written
from gemmascope.circuits.graph.memory import groups_of
from gemmascope.circuits.graph.nodes import NodeKeys
from gemmascope.circuits.graph.outputs import Logits
from gemmascope.circuits.graph.rows import Rows, RowStore
from gemmascope.memory.limits import explain_oom
from gemmascope.values import chunks, moved


@dataclass(frozen=True)
class Targets:
    """What goes down, sorted from the last layer to the first.

    Attributes:
        keys: The nodes, [target].
        layer: The layer where each joins; that of a logit is the last one.
        site: The index in SITES of the site that it reads; -1 for a logit, which joins before the layer.
        unit: Its unit; -1 for a logit.
        pos: The position that it reads.
        feature: The number of its feature; of a logit, which one.
    """

    keys: Int[Tensor, " target"]
    layer: Int[Tensor, " target"]
    site: Int[Tensor, " target"]
    unit: Int[Tensor, " target"]
    pos: Int[Tensor, " target"]
    feature: Int[Tensor, " target"]

    def __len__(self) -> int:
        return len(self.keys)

    def of(self, which: Tensor | slice) -> Targets:
        """Some of them."""
        return Targets(*(value[which] for value in vars(self).values()))

    def in_order(self) -> Targets:
        """From the last layer to the first, and in a layer as they join."""
        rank = (-self.layer * (len(SITES) + 1) + self.site) * (1 + int(self.pos.max())) + self.pos
        return self.of(rank.argsort(stable=True))


class Block:
    """Targets of similar positions, with their directions at positions 0 to stop - 1: v [target, pos, d_model].

    joined: how many targets have joined so far; later ones are zero.
    """

    def __init__(self, targets: Targets, keep: int, keys: NodeKeys, logits: Logits) -> None:
        device = logits.vectors.device
        self.targets, self.logits, self.joined = targets, logits, 0
        self.stop = int(targets.pos.max()) + 1
        self.v = torch.zeros(len(targets), self.stop, logits.vectors.shape[1], device=device)
        self.store = RowStore(len(targets), keep, keys, device)
        self.inputs = torch.zeros(len(targets), device=device)
        self.order = targets.layer * -(len(SITES) + 1) + targets.site

    @property
    def active(self) -> Float[Tensor, "joined pos d_model"]:
        """The directions of the targets that have joined."""
        return self.v[: self.joined]

    def to(self, device: torch.device) -> None:
        """Go to the device of the next layer."""
        if self.v.device != device:
            self.v, self.inputs = moved(self.v, device), moved(self.inputs, device)

    def collect(self, written: Written, v: Float[Tensor, "target pos d"], first: int = 0) -> None:
        """Take the edges from what was written to directions; first: the target of the first of them."""
        if not len(v):
            return
        for part in written.edges(v):
            self.store.add(part, first)
        self.store.bias[first : first + len(v)] += written.bias(v).to(self.store.bias)

    def watch(self, site: str, layer: int) -> None:
        """Called before directions go through an MLP ("mlp_out") or attention ("resid_mid")."""

    def joining(self, layer: int, site: int) -> slice:
        """The targets that join here. They are active from now on."""
        rank = layer * -(len(SITES) + 1) + site
        stop = int((self.order <= rank).sum())
        new = slice(self.joined, max(stop, self.joined))
        self.joined = new.stop
        return new

    def read(self, nodes: LayerNodes, new: slice) -> tuple[Tensor, Tensor]:
        """What targets that join read, [target, d], and their positions. Their inputs and biases are noted."""
        targets = self.targets.of(new)
        read: list[Tensor] = []
        for unit, at in _runs_of(targets.unit.tolist()):
            which = slice(new.start + at.start, new.start + at.stop)
            pos, feature = targets.pos[at].to(self.v.device), targets.feature[at].to(self.v.device)
            if unit < 0:
                read.append(moved(self.logits.vectors, self.v.device)[feature])
                self.inputs[which] = moved(self.logits.inputs, self.v.device)[feature]
                continue
            read.append(nodes.readers(unit, pos, feature))
            value, bias = nodes.inputs(unit, pos, feature)
            self.inputs[which] = value.to(self.inputs)
            self.store.bias[which] += bias.to(self.store.bias)
        return torch.cat(read), targets.pos.to(self.v.device)


def descend(
    run: FrozenRun, basis: Basis, keys: NodeKeys, targets: Targets, logits: Logits, keep: int, tell: Callable[[], None]
) -> Rows:
    """The rows of a chunk of targets, in the order of Targets.in_order. tell: called after each layer."""
    model, targets = run.trace.model, targets.in_order()
    groups = groups_of(targets.pos, run.n_pos)
    with torch.no_grad(), explain_oom(model):
        blocks = [Block(targets.of(at), keep, keys, logits) for at in groups]
        last = None
        with closing(model.layers(reverse=True)) as layers:
            for module in layers:
                if module.index <= int(targets.layer.max()):
                    frozen = run.layer(module)
                    nodes = basis.at(frozen, keys)
                    through_layer(blocks, frozen, nodes, passes_mlp=basis.passes_mlp)
                tell()
                last = module.index
        assert last == 0
        for block in blocks:
            block.to(model.device)
            embed = run.trace.residuals[0][: block.stop].float()
            edges = einsum(block.v, embed, "target pos d, pos d -> target pos")
            block.store.add(Edges(keys.embeddings[: block.stop], edges))
        rows = Rows.joined([block.store.rows(block.targets.keys, block.inputs) for block in blocks])
    return rows


def through_layer(blocks: Sequence[Block], frozen: FrozenLayer, nodes: LayerNodes, *, passes_mlp: bool) -> None:
    """Carry blocks down a layer."""
    for block in blocks:
        block.to(frozen.device)
        _to_attention(block, frozen, nodes, passes_mlp)
    if nodes.written("attn_out") is None and nodes.written("z") is None:
        frozen.add_below_attention([block.active for block in blocks])
    for block in blocks:
        _through_attention(block, frozen, nodes)


def _to_attention(block: Block, frozen: FrozenLayer, nodes: LayerNodes, passes_mlp: bool) -> None:
    """Carry a block from the end of a layer to the stream after its attention."""
    layer = frozen.index
    _join_stream(block, nodes, block.joining(layer, -1))
    _absorb(block, nodes, "resid_post")
    _join_stream(block, nodes, block.joining(layer, SITES.index("resid_post")))
    if not block.joined and not bool((block.targets.layer == layer).any()):
        return
    block.watch("mlp_out", layer)
    written = nodes.written("mlp_out")
    if written is not None:
        block.collect(written, block.active)
        for v in _parts(block.active):
            if (through := nodes.skip(v)) is not None:
                v += through
    elif passes_mlp:
        for v in _parts(block.active):
            v += frozen.mlp.below(v)
    new = block.joining(layer, SITES.index("mlp_out"))
    if new.start < new.stop:
        read, pos = block.read(nodes, new)
        block.v[torch.arange(new.start, new.stop, device=pos.device), pos] += frozen.mlp.below_at(read, pos)
    _absorb(block, nodes, "resid_mid")
    _join_stream(block, nodes, block.joining(layer, SITES.index("resid_mid")))
    block.watch("resid_mid", layer)


def _through_attention(block: Block, frozen: FrozenLayer, nodes: LayerNodes) -> None:
    """Carry a block on to where the next layer ends, where add_below_attention has not done all of it."""
    attn_out, z_written = nodes.written("attn_out"), nodes.written("z")
    if attn_out is not None:
        block.collect(attn_out, block.active)
    elif z_written is not None:
        block.collect(z_written, frozen.at_z(block.active).flatten(2))
    for site in ("attn_out", "z"):
        new = block.joining(frozen.index, SITES.index(site))
        if new.start == new.stop:
            continue
        spread = _spread(*block.read(nodes, new), block.stop)
        z = frozen.at_z(spread) if site == "attn_out" else spread.view(*spread.shape[:2], -1, frozen.config.d_head)
        if site == "attn_out" and z_written is not None:
            block.collect(z_written, z.flatten(2), new.start)
        else:
            block.v[new] += frozen.below_z(z)


def _absorb(block: Block, nodes: LayerNodes, site: str) -> None:
    """Directions that meet a site whose whole value nodes stand for end there."""
    if (written := nodes.written(site)) is not None:
        block.collect(written, block.active)
        block.active.zero_()


def _join_stream(block: Block, nodes: LayerNodes, new: slice) -> None:
    if new.start < new.stop:
        read, pos = block.read(nodes, new)
        block.v[torch.arange(new.start, new.stop, device=pos.device), pos] += read


def _spread(read: Float[Tensor, "target d"], pos: Tensor, stop: int) -> Float[Tensor, "target pos d"]:
    """Directions at one position each, as rows of all positions."""
    spread = read.new_zeros(len(read), stop, read.shape[1])
    spread[torch.arange(len(read), device=pos.device), pos] = read
    return spread


def _parts(v: Float[Tensor, "target pos d"]) -> Iterator[Tensor]:
    """Directions a few targets at a time, so that what lies between stays small."""
    return (v[part] for part in chunks(len(v), max(1, PART_ROWS // v.shape[1])))


def _runs_of(values: Sequence[int]) -> Iterator[tuple[int, slice]]:
    """Neighbours with the same value: the value, and where they are."""
    start = 0
    for at in range(1, len(values) + 1):
        if at == len(values) or values[at] != values[start]:
            yield values[start], slice(start, at)
            start = at
