"""What a graph says beside what the model does: nodes are changed in runs of their own, all of them in one pass.

First with everything held that the graph holds (patterns, scales, and what stands for MLPs): what other nodes read must then
move by the graph's columns. Then with nothing held: an ordinary edit, beside what all paths of the graph predict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gemmascope.circuits.frozen import FrozenRun
from gemmascope.circuits.graph.bases.basis import Basis
from gemmascope.circuits.graph.data import GraphData
from gemmascope.circuits.graph.nodes import FEATURE
from gemmascope.circuits.graph.truth.held import Change, held_effects
from gemmascope.edits.edit import Edit
from gemmascope.memory.limits import rows_within
from gemmascope.memory.placement import layer_bytes, work_bytes
from gemmascope.sweeps.cells import chunked
from gemmascope.sweeps.variants import BaseRun, Variant, final_residuals
from gemmascope.values import chunks, moved

# The most positions of runs with all held that go through a layer together: more would be no faster.
RUN_ROWS = 2**12
# The most numbers of changes and edges at once, in float64: 128 MB.
MOST_ELEMENTS = 2**24


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
    """The effects of changes of a graph's features, as many at a time as the memory takes.

    Raises:
        SweepError: The memory is too little for the rows of a pass.
    """
    max_rows = rows_within(None, run.trace.model)
    at_once = max(1, min(runs_within(run, max_rows), MOST_ELEMENTS // max(1, len(graph.rows.weight))))
    parts = [_effects(graph, run, basis, changes[part]) for part in chunks(len(changes), at_once)]
    direct, held, is_whole = (torch.cat(each) for each in zip(*parts, strict=True))
    total, predicted = total_effects(graph), torch.zeros(len(changes), len(graph.outputs), dtype=torch.float64)
    for row, change in enumerate(changes):
        predicted[row] = total[:, list(change)] @ torch.tensor(list(change.values()), dtype=torch.float64)
    with torch.no_grad():
        true = _open(graph, run, basis, changes, max_rows)
    return Effects(direct, held, is_whole, predicted, true)


def runs_within(run: FrozenRun, max_rows: int) -> int:
    """How many changes go through the layers together with everything held, beside the run without one.

    All their rows are in a layer at once, where max_rows counts rows between layers: those inside take more.
    """
    config, dtype = run.trace.model.config, run.trace.model.dtype
    n_bytes = work_bytes(config, dtype, max_rows)
    inside = layer_bytes(config, dtype) + 4 * (2 * config.n_heads * config.d_head + 6 * config.d_model)
    return min(n_bytes // inside, RUN_ROWS) // run.n_pos - 1


def _effects(graph: GraphData, run: FrozenRun, basis: Basis, changes: Sequence[Change]) -> tuple[Tensor, Tensor, Tensor]:
    """Of a part of the changes: direct, held and is_whole, as in Effects."""
    n, arrows = len(changes), graph.arrows
    amounts = torch.zeros(n, len(graph), dtype=torch.float64)
    for row, change in enumerate(changes):
        amounts[row, list(change)] = torch.tensor(list(change.values()), dtype=torch.float64)
    sources = amounts[:, arrows.source]
    n_listed = torch.zeros(n, len(graph)).index_add_(1, arrows.target, (sources != 0).float())
    direct = torch.zeros_like(amounts).index_add_(1, arrows.target, sources.mul_(arrows.weight.double()))
    targets = graph.index_of(graph.rows.targets)
    n_asked = (amounts != 0).sum(1, keepdim=True)
    is_whole = (n_listed[:, targets] == n_asked) | (graph.rows.rest == 0)
    return direct[:, targets], held_effects(graph, run, basis, changes), is_whole


def total_effects(graph: GraphData) -> Tensor:
    """By how much each output moves for what each node wrote, along all paths of the graph, [output, node], float64.

    A feature that an edge moves writes more or less in proportion to its activation.
    """
    arrows = graph.arrows
    size = torch.where(graph.decoded[0] == FEATURE, graph.activation.double(), 1.0)
    size = torch.where(size.isnan() | (size == 0), torch.inf, size)
    step = arrows.weight.double() / size[arrows.target]
    # The outputs themselves are divided by 1: an edge into one counts whole.
    total = torch.zeros(len(graph.outputs), len(graph), dtype=torch.float64)
    for of_output, output in zip(total, graph.index_of(graph.keys.logits).tolist(), strict=True):
        current = torch.zeros(len(graph), dtype=torch.float64)
        current[output] = 1
        for _ in range(len(graph)):
            current = torch.zeros_like(current).index_add_(0, arrows.source, current[arrows.target] * step)
            if not bool(current.any()):
                break
            of_output += current
    return total


def _open(graph: GraphData, run: FrozenRun, basis: Basis, changes: Sequence[Change], max_rows: int) -> Tensor:
    """By how much each output moves in the model with nothing held, [run, output], float64."""
    trace, model = run.trace, run.trace.model
    norm, at = model.network.model.norm, graph.logits.pos
    base_run = BaseRun(trace.ids, (), (at,))
    edits = [tuple(edit.bind(model, trace.ids) for edit in edits_of(graph, basis, change)) for change in changes]
    runs = [_Run(Variant(0, of_run), run.n_pos) for of_run in edits]
    values: list[Tensor] = []
    for part in chunked(runs, lambda: max_rows):
        finals = final_residuals(model, [base_run], [one.variant for one in part])
        base, rows = finals.bases[0][0], finals.of(range(len(part)))[:, 0]
        directions = (moved(graph.logits.vectors, base.device) / norm.gain(base)).nan_to_num()
        of_base = _value(norm.gain(base), base, directions)
        values += [_value(norm.gain(row), row, directions) - of_base for row in rows]
    return torch.stack(values)


@dataclass(frozen=True)
class _Run:
    """An edited run, and how many rows it may take."""

    variant: Variant
    n_rows: int


def _value(gain: Tensor, row: Tensor, directions: Tensor) -> Tensor:
    return (directions.double() @ (gain * row.float()).double()).cpu()


def edits_of(graph: GraphData, basis: Basis, change: Change) -> list[Edit]:
    """Edits that make a change in any run of the prompt, or of texts that begin with it."""
    _, unit, pos, feature = (part.tolist() for part in graph.decoded)
    return [edit for node, by in change.items() for edit in basis.edits(unit[node], pos[node], feature[node], by)]
