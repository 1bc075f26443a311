"""What a graph says beside what the model does: nodes are changed in runs of their own, all of them in one pass.

First with everything held that the graph holds (patterns, scales, and what stands for MLPs): what other nodes read must then
move by the graph's columns. Then with nothing held: an ordinary edit, beside what all paths of the graph predict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from gemmascope.circuits.frozen import SCALES, FrozenRun
from gemmascope.circuits.graph.bases.basis import SITES, Basis, LayerNodes
from gemmascope.circuits.graph.data import GraphData
from gemmascope.circuits.graph.nodes import FEATURE, LOGIT
from gemmascope.edits.edit import Edit
from gemmascope.model.layout import Block, Layout
from gemmascope.model.maths import root_mean_square
from gemmascope.model.tap import Tap
from gemmascope.run.passes import streams
from gemmascope.run.replay import run_again
from gemmascope.values import chunks, moved

# Positions of runs with nothing held that go through the layers together.
RUN_ROWS = 2**14

# A change of some nodes in one run: how many times what each wrote is added, by the node's index.
Change = Mapping[int, float]


@dataclass(frozen=True)
class Effects:
    """What changes did, each in a run of its own.

    Attributes:
        direct: By how much the graph's edges say that each target's input moves, [run, target].
        held: By how much it moved in the model with all held that the graph holds, [run, target].
        is_whole: Whether the graph lists every edge from the changed nodes into the target, [run, target].
        predicted: By how much all paths of the graph say that each output moves, [run, output].
        true: By how much it moved with nothing held, [run, output].
    """

    direct: Tensor
    held: Tensor
    is_whole: Tensor
    predicted: Tensor
    true: Tensor


def effects(graph: GraphData, run: FrozenRun, basis: Basis, changes: Sequence[Change]) -> Effects:
    """The effects of changes of a graph's features."""
    n = len(changes)
    amounts = torch.zeros(n, len(graph), dtype=torch.float64)
    for row, change in enumerate(changes):
        amounts[row, list(change)] = torch.tensor(list(change.values()), dtype=torch.float64)
    arrows = graph.arrows
    direct = torch.zeros(n, len(graph), dtype=torch.float64)
    moves = amounts[:, arrows.source] * arrows.weight.double()
    direct.index_add_(1, arrows.target, moves)
    n_listed = torch.zeros(n, len(graph)).index_add_(1, arrows.target, (amounts[:, arrows.source] != 0).float())
    targets = graph.index_of(graph.rows.targets)
    n_asked = (amounts != 0).sum(1, keepdim=True)
    with torch.no_grad():
        held = _held(graph, run, basis, changes)
        true = _open(graph, run, basis, changes)
    is_whole = (n_listed[:, targets] == n_asked) | (graph.rows.rest == 0)
    return Effects(direct[:, targets], held, is_whole, amounts @ total_effects(graph).T, true)


def total_effects(graph: GraphData) -> Tensor:
    """By how much each output moves for what each node wrote, along all paths of the graph, [output, node], float64.

    A feature that an edge moves writes more or less in proportion to its activation.
    """
    arrows = graph.arrows
    outputs = graph.index_of(graph.keys.logits)
    current = torch.zeros(len(outputs), len(graph), dtype=torch.float64)
    current[torch.arange(len(outputs)), outputs] = 1
    size = torch.where(graph.decoded[0] == FEATURE, graph.activation.double(), 1.0)
    size = torch.where(size.isnan() | (size == 0), torch.inf, size)
    total = torch.zeros_like(current)
    for _ in range(len(graph)):
        through = current[:, arrows.target] / size[arrows.target] * arrows.weight.double()
        current = torch.zeros_like(current).index_add_(1, arrows.source, through)
        if not bool(current.any()):
            break
        total += current
    return total


class _Holding(Tap):
    """Holds patterns and scales at those of a run, and what nodes stand for at its value plus a change for each run.

    It notes by how much what the targets read differs from the first run's, which has no change.
    """

    def __init__(self, run: FrozenRun, n_runs: int) -> None:
        self.run, self.n_runs = run, n_runs
        self.base: dict[tuple[str, int], Tensor] = {}  # [pos, ...], or the pattern [head, q, k]
        self.changes: dict[tuple[str, int], Tensor] = {}  # [run, pos, d]
        self.nodes: dict[int, LayerNodes] = {}
        self.readers: dict[tuple[str, int], list[tuple[int, int, Tensor]]] = {}  # targets: number, position, what it reads
        self.gates: dict[str, Tensor] = {}
        self.mids: dict[int, Tensor] = {}
        self.held: dict[tuple[int, int], Tensor] = {}
        self.moved: dict[int, Tensor] = {}
        self.relp: dict[int, tuple[Tensor, Tensor]] = {}

    def wants(self, site: str, layer: int | None) -> bool:
        return site in (*SCALES, "attn_in_scale", "pattern") and layer is not None

    def rows(self, site: str, layer: int | None, value: Tensor, layout: Layout) -> Tensor:
        if layer is None:
            return value
        if site in ("mlp_gate", "mlp_up"):
            self.gates[site] = value
        if site == "mlp_act" and layer in self.relp:
            from_up, from_gate = (part.repeat(self.n_runs, 1) for part in self.relp[layer])
            return (self.gates["mlp_up"].float() * from_up + self.gates["mlp_gate"].float() * from_gate).to(value.dtype)
        self._note(site, layer, value.view(self.n_runs, -1, *value.shape[1:]))
        base = self.base.get((site, layer))
        if base is None:
            return value
        held = base.expand(self.n_runs, *base.shape).clone()
        if (site, layer) in self.changes:
            held += self.changes[site, layer].view_as(held)
        if site == "mlp_out" and (added := self.nodes[layer].skip_written(self.mids[layer])) is not None:
            held += added
        return held.flatten(0, 1).to(value.dtype)

    def edges(self, site: str, layer: int, value: Tensor, block: Block) -> Tensor:
        return self.base["pattern", layer].expand_as(value)

    def _note(self, site: str, layer: int, value: Tensor) -> None:
        """By how much each target that reads this site moves. value: [run, pos, ...]."""
        difference = (value - value[:1]).float()
        if site == "resid_mid":
            self.mids[layer] = difference
        for number, pos, read in self.readers.get((site, layer), ()):
            self.moved[number] = (difference[:, pos].flatten(1) @ read.flatten()).cpu()


