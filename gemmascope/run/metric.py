"""What a pass asks of a metric: soft-capped logits [run, vocab] of one position -> one number per run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gemmascope.errors import MetricError
from gemmascope.model.layout import Layout
from gemmascope.model.model import Model

Metric = Callable[[Tensor], Tensor]


def bind_metric(metric: Any, model: Model) -> Metric:
    """A metric ready to be called: answers are looked up in the model's tokenizer. MetricError if it is no metric."""
    if not callable(metric) and not hasattr(metric, "bind"):
        raise MetricError(
            f"a metric is a function of soft-capped logits [run, vocab] -> [run], or gs.logit_diff(...); given {metric!r}"
        )
    bound: Metric = metric.bind(model) if hasattr(metric, "bind") else metric
    return bound


def measure(metric: Metric, logits: Tensor) -> Tensor:
    """The metric of each run, float64 [run]. MetricError for another shape or a number that is none."""
    value = metric(logits)
    if not isinstance(value, Tensor) or tuple(value.shape) != (len(logits),):
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise MetricError(
            f"the metric returned {shape} for logits of shape {tuple(logits.shape)}: "
            f"it must return one number per run, shape ({len(logits)},)"
        )
    if bool(torch.isnan(value).any()):
        raise MetricError("the metric returned NaN")
    return value.double()


def try_metric(metric: Metric, model: Model, ids: Tensor) -> None:
    """MetricError for a metric that returns no number a run, found before any layer is run.

    It is shown logits of a kind: those of the embeddings of a prompt's last tokens.
    """
    ids = ids[-2:]
    with torch.no_grad():
        measure(metric, model.network.unembed(model.network.embed(ids, Layout.of_lengths([len(ids)], model.device))))


def metric_text(metric: Any) -> str:
    """The metric as Python: the call that makes it, or the name of a user's function."""
    if isinstance(metric, (list, tuple)):
        return f"[{', '.join(map(metric_text, metric))}]"
    return repr(metric) if hasattr(metric, "bind") else name_of(metric)


def name_of(fn: Any) -> str:
    """The name under which a user's function appears; of a callable object its class's."""
    if isinstance(fn, functools.partial):
        return name_of(fn.func)
    return str(getattr(fn, "__name__", type(fn).__name__))
