"""EdgePair: the run that is patched, what stands in its senders' places, the metric, and the spans of positions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import nan

import torch
from torch import Tensor

from gemmascope.circuits.edges.contributions import Contributions, check_ablation, of_ablation, of_run
from gemmascope.circuits.edges.spans import Spans, require_same, spans_of
from gemmascope.errors import SweepError, warn
from gemmascope.model.model import Model
from gemmascope.run.bound_metric import BoundMetric, measure_trace, try_metric
from gemmascope.run.trace import Trace
from gemmascope.run.tracing import run_traced
from gemmascope.sweeps.pairs import listed_pairs, runs_of
from gemmascope.sweeps.remarks import Remark, metric_remarks, numbered, pair_remarks, prompt_remarks, raise_or_warn
from gemmascope.sweeps.sources import Ablation


@dataclass(frozen=True, eq=False)
class EdgePair:
    """One pair of prompts, or one prompt and an ablation. What takes a run is computed when it is first asked for."""

    model: Model
    ids: Tensor
    source_ids: Tensor | None
    ablation: Ablation | None
    metric: BoundMetric
    spans: Spans

    @cached_property
    def base(self) -> Trace:
        """The run that is patched."""
        return run_traced(self.model, [self.ids], [()])[0]

    @cached_property
    def _source(self) -> Trace:
        assert self.source_ids is not None
        return run_traced(self.model, [self.source_ids], [()])[0]

    @cached_property
    def of_base(self) -> Contributions:
        return of_run(self.base)

    @cached_property
    def of_source(self) -> Contributions:
        """What stands in the senders' places."""
        if self.source_ids is not None:
            return of_run(self._source)
        assert self.ablation is not None
        return of_ablation(self.ablation, self.model, self.ids)

    @cached_property
    def change(self) -> Tensor:
        """What patching a sender changes of its output, [sender, pos, d_model], float32."""
        return self.of_source.written - self.of_base.written

    @cached_property
    def members(self) -> Tensor:
        """Which positions each span holds, bool [span, pos]."""
        return torch.from_numpy(self.spans.members(len(self.ids))).to(self.model.device)

    def release(self) -> None:
        """Forget what the runs computed, whose memory grows with the senders."""
        for name in ("base", "_source", "of_base", "of_source", "change", "members"):
            vars(self).pop(name, None)

    def base_metric(self) -> float:
        return measure_trace(self.metric, self.base)

    def source_metric(self) -> float:
        """The metric of the run that is patched from; NaN for an ablation."""
        return nan if self.source_ids is None else measure_trace(self.metric, self._source)


@dataclass(frozen=True)
class EdgeQuestion:
    """What a call asks: the arguments that edge scores and faithfulness share. pairs(): those of the call, checked."""

    clean: object
    corrupt: object
    metric: object
    into: str
    ablation: Ablation | None
    positions: object
    model: Model

    @classmethod
    def of(
        cls, prompts: tuple[object, object], metric: object, into: str, ablation: Ablation | None, positions: object,
        model: Model,
    ) -> EdgeQuestion:  # fmt: skip
        return cls(*listed_pairs(*prompts), metric, into, ablation, positions, model)

    def pairs(self) -> list[EdgePair]:
        """The pairs, checked; warns of likely mistakes. Nothing has run yet."""
        model = self.model
        if model.edits:
            raise SweepError(
                "edges are those of a model without lasting edits, whose senders add up to the stream: give the model that "
                "model.edited was called on, or take gs.path_sweep"
            )
        if model.dtype != torch.float32:
            warn(
                f"the model runs in {str(model.dtype).removeprefix('torch.')}, whose rounding drowns small edges: "
                "load it in float32 for those"
            )
        found = []
        runs = runs_of(self.clean, self.corrupt, self.metric, self.into, self.ablation is not None, model)
        for ids, source_ids, metrics, _ in runs:
            if len(metrics) != 1:
                raise SweepError("edges are scored by one metric at a time, or by one for each pair: give one")
            if self.ablation is not None:
                check_ablation(self.ablation, model, ids)
            spans = spans_of(self.positions, model, ids)
            found.append(EdgePair(model, ids, source_ids, self.ablation, metrics[0], spans))
        require_same([pair.spans for pair in found])
        for pair in found:
            try_metric(pair.metric, model, pair.ids)
        remarks = [list(self._remarks(pair, metric)) for pair, (_, _, _, (metric,)) in zip(found, runs, strict=True)]
        raise_or_warn(numbered("pair", remarks), SweepError)
        return found

    def _remarks(self, pair: EdgePair, metric: object) -> Iterator[Remark]:
        yield from prompt_remarks("prompt", pair.ids, self.model)
        if pair.source_ids is not None:
            yield from pair_remarks(pair.ids, pair.source_ids)
        yield from metric_remarks(metric, pair.ids, self.model)
