"""Pairs: a run to patch and a run to patch from, with the metric between them; and what a grid over them asks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

from torch import Tensor

from gemmascope.arguments import finite_number, one_of, shown
from gemmascope.edits.call_text import metric_text
from gemmascope.edits.edit import Edit
from gemmascope.edits.places import first_difference
from gemmascope.edits.sources import MEANS
from gemmascope.edits.trace_protocol import is_trace
from gemmascope.errors import SweepError
from gemmascope.model.model import Model
from gemmascope.model.prompts import as_prompts, is_many, numbered
from gemmascope.run.metric import Metric, bind_metric, measure
from gemmascope.run.trace import Trace, trace
from gemmascope.sweeps.digest import Part, digest, metric_parts, run_parts, trace_parts
from gemmascope.sweeps.grid import CellEdits, Grid
from gemmascope.sweeps.remarks import against_itself
from gemmascope.sweeps.result import SweepMetadata
from gemmascope.sweeps.sources import ConstantValue, MeanValues, ValuesFromPass, ValuesFromTrace, ValueSource
from gemmascope.sweeps.variants import BaseRun, SourceRun

INTO = ("corrupt", "clean")


@dataclass(frozen=True)
class Ablation:
    """What is written where nothing is patched: a number, or a mean ("mean", "mean_by_pos") over reference traces."""

    value: float | str
    reference: tuple[Trace, ...] = ()

    @classmethod
    def of(cls, value: Any, reference: tuple[Trace, ...]) -> Ablation | None:
        """An ablation as it was given to a sweep; None for none. SweepError for what cannot be one."""
        is_mean = isinstance(value, str) and value in MEANS
        if reference and not is_mean:
            raise SweepError(f"a reference is only for ablate='mean' or 'mean_by_pos'; given ablate={shown(value)}")
        if value is None or is_mean:
            return None if value is None else cls(value, reference)
        try:
            return cls(finite_number(value, "ablate", error=SweepError))
        except SweepError as error:
            raise SweepError(f"ablate is a finite number, 'mean' or 'mean_by_pos'; given {shown(value)}") from error

    def supply(self, grid: Grid, model: Model, ids: Tensor) -> ValueSource:
        """What gives the cells their edits in a run of these ids."""
        if isinstance(self.value, str):
            return MeanValues(self.value, self.reference, grid.site, model, ids, len(grid.layers_at_once))
        return ConstantValue(self.value, grid.site, model, len(ids))


@dataclass(frozen=True)
class Pair:
    """A run to patch and a run to patch from, as token ids, or what to write there instead; and the metric between them.

    asked: the metric as it was given.
    """

    base: Tensor
    source: Tensor | Ablation
    metric: Metric
    asked: Any = None


@dataclass(frozen=True)
class Plan:
    """One pair's share of a question: its base run, the cells of the grid and the edits that each makes."""

    pair: Pair
    grid: Grid
    base: BaseRun
    edits: CellEdits

    @classmethod
    def of(cls, pair: Pair, grid: Grid, model: Model, edits: Sequence[Edit], *, traced: bool = False) -> Plan:
        """traced: run the source now, and keep its trace; else it is to ride along in the pass of the cells."""
        base = BaseRun(pair.base, tuple(edit.bind(model, pair.base) for edit in edits), len(pair.base) - 1)
        supply: ValueSource
        if isinstance(pair.source, Ablation):
            supply = pair.source.supply(grid, model, pair.base)
        elif traced:
            supply = ValuesFromTrace(trace(pair.source, model=model), grid.site, len(grid.layers_at_once))
        else:
            supply = ValuesFromPass()
        return cls(pair, grid, base, CellEdits(grid, model, supply))

    @property
    def n_cells(self) -> int:
        """How many cells can have a value."""
        return sum(map(self.edits.can_run, self.grid.cells()))

    @property
    def source(self) -> SourceRun | None:
        """The run that must ride along for the cells to be patched from."""
        supply = self.edits.supply
        if not isinstance(supply, ValuesFromPass):
            return None
        assert isinstance(self.pair.source, Tensor)
        return SourceRun(self.pair.source, self.grid.site.name, supply.feed)

    def traced_metric(self) -> float:
        """The metric of a traced source; NaN for an ablation."""
        supply = self.edits.supply
        return (
            measure(self.pair.metric, supply.trace.next_logits[None])[0].item()
            if isinstance(supply, ValuesFromTrace)
            else nan
        )


