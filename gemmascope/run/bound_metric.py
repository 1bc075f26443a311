"""Metrics of one prompt, with their answers and positions looked up, and their numbers from the stream or from a trace.

A metric reads the logits at some positions. Rows are unembedded at those alone, a few at a time, once for several metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from gemmascope.errors import MetricError, warn
from gemmascope.model.finite import valid_logits
from gemmascope.model.layout import Layout
from gemmascope.model.model import Model
from gemmascope.run.finite import require_logits
from gemmascope.run.logits import rows_to_unembed
from gemmascope.run.metric import Metric, bind_metric, measure
from gemmascope.run.recorded import RecordedRun
from gemmascope.values import chunks, in_float64


@dataclass(frozen=True, eq=False)
class RowMetric:
    """A number for each of some positions; the metric is their mean.

    rule: (logits [row, vocab], which of the positions each row is at [row]) -> [row].
    """

    positions: tuple[int, ...]
    rule: Callable[[Tensor, Tensor], Tensor]

    def at(self, part: slice) -> RowMetric:
        """The metric of some of the positions."""
        return RowMetric(self.positions[part], lambda logits, at: self.rule(logits, at + (part.start or 0)))

    def of_rows(self, logits: Tensor, at: Tensor) -> Tensor:
        """The number of each row, float64 [row]."""
        return measure(lambda x: self.rule(x, at), logits)


@dataclass(frozen=True, eq=False)
class RunMetric:
    """A function of the logits at some positions together: [run, pos, vocab] -> [run]."""

    positions: tuple[int, ...]
    function: Metric


BoundMetric = RowMetric | RunMetric


@runtime_checkable
class PositionedMetric(Protocol):
    """A metric that looks its positions up in a prompt: what the metrics of gs are."""

    def at(self, model: Model, ids: Tensor) -> BoundMetric: ...


# (rows of the stream [run, pos, d_model], their positions) -> logits [run, pos, vocab].
Unembed = Callable[[Tensor, Sequence[int]], Tensor]


def bind_to_prompt(metric: object, model: Model, ids: Tensor) -> BoundMetric:
    """A metric with its answers and positions looked up in a prompt. A function without positions reads the last one.

    MetricError if it is no metric; PromptError or SiteError for an answer or a position that does not exist.
    """
    if isinstance(metric, PositionedMetric):
        return metric.at(model, ids)
    function = bind_metric(metric, model)
    return RowMetric((len(ids) - 1,), lambda logits, _: function(logits))


def read_positions(metrics: Sequence[BoundMetric]) -> tuple[int, ...]:
    """The positions that any of the metrics reads, in order."""
    return tuple(sorted({pos for metric in metrics for pos in metric.positions}))


def measure_stream(
    metrics: Sequence[BoundMetric], positions: Sequence[int], rows: Tensor, unembed: Unembed, step: int
) -> Tensor:
    """The metrics of some runs, float64 [metric, run].

    rows: the stream after the last layer at these positions, [run, pos, d_model]. step: how many rows to unembed at once.
    """
    n_runs, n_pos = rows.shape[:2]
    by_runs = []
    for runs in chunks(n_runs, max(1, step // n_pos)):
        parts = [slice(0, n_pos)] if any(isinstance(one, RunMetric) for one in metrics) else list(chunks(n_pos, step))
        values: list[list[Tensor]] = [[] for _ in metrics]  # a part each, [run, pos]
        for part in parts:
            logits = unembed(rows[runs, part], positions[part])
            for of_metric, metric in zip(values, metrics, strict=True):
                of_metric.extend(_in_part(metric, logits, positions[part]))
        by_runs.append(torch.stack([torch.cat(of_metric, 1).mean(1) for of_metric in values]))
    return torch.cat(by_runs, 1)


def _in_part(metric: BoundMetric, logits: Tensor, positions: Sequence[int]) -> Iterator[Tensor]:
    """What a metric gives of these logits, [run, pos]; nothing if it reads none of the positions."""
    at = [i for i, pos in enumerate(metric.positions) if pos in positions]
    if not at:
        return
    local = [positions.index(metric.positions[i]) for i in at]
    read = logits if local == list(range(len(positions))) else logits[:, local]
    if isinstance(metric, RunMetric):
        yield measure(metric.function, read)[:, None]
        return
    numbers = torch.tensor(at, device=logits.device).repeat(len(logits))
    yield metric.of_rows(read.flatten(0, 1), numbers).reshape(len(logits), len(at))


# -- of a trace --


def measure_trace(metric: BoundMetric, trace: RecordedRun) -> float:
    """The metric of a recorded run."""

    def unembed(_: Tensor, positions: Sequence[int]) -> Tensor:
        return logits_of_trace(trace, positions)[None]

    rows = trace.residuals[-1][list(metric.positions)][None]
    with torch.no_grad():
        return measure_stream([metric], metric.positions, rows, unembed, _step(trace))[0, 0].item()


def rows_of_trace(metric: RowMetric, trace: RecordedRun) -> Tensor:
    """What a metric gives at each of its positions in a recorded run, float64 [pos]."""
    with torch.no_grad():
        parts = [
            metric.of_rows(logits_of_trace(trace, metric.positions[part]), torch.arange(part.start, part.stop))
            for part in chunks(len(metric.positions), _step(trace))
        ]
    return torch.cat(parts)


def logits_of_trace(trace: RecordedRun, positions: Sequence[int]) -> Tensor:
    """The logits of some positions, [pos, vocab], with the edits that come after the layers."""
    if any(edit.address.is_after_layers for edit in trace.bound_edits):
        return trace["logits"][list(positions)]
    trace.require_weights(None)
    with torch.no_grad():
        rows = trace.residuals[-1][list(positions)]
        logits = trace.model.network.unembed(rows)
        if not valid_logits(logits):
            for pos, of_pos, row in zip(positions, logits, rows, strict=True):
                require_logits(trace.model, trace.ids, of_pos, row, pos, trace.bound_edits)
        return logits


def _step(trace: RecordedRun) -> int:
    """How many rows to unembed at once: metrics compute copies of the logits."""
    return rows_to_unembed(trace.model, bytes_per_logit=16)


# -- before a run --

# How far the number of a run may move with the other runs of its batch, relative to its size: rounding.
_ROUNDING = 1e-3


def try_metric(metric: BoundMetric, model: Model, ids: Tensor) -> None:
    """MetricError, before any layer runs, for a metric that does not return one number per run or that mixes runs.

    It is tried on stand-in logits of two runs, unembedded from the embeddings of the prompt's tokens at the positions and
    from those of other tokens.
    """
    positions = metric.positions[:1] if isinstance(metric, RowMetric) else metric.positions
    tokens = ids[list(positions)]
    pair = torch.cat([tokens, torch.stack([_other_token(ids, token, model) for token in tokens])])
    with torch.no_grad():
        rows = model.network.embed(pair, Layout.of_lengths([len(pair)], model.device))
        logits = model.network.unembed(rows)
        if isinstance(metric, RunMetric):
            function, logits = metric.function, logits.reshape(2, len(tokens), -1)
        else:
            function = _at_first(metric)
        together = measure(function, logits)
        alone = torch.cat([_alone(function, row) for row in torch.split(logits, 1)])
        if _are_close(together, alone):
            return
        if not _are_close(together, measure(function, logits)):
            warn("the metric gives other numbers for the same logits: effects would be those of its noise, too")
            return
    how = "row of the logits: write x[:, i] and reduce over the last axis"
    if isinstance(metric, RunMetric):
        how = "logits [pos, vocab]: write x[:, i] and reduce over the axes after the first"
    raise MetricError(
        f"the metric mixes runs: for two runs it gives {together.tolist()}, for each by itself {alone.tolist()}. A metric "
        f"measures each run by itself, from its own {how}"
    )


def _at_first(metric: RowMetric) -> Metric:
    return lambda logits: metric.rule(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


def _alone(metric: Metric, row: Tensor) -> Tensor:
    try:
        return measure(metric, row)
    except MetricError as error:
        if str(error) != "the metric returned NaN":
            raise
        return in_float64(row.new_full((1,), torch.nan, dtype=torch.float32))


def _are_close(one: Tensor, other: Tensor) -> bool:
    size = float(torch.cat((one, other)).nan_to_num(0.0, 0.0, 0.0).abs().max())
    return torch.allclose(one, other.to(one.device), rtol=_ROUNDING, atol=_ROUNDING * min(size, 1e-3))


def _other_token(ids: Tensor, token: Tensor, model: Model) -> Tensor:
    """A token that differs from one: the prompt's last such token if it has one, else from the vocabulary."""
    others = ids[ids != token]
    return others[-1] if len(others) else (token + 1) % model.config.vocab_size
