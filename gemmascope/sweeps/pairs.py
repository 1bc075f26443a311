"""Pair: a run to patch, what to write in it, the cells of its grid, and the metric; and remarks on pairs before they run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import nan

import torch
from torch import Tensor

from gemmascope.arguments import one_of, short_repr
from gemmascope.edits.edit import BoundEdit
from gemmascope.edits.of_run import all_edits
from gemmascope.edits.places import first_difference
from gemmascope.edits.sources import is_trace
from gemmascope.edits.target import mesh
from gemmascope.errors import SweepError
from gemmascope.model.model import Model, Prompt
from gemmascope.model.prompts import as_prompts, is_prompt_list, number_errors
from gemmascope.run.bound_metric import BoundMetric, bind_to_prompt, measure_trace, read_positions
from gemmascope.run.trace import Trace
from gemmascope.run.tracing import trace
from gemmascope.sweeps.grid import Cell, Grid, grids_of
from gemmascope.sweeps.remarks import (
    Remark,
    against_itself,
    edit_remarks,
    metric_remarks,
    numbered,
    pair_remarks,
    prompt_remarks,
    shared_metric_remarks,
)
from gemmascope.sweeps.sets.metrics import Metrics
from gemmascope.sweeps.sources import Ablation, PrecomputedValues, ValuesFromPass, ValuesFromTrace, ValueSource
from gemmascope.sweeps.spec import SweepSpec
from gemmascope.sweeps.variants import BaseRun, SourceRun

INTO = ("corrupt", "clean")

# Sites of the first layer that depend on the row's own token only.
_OF_OWN_TOKEN = frozenset(("resid_pre", "attn_in_scale", "attn_in", "q_raw", "k_raw", "q", "k", "v", "q_rot", "k_rot"))

# Sites whose rows no other row of the same layer reads.
_OF_OWN_ROW = frozenset(
    (
        "q",
        "q_rot",
        "scores",
        "scores_capped",
        "pattern",
        "z",
        "head_out",
        "attn_raw",
        "attn_out_scale",
        "attn_out",
        "resid_mid",
    )
) | frozenset(
    ("mlp_in_scale", "mlp_in", "mlp_gate", "mlp_up", "mlp_act", "mlp_raw", "mlp_out_scale", "mlp_out", "resid_post")
)


@dataclass(frozen=True, eq=False)
class Pair:
    """A run to patch, what to write in it, the cells of its grid, and the metric.

    source_ids: the run to patch from; None for an ablation. metrics: bound to the run; user_metrics: as they were given.
    """

    base: BaseRun
    source_ids: Tensor | None
    values: ValueSource
    grid: Grid
    metrics: tuple[BoundMetric, ...]
    user_metrics: tuple[object, ...]
    _tensors: dict[tuple[int, ...], Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def metric(self) -> BoundMetric:
        """The first metric."""
        return self.metrics[0]

    @property
    def n_cells(self) -> int:
        """How many cells can have a value: those that name only edges which the mask hides cannot."""
        return sum(bool(self.grid.layers_of(cell)) for cell in self.grid.cells())

    @property
    def source_run(self) -> SourceRun | None:
        """The run that must ride along in the pass for the cells to be patched from."""
        return self.values.run if isinstance(self.values, ValuesFromPass) else None

    def source_metric(self, number: int = 0) -> float:
        """A metric of a source that was traced; NaN for an ablation."""
        if not isinstance(self.values, ValuesFromTrace):
            return nan
        return measure_trace(self.metrics[number], self.values.trace)

    def values_at(self, layer: int) -> Tensor:
        """What the cells write at a layer: the whole site. Only for values that are known before the pass."""
        assert isinstance(self.values, PrecomputedValues)
        return self.values.at_layer(layer)

    def edits_of(self, cell: Cell) -> tuple[BoundEdit, ...]:
        """The edits of a cell's run; none where it names only edges that the mask hides."""
        axes = [axis for axis in self.grid.site.axes if axis in cell]
        indices = tuple(self._tensor(cell[axis]) for axis in axes)
        places = {"head" if axis == "kv_head" else axis: cell[axis] for axis in axes}
        return tuple(self.values.edit(layer, self.grid.site, indices, places) for layer in self.grid.layers_of(cell))

    def index_of(self, cell: Cell) -> tuple[Tensor, ...]:
        """Indices of a cell's places, their outer product, into a value of the site."""
        places = [self._tensor(cell[axis]) for axis in self.grid.site.axes if axis in cell]
        return mesh(places, self.base.ids.device)

    def _tensor(self, numbers: list[int]) -> Tensor:
        key = tuple(numbers)
        if key not in self._tensors:
            self._tensors[key] = torch.tensor(numbers)
        return self._tensors[key]


