"""Pictures of sweeps: bars and heat maps of effects on a diverging scale around 0."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from gemmascope.arguments import true_or_false
from gemmascope.errors import SweepError
from gemmascope.figures.labelled import labelled_figure, text

if TYPE_CHECKING:
    from gemmascope.sweeps.result import SweepResult


def sweep_figure(result: SweepResult, *, normalized: bool = False) -> Any:
    """A plotly figure of a sweep over one or two axes. SweepError for more: select some with .effect.sel first."""
    values = result.normalized if true_or_false(normalized, "normalized", error=SweepError) else result.effect
    if values.ndim > 2:
        axes = ", ".join(map(str, values.dims))
        raise SweepError(f"a heat map has two axes; this sweep has {values.ndim} ({axes}): plot result.effect.sel(...)")
    unit = "share of the gap" if normalized else f"change of {_metric(result)}"
    figure = labelled_figure(values, title=_title(result), unit=unit, diverging=True)
    if rest := _rest(result.question.code):
        figure.update_layout(title_subtitle={"text": text(rest), "font_size": 12})
    return figure


# What a call may say beyond the site, the axes and the prompts, and how much of it a picture says.
_SAID = re.compile(r"^    ((?:receiver|ablate|layer|pos|head|q_pos|k_pos|window|edits)=.*),$", re.MULTILINE)
MOST_SAID = 110
MOST_METRIC = 50


def _rest(code: str) -> str:
    """What else was asked, as it stands in the call: 'window=2, edits=[...]'."""
    said = ", ".join(_SAID.findall(code))
    return said if len(said) <= MOST_SAID else said[:MOST_SAID] + "..."


def _metric(result: SweepResult) -> str:
    """The metric, where its words fit beside the colours; of pairs with one each, what they have in common."""
    said = result.question.metric
    if len(said) <= MOST_METRIC:
        return said
    calls = set(re.findall(r"(gs\.\w+)\(", said))
    return calls.pop() if len(calls) == 1 else "the metric"


def _title(result: SweepResult) -> str:
    q = result.question
    done = f"patched into the {q.into} run" if q.has_source else "ablated"
    pairs = f", mean of {len(result.values)} pairs" if len(result.values) > 1 else ""
    estimate = f" (estimate: {q.estimate})" if q.estimate else ""
    return f"{q.site} {done}, {q.model}{pairs}{estimate}"
