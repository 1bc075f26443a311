"""What changed nodes do to all others in runs in which nothing is held, or patterns and scales alone, beside what all paths
of the graph predict. All runs go through the layers in one pass, with one without a change before them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gemmascope.circuits.frozen import SCALES, FrozenRun
from gemmascope.circuits.graph.bases.basis import SITES, Basis
from gemmascope.circuits.graph.data import GraphData
from gemmascope.circuits.graph.nodes import FEATURE, LOGIT
from gemmascope.circuits.graph.truth.effects import MOST_ELEMENTS, edits_of, runs_within
from gemmascope.circuits.graph.truth.held import Change
from gemmascope.memory.limits import explain_oom, rows_within
from gemmascope.model.layout import Block, Layout
from gemmascope.model.tap import Chain, Tap
from gemmascope.run.passes import require_finite_end
from gemmascope.run.taps import EditTap
from gemmascope.sites import SiteKey
from gemmascope.values import chunks, moved

# What a run with changed nodes may hold at the values of the run without.
HOLDS = ("nothing", "patterns")
_HELD = (*SCALES, "attn_in_scale")


@dataclass(frozen=True)
class NodeEffects:
    """What changes did to every node whose input the graph knows, each in a run of its own.

    Attributes:
        targets: The nodes, as indices of the graph's, [target].
        predicted: By how much all paths of the graph say that each one's input moves, [run, target], float64.
        true: By how much it moved, [run, target], float64.
        is_later: Whether a changed node comes before it, so that it can move at all, [run, target].
    """

    targets: Int[Tensor, " target"]
    predicted: Float[Tensor, "run target"]
    true: Float[Tensor, "run target"]
    is_later: Bool[Tensor, "run target"]


def node_effects(
    graph: GraphData, run: FrozenRun, basis: Basis, changes: Sequence[Change], hold: str = "nothing"
) -> NodeEffects:
    """The effects of changes of a graph's features. hold: "nothing", or "patterns", the norms' scales among them.

    EditError for a change that ends in NaN or infinity, SweepError where the memory is too little for the rows of a pass.
    """
    targets = graph.index_of(graph.rows.targets)
    predicted, true = (torch.zeros(len(changes), len(targets), dtype=torch.float64) for _ in range(2))
    at_once = runs_within(run, rows_within(None, run.trace.model))
    at_once = max(1, min(at_once, MOST_ELEMENTS // max(1, len(graph.rows.weight))))
    with torch.no_grad(), explain_oom(run.trace.model):
        for part in chunks(len(changes), at_once):
            predicted[part] = predicted_moves(graph, changes[part])[:, targets]
            true[part] = _moved(graph, run, basis, changes[part], hold == "patterns")
    return NodeEffects(targets, predicted, true, _later(graph, basis, changes)[:, targets])


def predicted_moves(graph: GraphData, changes: Sequence[Change]) -> Float[Tensor, "run node"]:
    """By how much each node's input moves along all paths of the graph, float64.

    A feature that an edge moves writes more or less in proportion to its activation, so the sums go over all paths.
    """
    arrows = graph.arrows
    weight = arrows.weight.double()
    size = torch.where(graph.decoded[0] == FEATURE, graph.activation.double(), torch.inf)
    size = torch.where(size.isnan() | (size == 0), torch.inf, size)
    current = torch.zeros(len(changes), len(graph), dtype=torch.float64)
    for row, change in enumerate(changes):
        current[row, list(change)] = torch.tensor(list(change.values()), dtype=torch.float64)
    total = torch.zeros_like(current)
    for _ in range(len(graph) + 1):  # no path is longer
        moves = torch.zeros_like(current).index_add_(1, arrows.target, current[:, arrows.source] * weight)
        if not bool(moves.any()):
            break
        total += moves
        current = moves / size
    return total


class _Watching(Tap):
    """Notes the inputs of nodes, and holds patterns and scales at those of the pass' first run.

    It stands before the edits, so it sees what a site was before they changed it, which is what nodes of the site read.
    """

    def __init__(self, basis: Basis, n_runs: int, *, holds: bool) -> None:
        self.basis, self.n_runs, self.holds = basis, n_runs, holds
        # Nodes that read a site: their unit, their numbers among the targets, positions and features.
        self.nodes: dict[SiteKey, list[tuple[int, Tensor, Tensor, Tensor]]] = defaultdict(list)
        self.moved: list[tuple[Tensor, Tensor]] = []  # numbers of targets, and by how much each moved, [run, node]

    def wants(self, site: str, layer: int | None) -> bool:
        held = self.holds and layer is not None and (site in _HELD or site == "pattern")
        return held or (site, layer) in self.nodes

    def rows(self, site: str, layer: int | None, value: Tensor, layout: Layout) -> Tensor:
        for unit, numbers, pos, feature in self.nodes.get((site, layer), ()):
            of_runs = value.view(self.n_runs, -1, *value.shape[1:]).flatten(2)
            inputs = self.basis.inputs_of_runs(unit, pos, feature, of_runs, scales_held=self.holds).double()
            self.moved.append((numbers, (inputs[1:] - inputs[:1]).cpu()))
        if not self.holds or layer is None or site not in _HELD:
            return value
        first = value.view(self.n_runs, -1, *value.shape[1:])[:1]
        return first.expand(self.n_runs, *first.shape[1:]).flatten(0, 1)

    def edges(self, site: str, layer: int, value: Tensor, block: Block) -> Tensor:
        return value[:1].expand_as(value) if site == "pattern" else value


def _moved(graph: GraphData, run: FrozenRun, basis: Basis, changes: Sequence[Change], holds: bool) -> Tensor:
    """By how much each target's input moves in the model, [run, target], float64."""
    trace, model = run.trace, run.trace.model
    n_runs = len(changes) + 1
    tap = _Watching(basis, n_runs, holds=holds)
    kind, unit, pos, feature = graph.keys.decode(graph.rows.targets)
    for index in torch.unique(unit[kind == FEATURE]).tolist():
        at = ((kind == FEATURE) & (unit == index)).nonzero().flatten()
        place = (basis.input_site(index), basis.units[index].layer)
        tap.nodes[place].append((index, at, pos[at], feature[at]))
    edits = [[], *([edit.bind(model, trace.ids) for edit in edits_of(graph, basis, change)] for change in changes)]
    layout = Layout.of_lengths([run.n_pos] * n_runs, model.device)
    residual = _LastStream()
    model.network(trace.ids.repeat(n_runs), layout, Chain(tap, EditTap(edits), residual))
    found = torch.zeros(len(changes), len(graph.rows.targets), dtype=torch.float64)
    for numbers, values in tap.moved:
        found[:, numbers] = values
    last = residual.value.view(n_runs, run.n_pos, -1)[:, graph.logits.pos]
    for row, of_run in zip(last, edits, strict=True):
        require_finite_end(model, trace.ids, row, of_run)
    outputs = _outputs(graph, run, last, holds)
    is_logit = kind == LOGIT
    number = (graph.rows.targets[is_logit] - graph.keys.logits[0]).long()
    found[:, is_logit] = outputs[:, number]
    return found


