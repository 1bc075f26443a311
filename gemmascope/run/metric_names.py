"""The metrics of answers by name, which the command line lists before torch is loaded. sweeps/metrics.py makes them."""

from __future__ import annotations

from typing import NamedTuple


class MetricName(NamedTuple):
    """What is known of a metric by its name. label: as a lab shows it. has_gradient: whether gs.attribute can use it."""

    label: str
    n_answers: int = 1
    has_gradient: bool = True


METRICS: dict[str, MetricName] = {
    "logit_diff": MetricName("logit difference", n_answers=2),
    "answer_prob": MetricName("probability"),
    "answer_logprob": MetricName("log probability"),
    "rank": MetricName("rank", has_gradient=False),
}
