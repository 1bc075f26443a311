"""Metrics: soft-capped logits of one position, [run, vocab], to one number per run.

Each takes one answer or several: a text that is a single token (" Mary", with its leading space), or a token id. Bound to
a model, its answers are looked up; any function of that shape is a metric as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from gemmascope.edits.call_text import plain
from gemmascope.edits.sources import is_trace, not_a_trace
from gemmascope.errors import MetricError
from gemmascope.legible import legibly
from gemmascope.model.model import Model
from gemmascope.run.metric import Answer, Metric, answer_ids
from gemmascope.sweeps.remarks import same_answers_text

if TYPE_CHECKING:
    from gemmascope.run.trace import Trace

__all__ = [
    "Answer",
    "AnswerMetric",
    "KLFrom",
    "answer_ids",
    "answer_logprob",
    "answer_prob",
    "kl_from",
    "logit_diff",
    "rank",
]

Logits = Float[Tensor, "run vocab"]
PerRun = Float[Tensor, " run"]


class BindableMetric(Protocol):
    """A metric that looks its answers up in a model: what gs.logit_diff and the others return."""

    def bind(self, model: Model) -> Metric: ...


MetricLike = Metric | BindableMetric


@dataclass(frozen=True, repr=False)
class AnswerMetric:
    """A metric about given answers. name: the function that makes it. rule: (logits, answers, against) -> [run]."""

    name: str
    rule: Callable[[Tensor, Tensor, Tensor], Tensor]
    answers: tuple[Answer, ...]

    def bind(self, model: Model) -> Callable[[Logits], PerRun]:
        """The metric with its answers as token ids.

        PromptError for an answer that is not one token of the model, MetricError for an answer against itself.
        """
        listed = [answer_ids(answer, model) for answer in self.answers]
        if len(listed) > 1 and set(listed[0]) == set(listed[1]):
            raise MetricError(same_answers_text(self.answers[0]))
        ids = [torch.tensor(one, device=model.device) for one in listed]
        against = ids[1] if len(ids) > 1 else ids[0][:0]
        return lambda logits: self.rule(logits, ids[0], against)

    @legibly
    def __repr__(self) -> str:
        return f"gs.{self.name}({', '.join(repr(plain(answer)) for answer in self.answers)})"


def logit_diff(answer: Answer, against: Answer) -> AnswerMetric:
    """Soft-capped logit of the answer less that of the other: means over several. Positive where the answer wins."""
    return AnswerMetric("logit_diff", _logit_diff, (answer, against))


def answer_prob(answer: Answer) -> AnswerMetric:
    """Probability of the answer, between 0 and 1: the sum over several."""
    return AnswerMetric("answer_prob", _answer_prob, (answer,))


def answer_logprob(answer: Answer) -> AnswerMetric:
    """Natural logarithm of the answer's probability, in nats: of the sum over several."""
    return AnswerMetric("answer_logprob", _answer_logprob, (answer,))


def rank(answer: Answer) -> AnswerMetric:
    """How many tokens are likelier than the answer: 0 where it is the likeliest. Of several answers, the best one's."""
    return AnswerMetric("rank", _rank, (answer,))


# Functions of the module, since a metric is pickled by the name of its rule.


def _logit_diff(logits: Tensor, answers: Tensor, against: Tensor) -> Tensor:
    return logits[:, answers].mean(-1) - logits[:, against].mean(-1)


def _answer_prob(logits: Tensor, answers: Tensor, _: Tensor) -> Tensor:
    return logits.softmax(-1)[:, answers].sum(-1)


def _answer_logprob(logits: Tensor, answers: Tensor, _: Tensor) -> Tensor:
    return logits.log_softmax(-1)[:, answers].logsumexp(-1)


def _rank(logits: Tensor, answers: Tensor, _: Tensor) -> Tensor:
    return (logits > logits[:, answers].amax(-1, keepdim=True)).sum(-1).float()


@dataclass(frozen=True, repr=False)
class KLFrom:
    """The metric that gs.kl_from makes."""

    trace: Trace

    def bind(self, model: Model) -> Callable[[Logits], PerRun]:
        """The metric, for a model with the vocabulary of the trace's. MetricError for another."""
        if not is_trace(self.trace):
            raise MetricError(f"gs.kl_from takes a trace; given {not_a_trace(self.trace)}")
        if model.config.vocab_size != self.trace.model.config.vocab_size:
            theirs, ours = self.trace.model.config.vocab_size, model.config.vocab_size
            raise MetricError(f"the trace has a vocabulary of {theirs} tokens and {model.name!r} one of {ours}")
        reference = self.trace.next_logits.log_softmax(-1).to(model.device)
        return lambda logits: (reference.exp() * (reference - logits.log_softmax(-1))).sum(-1)

    @legibly
    def __repr__(self) -> str:
        if not is_trace(self.trace):
            return f"gs.kl_from(<{type(self.trace).__name__}>)"
        return f"gs.kl_from(gs.trace({self.trace.ids.tolist()}, model=model, edits={list(self.trace.edits)!r}))"


def kl_from(trace: Trace) -> KLFrom:
    """KL divergence, in nats, of a run's next-token distribution from that of a trace: 0 where they agree."""
    return KLFrom(trace)