class _LastStream(Tap):
    """Keeps what the last layer leaves in the stream."""

    value: Tensor

    def rows(self, site: str, layer: int | None, value: Tensor, layout: Layout) -> Tensor:
        if site == "resid_post":
            self.value = value
        return value


def _outputs(graph: GraphData, run: FrozenRun, last: Tensor, holds: bool) -> Tensor:
    """By how much each output moves, [run, output], float64. last: the stream at the explained position, [run, d_model]."""
    norm = run.trace.model.network.model.norm
    base = moved(run.trace.residuals[-1][graph.logits.pos], last.device)
    vectors = moved(graph.logits.vectors, last.device)
    if holds:
        return ((last[1:] - last[:1]).double() @ vectors.double().T).cpu()
    directions = (vectors / norm.gain(base)).nan_to_num().double()
    values = (norm.gain(last) * last.float()).double() @ directions.T
    return (values[1:] - values[:1]).cpu()


def _later(graph: GraphData, basis: Basis, changes: Sequence[Change]) -> Bool[Tensor, "run node"]:
    """Whether a changed node comes before each node, on the way up and from left to right, [run, node]."""
    kind, unit, _, _ = graph.decoded
    order = {site: len(SITES) - i for i, site in enumerate(SITES)}
    units = graph.keys.units
    writes = torch.tensor([one.layer * 10 + order[one.site] for one in units])
    reads = torch.tensor([one.layer * 10 + order[basis.reads(i)] for i, one in enumerate(units)])
    positions = torch.tensor(graph.positions)
    depth = torch.where(kind == FEATURE, reads[unit.clamp(max=len(units) - 1)], -1)
    depth[kind == LOGIT] = 10 * graph.about.n_layers + 10
    later = torch.zeros(len(changes), len(graph), dtype=torch.bool)
    for row, change in enumerate(changes):
        for node in change:
            later[row] |= (depth > writes[unit[node]]) & (positions >= positions[node])
    return later