def listed_pairs(clean: object, corrupt: object) -> tuple[object, object]:
    """The two prompts, or two lists of them; columns of tables, arrays of texts and generators become lists."""
    _refuse_traces("clean", clean)
    _refuse_traces("corrupt", corrupt)
    return as_prompts(clean), None if corrupt is None else as_prompts(corrupt)


def pairs_of(
    clean: object, corrupt: object, metric: object, spec: SweepSpec, model: Model, *, trace_sources: bool = False
) -> list[Pair]:
    """The pairs of a sweep, checked: every mistake that can be found before a run is an error here.

    Of several sites, the grids of a pair stand side by side and share its runs.

    clean, corrupt: from listed_pairs. trace_sources: run the sources now and keep their traces; otherwise they go through
    the layers in the pass of the cells.
    """
    ablation = Ablation.of(spec.ablate, spec.reference)
    checked = runs_of(clean, corrupt, metric, spec.into, ablation is not None, model)
    grids = [grids_of(spec, model, base_ids) for base_ids, *_ in checked]
    pairs = []
    for (base_ids, source_ids, metrics, user_metrics), of_sites in zip(checked, grids, strict=True):
        edits = tuple(edit.bind(model, base_ids) for edit in all_edits(model, spec.edits))
        base = BaseRun(base_ids, edits, read_positions(metrics))
        source = None
        if source_ids is not None:
            kept = tuple(edit.bind(model, source_ids) for edit in all_edits(model))
            run = SourceRun(source_ids, {}, base.positions, kept)
            source = trace(source_ids, model=model) if trace_sources else run
        for grid in of_sites:
            values = _values_of(source, ablation, grid, model, base_ids)
            if source_ids is not None and not base.edits:
                values.unchanged_before = _n_same(base_ids, source_ids)
            pairs.append(Pair(base, source_ids, values, grid, metrics, user_metrics))
    return pairs


def _values_of(
    source: Trace | SourceRun | None, ablation: Ablation | None, grid: Grid, model: Model, ids: Tensor
) -> ValueSource:
    """What the cells of a grid write in a run of these ids."""
    if source is None:
        assert ablation is not None
        return ablation.values(grid, model, ids)
    if isinstance(source, SourceRun):
        return ValuesFromPass(source, grid.site)
    return ValuesFromTrace(source, grid.site, grid.n_layers_at_once)


def _n_same(ids: Tensor, other: Tensor) -> int:
    """How many tokens two prompts of one length share from the start."""
    differing = (ids != other).nonzero()
    return int(differing[0]) if len(differing) else len(ids)


def runs_of(
    clean: object, corrupt: object, metric: object, into: str, is_ablation: bool, model: Model
) -> list[tuple[Tensor, Tensor | None, tuple[BoundMetric, ...], tuple[object, ...]]]:
    """For each pair: the ids to patch, those to patch from, and the metrics, bound and as they were given."""
    one_of(into, "into, the run to patch,", INTO, error=SweepError)
    if corrupt is not None and is_ablation:
        raise SweepError("corrupt and ablate were both given: leave one out")
    if corrupt is None and not is_ablation:
        raise SweepError("neither corrupt nor ablate was given: give a corrupted prompt, or ablate=0.0")
    many = is_prompt_list(clean)
    if corrupt is not None and is_prompt_list(corrupt) != many:
        raise SweepError("give clean and corrupt as two prompts, or as two lists of prompts")
    cleans: list[Prompt] = list(clean) if many else [clean]  # type: ignore[call-overload, list-item]
    corrupts: list[Prompt | None] = (
        [None] * len(cleans) if corrupt is None else list(corrupt) if many else [corrupt]  # type: ignore[call-overload, list-item]
    )
    metrics = Metrics.of(metric, many).of_pairs(len(cleans), len(corrupts))
    runs = []
    for number, (one_clean, one_corrupt, of_pair) in enumerate(zip(cleans, corrupts, metrics, strict=True)):
        with number_errors("pair", number, len(cleans)):
            if message := next((text for one in of_pair if (text := against_itself(one, model))), None):
                raise SweepError(message)
            base, source = _ids_of(one_clean, one_corrupt, into, model)
            bound = tuple(bind_to_prompt(one, model, base) for one in of_pair)
            runs.append((base, source, bound, of_pair))
    return runs


