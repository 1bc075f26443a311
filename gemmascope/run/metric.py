"""Metrics, soft-capped logits [run, vocab] or [run, pos, vocab] -> one number per run, and the answers they are about."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from gemmascope.arguments import as_list, as_numbers, equals_text, is_list, is_whole, short_repr
from gemmascope.edits.call_text import plain
from gemmascope.edits.places import Pos, find_positions
from gemmascope.errors import MetricError, PromptError
from gemmascope.model.finite import valid_logits
from gemmascope.model.model import Model
from gemmascope.values import in_float64

Metric = Callable[[Tensor], Tensor]
Answer = str | int | Sequence[str | int]


@runtime_checkable
class BindableMetric(Protocol):
    """A metric that looks its answers up in a model's tokenizer before it can be called: what gs.logit_diff returns."""

    def bind(self, model: Model) -> Metric: ...


def bind_metric(metric: object, model: Model) -> Metric:
    """A metric ready to be called, with its answers looked up in the model's tokenizer. MetricError if it is no metric."""
    if isinstance(metric, BindableMetric):
        return metric.bind(model)
    if not callable(metric):
        raise MetricError(
            "a metric is a function of soft-capped logits [run, vocab] -> [run], or gs.logit_diff(...); given "
            f"{short_repr(metric)}"
        )
    return metric


def measure(metric: Metric, logits: Tensor) -> Tensor:
    """The metric of each run, float64 [run]. MetricError for another shape or for NaN.

    The metric gets a copy, so that writing to its logits changes nothing.
    """
    if not logits.is_meta and not valid_logits(logits):  # not every metric of NaN is NaN: a rank is 0
        raise MetricError(
            "the logits to measure hold NaN: an edit makes it, or the weights do (gs.load(..., check=True) finds the tensor)"
        )
    value = metric(logits.clone())
    if not isinstance(value, Tensor) or tuple(value.shape) != (len(logits),):
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise MetricError(
            f"the metric returned {shape} for logits of shape {tuple(logits.shape)}: "
            f"it must return one number per run, shape ({len(logits)},)"
        )
    if value.is_complex() or value.is_meta or value.is_quantized:
        kind = "numbers of the meta device" if value.is_meta else str(value.dtype)
        raise MetricError(f"the metric returned {kind}: it must return one real number per run")
    value = value if value.layout == torch.strided else value.to_dense()
    if bool(torch.isnan(value).any()):
        raise MetricError("the metric returned NaN")
    return in_float64(value if logits.requires_grad else value.detach())


def listed_answers(answer: object) -> list[str | int]:
    """One answer or several, as a list. PromptError for what is neither a text nor a token id."""
    value = answer if isinstance(answer, str) else plain(answer)
    answers = as_list(value, "an answer", error=PromptError) if is_list(value) else [value]
    if not answers:
        raise PromptError("the list of answers is empty")
    if odd := [a for a in answers if not isinstance(a, str) and not is_whole(a)]:
        raise PromptError(f"an answer is a text that is one token, or a token id; given {short_repr(odd[0])}")
    return [a if isinstance(a, str) else int(a) for a in answers if isinstance(a, str) or is_whole(a)]


def answer_ids(answer: object, model: Model) -> list[int]:
    """The token ids of one answer or several. PromptError for a text that is not one token, or an id that is none."""
    answers = listed_answers(answer)
    ids = [model.tokenizer.single(a) if isinstance(a, str) else a for a in answers]
    if len(set(ids)) < len(ids):
        raise PromptError(f"the answers name a token twice: {short_repr(answers)}")
    if wrong := [i for i in ids if not 0 <= i < model.config.vocab_size]:
        raise PromptError(
            f"token id {short_repr(wrong[0])} is outside the vocabulary: ids go from 0 to {model.config.vocab_size - 1}"
        )
    return ids


# -- positions whose logits are read --


def listed_positions(pos: object) -> Pos:
    """A user's positions in Python's own types, numbers in a tuple. MetricError for an empty list and for no positions."""
    if pos is None or isinstance(pos, (str, slice)):
        return pos
    listed = as_list(pos, "pos", error=MetricError) if isinstance(pos, Iterator) else as_numbers(pos)
    if listed is None or not all(map(is_whole, listed)):
        raise MetricError(
            f"pos is a position, a slice or a list of positions, 'all', or a token that occurs once; given {short_repr(pos)}"
        )
    if not listed:
        raise MetricError("pos is an empty list: name one position at least, 'all', or leave it out")
    numbers = tuple(int(one) for one in listed if is_whole(one))
    return numbers[0] if is_whole(pos) else numbers


def find_read_positions(pos: Pos, model: Model, ids: Tensor) -> tuple[int, ...]:
    """The positions of a prompt that pos selects, in the user's order; "all" selects all. SiteError for another."""
    return tuple(find_positions(None if equals_text(pos, "all") else pos, model, ids))