def _held(graph: GraphData, run: FrozenRun, basis: Basis, changes: Sequence[Change]) -> Tensor:
    """By how much each target's input moves in the model, [run, target], with all held that the graph holds."""
    trace, n_runs = run.trace, len(changes) + 1
    tap = _Holding(run, n_runs)
    _prepare(tap, graph, basis, changes)
    layout = Layout.of_lengths([run.n_pos] * n_runs, trace.model.device)
    final = trace.model.network(trace.ids.repeat(n_runs), layout, tap).view(n_runs, run.n_pos, -1)
    difference = (final - final[:1])[:, graph.logits.pos].float() @ moved(graph.logits.vectors, final.device).T
    for number, key in enumerate(graph.rows.targets.tolist()):
        if graph.keys.kinds(torch.tensor([key])).item() == LOGIT:
            tap.moved[number] = difference[:, key - int(graph.keys.logits[0])].cpu()
    return torch.stack([tap.moved[number][1:] for number in range(len(graph.rows.targets))], dim=1)


def _prepare(tap: _Holding, graph: GraphData, basis: Basis, changes: Sequence[Change]) -> None:
    """Fill a tap with the run's values, the changes and what the targets read, in one pass over the layers."""
    run, sources = tap.run, sorted({node for change in changes for node in change})
    _, unit, pos, feature = graph.keys.decode(graph.rows.targets)
    with closing(run.trace.model.layers()) as layers:
        for module in layers:
            frozen, layer = run.layer(module), module.index
            nodes = tap.nodes[layer] = basis.at(frozen, graph.keys)
            standing = [site for site in SITES if nodes.written(site) is not None]
            tap.base |= {
                (site, layer): value for site, value in run_again(run.trace, module, ["pattern", *standing]).items()
            }
            entry = root_mean_square(run.trace.residuals[layer], run.trace.model.config.norm_eps)
            tap.base |= {("attn_in_scale", layer): moved(entry, frozen.device)}
            tap.base |= {(site, layer): frozen.scale(site) for site in SCALES}
            _ = frozen.mlp_out_gain  # for the skip connection, while the layer's weights are here
            if basis.passes_mlp:
                tap.relp[layer] = (frozen.mlp.from_up, frozen.mlp.from_gate)
            for site in standing:
                tap.changes[site, layer] = _change_of(graph, nodes, site, sources, changes, tap.base[site, layer])
            for index in range(len(basis.units)):
                at = torch.nonzero(unit == index).flatten()
                if basis.units[index].layer == layer and len(at):
                    read = nodes.readers(index, pos[at].to(frozen.device), feature[at].to(frozen.device))
                    listed = list(zip(at.tolist(), pos[at].tolist(), read, strict=True))
                    tap.readers.setdefault((basis.reads(index), layer), []).extend(listed)


def _change_of(
    graph: GraphData, nodes: LayerNodes, site: str, sources: Sequence[int], changes: Sequence[Change], base: Tensor
) -> Tensor:
    """What changed nodes write at a site in each run, the first of which has none: [run, pos, d]."""
    written = nodes.written(site)
    assert written is not None
    made = torch.zeros(len(changes) + 1, *base.flatten(1).shape, device=base.device)
    for node in sources:
        vector = written.contribution(int(graph.node_keys[node]))
        if vector is not None:
            for row, change in enumerate(changes):
                made[row + 1, graph.positions[node]] += change.get(node, 0.0) * vector
    return made


def _open(graph: GraphData, run: FrozenRun, basis: Basis, changes: Sequence[Change]) -> Tensor:
    """By how much each output moves in the model with nothing held, [run, output], float64."""
    trace, model = run.trace, run.trace.model
    base = trace.residuals[-1][graph.logits.pos]
    norm = model.network.model.norm
    directions = (moved(graph.logits.vectors, base.device) / norm.gain(base)).nan_to_num()
    edits = [[edit.bind(model, trace.ids) for edit in edits_of(graph, basis, change)] for change in changes]
    values = [_value(norm.gain(base), base, directions)]
    for part in chunks(len(changes), max(1, RUN_ROWS // run.n_pos)):
        of_part = edits[part]
        for stream in streams(model, [trace.ids] * len(of_part), of_part):
            row = moved(stream[-1][graph.logits.pos], base.device)
            values.append(_value(norm.gain(row), row, directions))
    return torch.stack(values[1:]) - values[0]


def _value(gain: Tensor, row: Tensor, directions: Tensor) -> Tensor:
    return (directions.double() @ (gain * row.float()).double()).cpu()


def edits_of(graph: GraphData, basis: Basis, change: Change) -> list[Edit]:
    """Edits that make a change in any run of the prompt, or of texts that begin with it."""
    _, unit, pos, feature = (part.tolist() for part in graph.decoded)
    return [edit for node, by in change.items() for edit in basis.edits(unit[node], pos[node], feature[node], by)]
