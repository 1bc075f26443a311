"""Metrics: from the soft-capped logits of one position, [run, vocab], to one number per run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from gemmascope.edits.call_text import plain
from gemmascope.edits.sources import is_trace, not_a_trace
from gemmascope.errors import MetricError
from gemmascope.legible import prints_legibly
from gemmascope.model.model import Model
from gemmascope.run.metric import Answer, BindableMetric, Metric, answer_ids
from gemmascope.run.metric_names import METRICS
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


MetricLike = Metric | BindableMetric


@dataclass(frozen=True, repr=False)
class AnswerMetric:
    """A metric of one or two answers. name: the function that makes it. rule: (logits, answers, against) -> [run]."""

    name: str
    rule: Callable[[Tensor, Tensor, Tensor], Tensor]
    answers: tuple[Answer, ...]

    def bind(self, model: Model) -> Callable[[Logits], PerRun]:
        """The metric with its answers as token ids of the model.

        PromptError for an answer that is not one token, MetricError for an answer held against itself.
        """
        listed = [answer_ids(answer, model) for answer in self.answers]
        if len(listed) > 1 and set(listed[0]) == set(listed[1]):
            raise MetricError(same_answers_text(self.answers[0]))
        ids = [torch.tensor(one, device=model.device) for one in listed]
        against = ids[1] if len(ids) > 1 else ids[0][:0]
        return lambda logits: self.rule(logits, ids[0], against)

    @prints_legibly
    def __repr__(self) -> str:
        return f"gs.{self.name}({', '.join(repr(plain(answer)) for answer in self.answers)})"


def logit_diff(answer: Answer, against: Answer) -> AnswerMetric:
    """The metric that subtracts one answer's soft-capped logit from another's: positive where `answer` wins.

    Args:
        answer: The right answer: a text that is one token, with its leading space (" Mary"), or a token id, or a list
            of them, whose mean logit is taken.
        against: The wrong answer, written in the same way.

    Returns:
        A metric for gs.sweep, gs.attribute and the like: soft-capped logits [run, vocab] -> [run], in logits. The
        answers are looked up when it meets a model: PromptError for a text that is not one token, MetricError for two
        equal answers.

    Examples:
        >>> metric = gs.logit_diff(" Mary", " John")
        >>> metric
        gs.logit_diff(' Mary', ' John')
        >>> trace = gs.trace("When Mary and John went to the store, John gave a drink to")
        >>> round(metric.bind(trace.model)(trace.next_logits[None]).item(), 1)
        11.9
    """
    return named_metric("logit_diff", answer, against)


def answer_prob(answer: Answer) -> AnswerMetric:
    """The metric that takes the answer's probability, from 0 to 1.

    Args:
        answer: A text that is one token, with its leading space, or a token id, or a list of them, whose probabilities
            are added.

    Returns:
        A metric for gs.sweep, gs.attribute and the like: soft-capped logits [run, vocab] -> [run].

    Examples:
        >>> metric = gs.answer_prob(" Mary")
        >>> trace = gs.trace("When Mary and John went to the store, John gave a drink to")
        >>> round(metric.bind(trace.model)(trace.next_logits[None]).item(), 2)
        1.0
    """
    return named_metric("answer_prob", answer)


def answer_logprob(answer: Answer) -> AnswerMetric:
    """The metric that takes the natural logarithm of the answer's probability, in nats: at most 0.

    Args:
        answer: A text that is one token, with its leading space, or a token id, or a list of them, whose probabilities
            are added before the logarithm.

    Returns:
        A metric for gs.sweep, gs.attribute and the like: soft-capped logits [run, vocab] -> [run].

    Examples:
        >>> metric = gs.answer_logprob(" John")
        >>> trace = gs.trace("When Mary and John went to the store, John gave a drink to")
        >>> round(metric.bind(trace.model)(trace.next_logits[None]).item(), 1)
        -11.9
    """
    return named_metric("answer_logprob", answer)


def rank(answer: Answer) -> AnswerMetric:
    """The metric that counts the tokens likelier than the answer: 0 where the answer is the likeliest.

    Args:
        answer: A text that is one token, with its leading space, or a token id, or a list of them, of which the
            likeliest counts.

    Returns:
        A metric for gs.sweep and the like: soft-capped logits [run, vocab] -> [run], whole numbers as floats. It has no
        gradient, so gs.attribute cannot use it.

    Examples:
        >>> trace = gs.trace("When Mary and John went to the store, John gave a drink to")
        >>> [gs.rank(name).bind(trace.model)(trace.next_logits[None]).item() for name in (" Mary", " John")]
        [0.0, 41.0]
    """
    return named_metric("rank", answer)


def named_metric(name: str, *answers: Answer) -> AnswerMetric:
    """The metric of a name in METRICS. Answers beyond those that it takes are left out."""
    return AnswerMetric(name, _RULES[name], answers[: METRICS[name].n_answers])


# Functions of the module, because a metric is pickled with its rule, by name.


def _logit_diff(logits: Tensor, answers: Tensor, against: Tensor) -> Tensor:
    return logits[:, answers].mean(-1) - logits[:, against].mean(-1)


def _answer_prob(logits: Tensor, answers: Tensor, _: Tensor) -> Tensor:
    return logits.softmax(-1)[:, answers].sum(-1)


def _answer_logprob(logits: Tensor, answers: Tensor, _: Tensor) -> Tensor:
    return logits.log_softmax(-1)[:, answers].logsumexp(-1)


def _rank(logits: Tensor, answers: Tensor, _: Tensor) -> Tensor:
    return (logits > logits[:, answers].amax(-1, keepdim=True)).sum(-1).float()


_RULES = {"logit_diff": _logit_diff, "answer_prob": _answer_prob, "answer_logprob": _answer_logprob, "rank": _rank}


@dataclass(frozen=True, repr=False)
class KLFrom:
    """The metric that gs.kl_from returns."""

    trace: Trace

    def bind(self, model: Model) -> Callable[[Logits], PerRun]:
        """The metric for a model with the trace's vocabulary. MetricError for another, and for what is no trace."""
        source = self.trace  # whose type a check of it would narrow
        if not is_trace(self.trace):
            raise MetricError(f"gs.kl_from takes a trace; given {not_a_trace(self.trace)}")
        if model.config.vocab_size != self.trace.model.config.vocab_size:
            theirs, ours = self.trace.model.config.vocab_size, model.config.vocab_size
            raise MetricError(f"the trace has a vocabulary of {theirs} tokens and {model.name!r} one of {ours}")
        reference = source.next_logits.log_softmax(-1).to(model.device)
        return lambda logits: (reference.exp() * (reference - logits.log_softmax(-1))).sum(-1)

    @prints_legibly
    def __repr__(self) -> str:
        if not is_trace(self.trace):
            return f"gs.kl_from(<{type(self.trace).__name__}>)"
        return f"gs.kl_from(gs.trace({self.trace.ids.tolist()}, model=model, edits={list(self.trace.edits)!r}))"


def kl_from(trace: Trace) -> KLFrom:
    """The metric that takes the KL divergence of a run's next-token distribution from that of a trace.

    It is KL(trace || run), 0 where the two agree: the sum over tokens of p (log p - log q), where p are the trace's and
    q the run's probabilities, after the soft cap, at the last position.

    Args:
        trace: The run to compare with, from gs.trace. Its model must have the vocabulary of the model that is swept.

    Returns:
        A metric for gs.sweep, gs.attribute and the like: soft-capped logits [run, vocab] -> [run], in nats.

    Examples:
        >>> trace = gs.trace("When Mary and John went to the store, John gave a drink to")
        >>> other = gs.trace("When Mary and John went to the store, Mary gave a drink to")
        >>> metric = gs.kl_from(trace).bind(trace.model)
        >>> [round(metric(run.next_logits[None]).item(), 1) for run in (trace, other)]
        [0.0, 11.6]
    """
    return KLFrom(trace)