def question_of(
    plans: Sequence[Plan],
    metric: Any,
    into: str,
    code: str,
    model: Model,
    n_cells: int,
    estimate: str | None = None,
    said: str | None = None,
) -> SweepMetadata:
    """What the plans ask, as data. n_cells: how many cells can have a value. said: what else tells it from another.

    SweepError for grids of different shapes.
    """
    shapes = {plan.grid.shape for plan in plans}
    if len(shapes) > 1:
        raise SweepError(
            f"the pairs give grids of different shapes, {sorted(shapes)}: use prompts of one length, or leave pos out of by"
        )
    first = plans[0]
    return SweepMetadata(
        model=model.name,
        fingerprint=model.fingerprint,
        kinds=list(model.config.kinds),
        tokens=model.texts(first.pair.base),
        site=first.grid.site.name,
        axes=first.grid.axes,
        n_cells=n_cells,
        metric=metric_text(metric),
        into=into,
        has_source=isinstance(first.pair.source, Tensor),
        code=code,
        digest=digest([*_parts(plans, metric), *([] if said is None else [said])]),
        estimate=estimate,
    )


def _parts(plans: Sequence[Plan], metric: Any) -> Iterator[Part]:
    """What went in and the code does not say: token ids, what edits write, the runs that a mean is over, functions."""
    yield from metric_parts(metric)
    for plan in plans:
        source = plan.pair.source
        yield from run_parts(plan.pair.base, plan.base.edits)
        if isinstance(source, Tensor):
            yield from run_parts(source, ())
        else:
            for one in source.reference:
                yield from trace_parts(one)


def pairs_of(clean: Any, corrupt: Any, metric: Any, into: str, ablation: Ablation | None, model: Model) -> list[Pair]:
    """The runs of each pair as token ids. Every mistake in the call that can be found here is."""
    one_of(into, "into, the run to patch,", INTO, error=SweepError)
    if (corrupt is None) != (ablation is not None):
        raise SweepError("give a corrupted prompt to patch from, or ablate=VALUE with corrupt=None: one of the two")
    many = is_many(clean)
    if corrupt is not None and is_many(corrupt) != many:
        raise SweepError("give clean and corrupt as two prompts, or as two lists of prompts")
    cleans = list(clean) if many else [clean]
    corrupts = [None] * len(cleans) if corrupt is None else list(corrupt) if many else [corrupt]
    metrics = list(metric) if isinstance(metric, (list, tuple)) else [metric] * len(cleans)
    if not len(cleans) == len(corrupts) == len(metrics):
        raise SweepError(f"there are {len(cleans)} clean prompts, {len(corrupts)} corrupted ones and {len(metrics)} metrics")
    found = []
    for number, (one, other, asked) in enumerate(zip(cleans, corrupts, metrics, strict=True)):
        with numbered("pair", number, len(cleans)):
            found.append(_pair(one, other, asked, into, ablation, model))
    return found


def prompts_of(clean: Any, corrupt: Any) -> tuple[Any, Any]:
    """The two prompts, or two lists of them, as given; columns, arrays of texts and generators become lists."""
    _refuse_traces("clean", clean)
    _refuse_traces("corrupt", corrupt)
    return as_prompts(clean), None if corrupt is None else as_prompts(corrupt)


def _refuse_traces(name: str, given: Any) -> None:
    """SweepError for a trace, or a list that holds one, where a prompt is to be run."""
    listed = list(given) if isinstance(given, (list, tuple)) else [given]
    if found := [one for one in listed if hasattr(one, "stream") and hasattr(one, "ids")]:
        holds = "is" if given is found[0] else "holds"
        edited = "; edits= are made to the run that is patched" if found[0].edits else ""
        kind = "trace" if is_trace(found[0]) else type(found[0]).__name__.lower()
        raise SweepError(
            f"{name} {holds} a {kind}, and a sweep runs its prompts itself: give the prompt, or the {kind}'s .ids{edited}"
        )


def _pair(clean: Any, corrupt: Any, asked: Any, into: str, ablation: Ablation | None, model: Model) -> Pair:
    if said := against_itself(asked, model):
        raise SweepError(said)
    metric, clean_ids = bind_metric(asked, model), model.ids(clean)
    if ablation is not None:
        return Pair(clean_ids, ablation, metric, asked)
    corrupt_ids = model.ids(corrupt)
    if len(clean_ids) != len(corrupt_ids):
        raise SweepError(f"the positions of the two prompts must match: {first_difference(model, clean_ids, corrupt_ids)}")
    base, source = (corrupt_ids, clean_ids) if into == "corrupt" else (clean_ids, corrupt_ids)
    return Pair(base, source, metric, asked)