def _ids_of(clean: Prompt, corrupt: Prompt | None, into: str, model: Model) -> tuple[Tensor, Tensor | None]:
    """The token ids of the run to patch and of the run to patch from, which must be of one length."""
    clean_ids = model.ids(clean)
    if corrupt is None:
        return clean_ids, None
    corrupt_ids = model.ids(corrupt)
    if len(clean_ids) != len(corrupt_ids):
        raise SweepError(f"the positions of the two prompts must match: {first_difference(model, clean_ids, corrupt_ids)}")
    return (corrupt_ids, clean_ids) if into == "corrupt" else (clean_ids, corrupt_ids)


def _refuse_traces(name: str, prompts: object) -> None:
    """SweepError for a trace, or a list that holds one, where a prompt is to be run."""
    several = list(prompts) if isinstance(prompts, (list, tuple)) else [prompts]
    if traces := [one for one in several if hasattr(one, "stream") and hasattr(one, "ids")]:
        holds = "is" if prompts is traces[0] else "holds"
        edited = "; edits= are made to the run that is patched" if getattr(traces[0], "edits", ()) else ""
        kind = "trace" if is_trace(traces[0]) else type(traces[0]).__name__.lower()
        raise SweepError(
            f"{name} {holds} a {kind}, and a sweep runs its prompts itself: give the prompt, or the {kind}'s .ids{edited}"
        )


# -- remarks --


def sweep_remarks(pairs: Sequence[Pair], metric: object, model: Model) -> Iterator[Remark]:
    """Remarks on a sweep's pairs, grids and metrics."""
    of_pairs = [list(same) for _, same in groupby(pairs, key=lambda pair: id(pair.base))]  # the grids of each pair
    for one in Metrics.of(metric, len(of_pairs) > 1).each:
        if not isinstance(one, (list, tuple)):
            yield from shared_metric_remarks(one, len(of_pairs))
    remarks = ([remark for pair in same for remark in _sweep_pair_remarks(pair, model)] for same in of_pairs)
    yield from numbered("pair", [list(dict.fromkeys(of_pair)) for of_pair in remarks])


def _sweep_pair_remarks(pair: Pair, model: Model) -> Iterator[Remark]:
    ids = pair.base.ids
    if pair.grid.site.is_edges and not pair.n_cells:
        yield Remark(
            "error", "q_pos", f"the mask hides every edge of {pair.grid.site.name} that the grid names: no cell can be run. "
            "Name keys that come before their queries, within the window of a local layer"
        )  # fmt: skip
    yield from prompt_remarks("prompt", ids, model)
    yield from edit_remarks(pair.base.edits, ids, model)
    if pair.source_ids is not None and not pair.base.edits:  # the source of an edited run is without its edits: it differs
        same = list(pair_remarks(ids, pair.source_ids))
        yield from same or _grid_remarks(pair, pair.source_ids)
    for metric in pair.user_metrics:
        yield from metric_remarks(metric, ids, model)


def _grid_remarks(pair: Pair, source_ids: Tensor) -> Iterator[Remark]:
    """A remark on a grid whose places have the same value in both runs, or cannot reach the metric."""
    grid = pair.grid
    differing = (pair.base.ids != source_ids).nonzero()[:, 0].tolist()
    axis, site = grid.row_axis, grid.site.name
    layers, positions = grid.numbers["layer"], grid.numbers[axis]
    is_first_layer = layers == [0] and grid.window == 1
    is_last_layer = layers == [grid.config.n_layers - 1] and grid.window == 1
    read = pair.base.positions
    reads = f"position {read[0]}" if len(read) == 1 else f"positions {short_repr(list(read))}"
    if read[-1] < differing[0]:
        yield Remark(
            "warning", "metric", f"the prompts differ from position {differing[0]} on, and the metric reads {reads}: every "
            "effect is 0"
        )  # fmt: skip
    elif read[-1] < min(positions):
        yield Remark(
            "warning", axis, f"the metric reads {reads}, and the grid begins at {axis} {min(positions)}: every effect is 0"
        )
    elif max(positions) < differing[0]:
        yield Remark(
            "warning", axis, f"the prompts differ from position {differing[0]} on, and the grid covers {axis} "
            f"{max(positions)} at most: every effect is 0"
        )  # fmt: skip
    elif is_first_layer and site in _OF_OWN_TOKEN and not set(positions) & set(differing):
        yield Remark(
            "warning", axis, f"{site} of layer 0 is made of a position's own token, and the prompts have the same tokens "
            "there: every effect is 0"
        )  # fmt: skip
    elif is_last_layer and site in _OF_OWN_ROW and not set(read) & set(positions):
        yield Remark(
            "warning", axis, f"{site} of the last layer reaches its own position alone, and the metric reads {reads}: every "
            "effect is 0"
        )  # fmt: skip
