"""The classes of metrics that gs.logit_diff and the like return."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from gemmascope.edits.call_text import name_of, plain, prompt_text
from gemmascope.edits.places import first_difference
from gemmascope.edits.sources import is_trace, not_a_trace
from gemmascope.errors import MetricError
from gemmascope.legible import prints_legibly
from gemmascope.model.maths import kl_divergence
from gemmascope.model.model import Model, Prompt
from gemmascope.run.bound_metric import BoundMetric, RowMetric, RunMetric, logits_of_trace
from gemmascope.run.logits import LOGIT_BYTES
from gemmascope.run.losses import loss_metric
from gemmascope.run.metric import Answer, Metric, answer_ids
from gemmascope.sweeps.measures.positioned import Positioned, constant_rule, index_of, mean_over_positions
from gemmascope.sweeps.remarks import same_answers_text

if TYPE_CHECKING:
    from gemmascope.run.trace import Trace

# How large the log-probabilities of gs.kl_from's run may be to be kept; above it they are computed again with every part.
_KEPT_BYTES = 8 * LOGIT_BYTES


@dataclass(frozen=True, repr=False)
class AnswerMetric(Positioned):
    """A metric of one or two answers. name: the function that makes it. rule: (logits, answers, against) -> [run]."""

    name: str
    rule: Callable[[Tensor, Tensor, Tensor], Tensor]
    answers: tuple[Answer, ...]

    @property
    def label(self) -> str:
        return self.name

    def bind(self, model: Model) -> Metric:
        """The metric with its answers as token ids of the model: logits [run, vocab], with pos [run, pos, vocab], -> [run].

        PromptError for an answer that is not one token, MetricError for an answer held against itself.
        """
        return mean_over_positions(self._rule(model), self.pos)

    def at(self, model: Model, ids: Tensor) -> BoundMetric:
        """The metric of one prompt; the mean over its positions."""
        return constant_rule(self.positions(model, ids), self._rule(model))

    def _rule(self, model: Model) -> Metric:
        listed = [answer_ids(answer, model) for answer in self.answers]
        if len(listed) > 1 and set(listed[0]) == set(listed[1]):
            raise MetricError(same_answers_text(self.answers[0]))
        ids = [index_of(one, model) for one in listed]
        against = ids[1] if len(ids) > 1 else ids[0][:0]
        return lambda logits: self.rule(logits, ids[0], against)

    @prints_legibly
    def __repr__(self) -> str:
        return f"gs.{self.name}({', '.join(repr(plain(answer)) for answer in self.answers)}{self.pos_text()})"


@dataclass(frozen=True, repr=False)
class KLFrom(Positioned):
    """The metric that gs.kl_from returns."""

    trace: Trace

    @property
    def label(self) -> str:
        return "kl_from"

    def bind(self, model: Model) -> Metric:
        """The metric for a model with the trace's vocabulary. MetricError for another, and for what is no trace."""
        self._require_fit(model)
        positions = self.positions(self.trace.model, self.trace.ids)
        reference = self._log_probs(positions).to(model.device)
        if self.pos is None:
            return lambda logits: kl_divergence(reference, logits.log_softmax(-1))
        return lambda logits: kl_divergence(reference, logits.log_softmax(-1)).mean(-1)

    def at(self, model: Model, ids: Tensor) -> BoundMetric:
        """The metric of one prompt. MetricError for a prompt that does not have the positions that the trace has."""
        self._require_fit(model)
        positions, theirs = self.positions(model, ids), self.positions(self.trace.model, self.trace.ids)
        if len(positions) != len(theirs):
            raise MetricError(
                f"{len(positions)} positions of the run and {len(theirs)} of the trace of gs.kl_from cannot be compared: "
                f"{first_difference(model, ids, self.trace.ids)}"
            )
        if len(theirs) * model.config.vocab_size * 4 > _KEPT_BYTES:

            def reference(at: Tensor) -> Tensor:
                return self._log_probs([theirs[i] for i in at]).to(model.device)
        else:
            kept = self._log_probs(theirs).to(model.device)

            def reference(at: Tensor) -> Tensor:
                return kept[at]

        return RowMetric(positions, lambda logits, at: kl_divergence(reference(at), logits.log_softmax(-1)))

    def _require_fit(self, model: Model) -> None:
        if not is_trace(self.trace):
            raise MetricError(f"gs.kl_from takes a trace; given {not_a_trace(self.trace)}")
        if model.config.vocab_size != self.trace.model.config.vocab_size:
            theirs, ours = self.trace.model.config.vocab_size, model.config.vocab_size
            raise MetricError(f"the trace has a vocabulary of {theirs} tokens and {model.name!r} one of {ours}")

    def _log_probs(self, positions: tuple[int, ...] | list[int]) -> Tensor:
        return logits_of_trace(self.trace, positions).log_softmax(-1)

    @prints_legibly
    def __repr__(self) -> str:
        if not is_trace(self.trace):
            return f"gs.kl_from(<{type(self.trace).__name__}>{self.pos_text()})"
        run = f"gs.trace({self.trace.ids.tolist()}, model=model, edits={list(self.trace.edits)!r})"
        return f"gs.kl_from({run}{self.pos_text()})"


@dataclass(frozen=True, repr=False)
class Loss(Positioned):
    """The metric that gs.loss returns."""

    text: Prompt | None = None

    @property
    def label(self) -> str:
        return "loss"

    def bind(self, model: Model) -> Metric:
        """MetricError: without a prompt the tokens to predict, or their positions, are not known."""
        raise MetricError("gs.loss reads the tokens of a run: call it on a trace, or give it to gs.sweep and the like")

    def at(self, model: Model, ids: Tensor) -> BoundMetric:
        """The metric of one prompt, or MetricError for a text of another length and for positions without a next token."""
        return loss_metric(model, ids, self.text, self.pos)

    @prints_legibly
    def __repr__(self) -> str:
        text = "" if self.text is None else prompt_text(self.text)
        return f"gs.loss({text}{self.pos_text() if text else self.pos_text()[2:]})"


@dataclass(frozen=True, repr=False)
class FunctionMetric(Positioned):
    """The metric that gs.metric returns: a user's function of the logits at some positions."""

    function: Callable[[Tensor], Tensor]
    name: str | None = None

    @property
    def label(self) -> str:
        return self.name or name_of(self.function)

    def bind(self, model: Model) -> Metric:
        """The function itself: logits [run, pos, vocab] -> [run]."""
        return self.function

    def at(self, model: Model, ids: Tensor) -> BoundMetric:
        """The metric of one prompt."""
        return RunMetric(self.positions(model, ids), self.function)

    @prints_legibly
    def __repr__(self) -> str:
        name = "" if self.name is None else f", name={self.name!r}"
        return f"gs.metric({name_of(self.function)}{self.pos_text()}{name})"
