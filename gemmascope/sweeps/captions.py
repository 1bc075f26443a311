"""Titles and labels of a sweep's pictures."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gemmascope.sweeps.result import SweepMetadata

# Arguments of a sweep's call that a picture's subtitle repeats, and how much of them fits.
_ARGUMENTS = re.compile(r"^    ((?:receiver|ablate|layer|pos|head|q_pos|k_pos|window|edits)=.*),$", re.MULTILINE)
MOST_DETAILS = 110
MOST_METRIC = 50


def picture_title(question: SweepMetadata, n_pairs: int = 1) -> str:
    """What was patched or ablated, in which model, and how the numbers came about."""
    change = f"patched into the {question.into} run" if question.has_source else "ablated"
    pairs = f", mean of {n_pairs} pairs" if n_pairs > 1 else ""
    estimate = f" (estimate: {question.estimate})" if question.estimate else ""
    return f"{question.site} {change}, {question.model}{pairs}{estimate}"


def call_details(code: str) -> str:
    """The arguments of the call beyond site, axes and prompts: 'window=2, edits=[...]'."""
    details = ", ".join(_ARGUMENTS.findall(code))
    return details if len(details) <= MOST_DETAILS else details[:MOST_DETAILS] + "..."


def metric_label(question: SweepMetadata) -> str:
    """The metric if it fits beside the colours; otherwise the function that all pairs' metrics call."""
    if len(question.metric) <= MOST_METRIC:
        return question.metric
    calls = set(re.findall(r"(gs\.\w+)\(", question.metric))
    return calls.pop() if len(calls) == 1 else "the metric"
