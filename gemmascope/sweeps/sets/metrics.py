"""The metrics of a sweep as users give them: one, one for each pair, or several with names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gemmascope.arguments import short_repr
from gemmascope.edits.call_text import name_of
from gemmascope.errors import MetricError, SweepError


@dataclass(frozen=True)
class Metrics:
    """names: of several metrics; None where one was given. each: of each name the metric, or a list of one for each pair."""

    names: tuple[str, ...] | None
    each: tuple[object, ...]

    @classmethod
    def of(cls, metric: object, many: bool) -> Metrics:
        """The metrics of a call. many: whether it has a list of pairs, for which a list holds one metric each.

        MetricError for an empty mapping, a name that is no text, and two metrics of one name.
        """
        if isinstance(metric, Mapping):
            if not metric:
                raise MetricError("metric is an empty mapping: name one metric at least, {'name': metric}")
            if wrong := [name for name in metric if not isinstance(name, str) or not name]:
                raise MetricError(f"the names of metrics are texts; given {short_repr(wrong[0])}")
            return cls(tuple(metric), tuple(metric.values()))
        if many or not isinstance(metric, (list, tuple)) or len(metric) < 2:
            return cls(None, (metric,))
        names = [label_of(one) for one in metric]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise MetricError(
                f"two metrics are named {twice!r}: give a mapping with a name for each, "
                f"metric={{'first': ..., 'second': ...}}; given {short_repr(list(metric))}"
            )
        return cls(tuple(names), tuple(metric))

    def of_pairs(self, n_clean: int, n_corrupt: int) -> list[tuple[object, ...]]:
        """For each pair its metrics, one of each name. SweepError unless there are as many of all."""
        columns = []
        for i, one in enumerate(self.each):
            if isinstance(one, (list, tuple)) and not one:
                raise SweepError("the list of metrics is empty: give one, such as gs.logit_diff(' Mary', ' John')")
            listed = list(one) if isinstance(one, (list, tuple)) else [one] * n_clean
            if not n_clean == n_corrupt == len(listed):
                named = "" if self.names is None else f" named {self.names[i]!r}"
                several = self.names is None and n_clean > 1 and n_clean == n_corrupt
                raise SweepError(
                    f"there are {n_clean} clean prompts, {n_corrupt} corrupted ones and {len(listed)} metrics{named}"
                    + (". For several metrics of every pair give a mapping, metric={'name': metric, ...}" if several else "")
                )
            columns.append(listed)
        return list(zip(*columns, strict=True))


def label_of(metric: object) -> str:
    """What a metric is called where several are measured: "logit_diff", "loss", the name of a user's function."""
    return str(getattr(metric, "label", None) or name_of(metric))
