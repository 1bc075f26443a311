"""What all metrics of gs share: the positions whose logits they read, and a call on a trace."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

import torch
from torch import Tensor

from gemmascope.edits.call_text import plain
from gemmascope.edits.places import Pos
from gemmascope.edits.sources import is_trace, not_a_trace
from gemmascope.errors import MetricError
from gemmascope.model.model import Model
from gemmascope.model.modes import computes
from gemmascope.run.bound_metric import BoundMetric, RowMetric, measure_trace
from gemmascope.run.metric import Metric, find_read_positions, listed_positions
from gemmascope.run.recorded import RecordedRun

if TYPE_CHECKING:
    from gemmascope.run.trace import Trace


@dataclass(frozen=True, repr=False, kw_only=True)
class Positioned(ABC):
    """A metric of gs. pos: the positions whose logits it reads; None for those that it reads by default."""

    pos: Pos = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "pos", listed_positions(self.pos))

    @property
    @abstractmethod
    def label(self) -> str:
        """What the metric is called where several are measured."""

    @abstractmethod
    def at(self, model: Model, ids: Tensor) -> BoundMetric:
        """The metric of one prompt: its answers looked up in the model, its positions in the prompt.

        PromptError or SiteError for an answer or a position that does not exist; MetricError for what does not fit.
        """

    @overload
    def __call__(self, trace: Trace) -> float: ...
    @overload
    def __call__(self, trace: Sequence[Trace]) -> list[float]: ...
    @computes
    def __call__(self, trace: Trace | Sequence[Trace]) -> float | list[float]:
        """The metric of a run, or of each of several. MetricError for what is no trace."""
        if isinstance(trace, (list, tuple)):
            return [self(one) for one in trace]
        if not is_trace(trace):
            raise MetricError(
                f"a metric is called on a trace, or on a list of them; given {not_a_trace(trace)}. Of logits: "
                "metric.bind(model)(logits)"
            )
        run: RecordedRun = trace  # type: ignore[assignment]
        return measure_trace(self.at(run.model, run.ids), run)

    def positions(self, model: Model, ids: Tensor) -> tuple[int, ...]:
        """The positions that pos selects in a prompt, in the user's order; by default the last. SiteError for another."""
        return (len(ids) - 1,) if self.pos is None else find_read_positions(self.pos, model, ids)

    def pos_text(self) -> str:
        """The argument pos as Python code: ", pos=5"; empty by default."""
        pos = list(self.pos) if isinstance(self.pos, tuple) else self.pos
        return "" if pos is None else f", pos={plain(pos)!r}"


def mean_over_positions(rule: Callable[[Tensor], Tensor], pos: Pos) -> Metric:
    """A rule of rows, [row, vocab] -> [row], as a function of logits: [run, vocab], or with positions [run, pos, vocab]."""
    if pos is None:
        return rule

    def mean(logits: Tensor) -> Tensor:
        if logits.dim() != 3:
            raise MetricError(f"a metric with pos= takes logits [run, pos, vocab]; given shape {tuple(logits.shape)}")
        return rule(logits.flatten(0, 1)).reshape(logits.shape[:2]).mean(1)

    return mean


def constant_rule(positions: tuple[int, ...], rule: Metric) -> RowMetric:
    """A metric whose rule is the same at every position."""
    return RowMetric(positions, lambda logits, _: rule(logits))


def index_of(numbers: Sequence[int], model: Model) -> Tensor:
    return torch.tensor(list(numbers), device=model.device)
