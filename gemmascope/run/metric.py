"""Metrics, soft-capped logits [run, vocab] -> one number per run, and the answer tokens that they are about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from gemmascope.arguments import as_list, is_list, is_whole, short_repr
from gemmascope.edits.call_text import plain
from gemmascope.errors import MetricError, PromptError, warn
from gemmascope.model.finite import valid_logits
from gemmascope.model.layout import Layout
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


# How far the number of a run may move with the other runs of its batch, relative to its size: rounding.
_ROUNDING = 1e-3


def try_metric(metric: Metric, model: Model, ids: Tensor) -> None:
    """MetricError, before any layer runs, for a metric that does not return one number per run or that mixes runs.

    It is tried on stand-in logits, unembedded from the embeddings of the prompt's last token and of another token.
    """
    pair = torch.stack([ids[-1], _other_token(ids, model)])
    with torch.no_grad():
        logits = model.network.unembed(model.network.embed(pair, Layout.of_lengths([2], model.device)))
        together = measure(metric, logits)
        alone = torch.cat([_alone(metric, row) for row in torch.split(logits, 1)])
        if _are_close(together, alone):
            return
        if not _are_close(together, measure(metric, logits)):
            warn("the metric gives other numbers for the same logits: effects would be those of its noise, too")
            return
    raise MetricError(
        f"the metric mixes runs: for two runs it gives {together.tolist()}, for each by itself {alone.tolist()}. A metric "
        "measures each run by itself, from its own row of the logits: write x[:, i] and reduce over the last axis"
    )


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


def _other_token(ids: Tensor, model: Model) -> Tensor:
    """A token that differs from the prompt's last one: from the prompt if it has one, else from the vocabulary."""
    others = ids[ids != ids[-1]]
    return others[-1] if len(others) else (ids[-1] + 1) % model.config.vocab_size


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
