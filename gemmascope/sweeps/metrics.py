"""Metrics: from soft-capped logits, [run, vocab] or of several positions [run, pos, vocab], to one number per run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from gemmascope.arguments import short_repr
from gemmascope.edits.places import Pos
from gemmascope.errors import MetricError
from gemmascope.model.model import Prompt
from gemmascope.run.metric import Answer, BindableMetric, Metric, answer_ids
from gemmascope.run.metric_names import METRICS
from gemmascope.sweeps.measures.kinds import AnswerMetric, FunctionMetric, KLFrom, Loss

if TYPE_CHECKING:
    from gemmascope.run.trace import Trace

__all__ = [
    "Answer",
    "AnswerMetric",
    "FunctionMetric",
    "KLFrom",
    "Loss",
    "answer_ids",
    "answer_logprob",
    "answer_prob",
    "kl_from",
    "logit_diff",
    "loss",
    "metric",
    "rank",
]

MetricLike = Metric | BindableMetric


def logit_diff(answer: Answer, against: Answer, *, pos: Pos = None) -> AnswerMetric:
    """The metric that subtracts one answer's soft-capped logit from another's: positive where `answer` wins.

    Args:
        answer: The right answer: a text that is one token, with its leading space (" Mary"), or a token id, or a list
            of them, whose mean logit is taken.
        against: The wrong answer, written in the same way.
        pos: The positions whose logits are read: a number, a slice, a list, "all", or a token that occurs once in the
            prompt. Of several, the metric is the mean. None: the last.

    Returns:
        A metric for gs.sweep, gs.attribute and the like, which can be called on a trace as well. Bound to a model it is a
        function of soft-capped logits, [run, vocab] -> [run], or with pos [run, pos, vocab] -> [run], in logits. The
        answers are looked up when it meets a model: PromptError for a text that is not one token, MetricError for two
        equal answers.

    Examples:
        >>> metric = gs.logit_diff(" Mary", " John")
        >>> metric
        gs.logit_diff(' Mary', ' John')
        >>> trace = gs.trace("When Mary and John went to the store, John gave a drink to")
        >>> round(metric(trace), 1)
        11.9
        >>> gs.logit_diff(" Mary", " John", pos=13)(trace) < metric(trace)  # one position earlier
        True
    """
    return named_metric("logit_diff", answer, against, pos=pos)


def answer_prob(answer: Answer, *, pos: Pos = None) -> AnswerMetric:
    """The metric that takes the answer's probability, from 0 to 1.

    Args:
        answer: A text that is one token, with its leading space, or a token id, or a list of them, whose probabilities
            are added.
        pos: The positions whose logits are read: a number, a slice, a list, "all", or a token that occurs once in the
            prompt. Of several, the metric is the mean. None: the last.

    Returns:
        A metric for gs.sweep, gs.attribute and the like, as from gs.logit_diff.

    Examples:
        >>> trace = gs.trace("When Mary and John went to the store, John gave a drink to")
        >>> round(gs.answer_prob(" Mary")(trace), 2)
        1.0
    """
    return named_metric("answer_prob", answer, pos=pos)


def answer_logprob(answer: Answer, *, pos: Pos = None) -> AnswerMetric:
    """The metric that takes the natural logarithm of the answer's probability, in nats: at most 0.

    Args:
        answer: A text that is one token, with its leading space, or a token id, or a list of them, whose probabilities
            are added before the logarithm.
        pos: The positions whose logits are read: a number, a slice, a list, "all", or a token that occurs once in the
            prompt. Of several, the metric is the mean. None: the last.

    Returns:
        A metric for gs.sweep, gs.attribute and the like, as from gs.logit_diff.

    Examples:
        >>> trace = gs.trace("When Mary and John went to the store, John gave a drink to")
        >>> round(gs.answer_logprob(" John")(trace), 1)
        -11.9
    """
    return named_metric("answer_logprob", answer, pos=pos)


def rank(answer: Answer, *, pos: Pos = None) -> AnswerMetric:
    """The metric that counts the tokens likelier than the answer: 0 where the answer is the likeliest.

    Args:
        answer: A text that is one token, with its leading space, or a token id, or a list of them, of which the
            likeliest counts.
        pos: The positions whose logits are read: a number, a slice, a list, "all", or a token that occurs once in the
            prompt. Of several, the metric is the mean. None: the last.

    Returns:
        A metric for gs.sweep and the like, as from gs.logit_diff; of one position, whole numbers as floats. It has no
        gradient, so gs.attribute cannot use it.

    Examples:
        >>> trace = gs.trace("When Mary and John went to the store, John gave a drink to")
        >>> [gs.rank(name)(trace) for name in (" Mary", " John")]
        [0.0, 41.0]
    """
    return named_metric("rank", answer, pos=pos)


def named_metric(name: str, *answers: Answer, pos: Pos = None) -> AnswerMetric:
    """The metric of a name in METRICS. Answers beyond those that it takes are left out."""
    return AnswerMetric(name, _RULES[name], answers[: METRICS[name].n_answers], pos=pos)


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


def kl_from(trace: Trace, *, pos: Pos = None) -> KLFrom:
    """The metric that takes the KL divergence of a run's next-token distribution from that of a trace.

    It is KL(trace || run), 0 where the two agree: the sum over tokens of p (log p - log q), where p are the trace's and
    q the run's probabilities, after the soft cap, at the same position.

    Args:
        trace: The run to compare with, from gs.trace. Its model must have the vocabulary of the model that is swept.
        pos: The positions that are compared, each looked up in the run and in the trace: a number, a slice, a list, "all",
            or a token that occurs once. Of several, the metric is the mean. None: the last.

    Returns:
        A metric for gs.sweep, gs.attribute and the like, as from gs.logit_diff, in nats.

    Examples:
        >>> trace = gs.trace("When Mary and John went to the store, John gave a drink to")
        >>> other = gs.trace("When Mary and John went to the store, Mary gave a drink to")
        >>> [round(gs.kl_from(trace)(run), 1) for run in (trace, other)]
        [0.0, 11.6]
        >>> round(gs.kl_from(trace, pos=slice(0, 10))(other), 6)  # the prompts begin alike
        0.0
    """
    return KLFrom(trace, pos=pos)


def loss(text: Prompt | None = None, *, pos: Pos = None) -> Loss:
    """The metric that takes the mean negative log-likelihood of a text's tokens, each after those before it.

    Args:
        text: Whose tokens are predicted: a prompt of as many tokens as the run. None: the run's own; in a sweep those of
            the run that is patched, for both baselines, so that a run is always measured against the same tokens.
        pos: The positions whose next token is predicted: a number, a slice, a list, "all", or a token that occurs once.
            None or "all": all but the last.

    Returns:
        A metric for gs.sweep, gs.attribute and the like, which can be called on a trace as well, in nats.

    Raises:
        MetricError: The text is none, or a position has no next token (when the metric meets the run).

    Examples:
        >>> trace = gs.trace("When Mary and John went to the store, John gave a drink to Mary")
        >>> gs.loss()(trace) == trace.loss()
        True
        >>> round(gs.loss(pos=14)(trace), 2)  # of the last token
        0.0
    """
    return Loss(text, pos=pos)


def metric(function: Callable[[Tensor], Tensor], *, pos: Pos, name: str | None = None) -> FunctionMetric:
    """A metric of your own that reads the logits at some positions.

    Args:
        function: Soft-capped logits [run, pos, vocab] -> one number per run, [run]. The positions are in the order of pos.
            It measures each run by itself.
        pos: The positions: a number, a slice, a list, "all", or a token that occurs once in the prompt.
        name: What the metric is called where several are measured. None: the function's name.

    Returns:
        A metric for gs.sweep, gs.attribute and the like, which can be called on a trace as well.

    Raises:
        MetricError: The function cannot be called, pos names no positions, or name is no text. What the function returns
            is checked before a sweep runs.

    Examples:
        >>> def entropy(logits):
        ...     p = logits.softmax(-1)
        ...     return -(p * p.log()).sum(-1).mean(-1)
        >>> trace = gs.trace("When Mary and John went to the store, John gave a drink to")
        >>> entropy_before_the_names = gs.metric(entropy, pos=[1, 3])
        >>> entropy_before_the_names(trace) > 1
        True
    """
    if not callable(function):
        raise MetricError(f"a metric is made of a function of logits [run, pos, vocab]; given {short_repr(function)}")
    if pos is None:
        raise MetricError("name the positions: pos='all', pos=-1, or a list")
    if name is not None and not isinstance(name, str):
        raise MetricError(f"the name of a metric is a text; given {short_repr(name)}")
    return FunctionMetric(function, name, pos=pos)
