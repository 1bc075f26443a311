"""SweepMetadata: what was asked of a sweep, as data, for its labels, its file and the call that repeats it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gemmascope.edits.call_text import metric_text
from gemmascope.errors import SweepError
from gemmascope.model.model import Model
from gemmascope.sweeps.digest import Part, digest, metric_parts, run_parts, traces_parts
from gemmascope.sweeps.pairs import Pair
from gemmascope.sweeps.spec import SweepSpec

# Arguments of a sweep's call that a picture's subtitle repeats, and how much of them fits.
_ARGUMENTS = re.compile(r"^    ((?:receiver|ablate|layer|pos|head|q_pos|k_pos|window|edits)=.*),$", re.MULTILINE)
MOST_DETAILS = 110
# Prompts that a sweep's call gives as texts: one line each.
_PROMPTS = re.compile(r"""^    ((["']).*\2),$""", re.MULTILINE)
# How many characters of a long prompt are said: from so many before the first difference on.
MOST_PROMPT, BEFORE_DIFFERENCE = 160, 60
LONGEST_WORD = 20
MOST_METRIC = 50


@dataclass(frozen=True)
class SweepMetadata:
    """What a sweep was asked, as data that JSON holds. Two sweeps with equal metadata have equal results.

    model: its name, and fingerprint. kinds: "local" or "global" for every layer. tokens: those of the run that is patched.
    axes: the axes of the grid, with the numbers along each. n_cells: how many cells, of all pairs, can have a value. code:
    the call. digest: of what the call does not show: token ids, the values that edits write, the code of functions.
    estimate: None for a sweep, else how the grid was estimated.
    """

    model: str
    fingerprint: str
    kinds: list[str]
    tokens: list[str]
    site: str
    axes: dict[str, list[int]]
    n_cells: int
    metric: str
    into: str
    has_source: bool
    code: str
    digest: str
    estimate: str | None = None


def metadata_of(
    pairs: Sequence[Pair],
    metric: object,
    spec: SweepSpec,
    code: str,
    model: Model,
    *,
    n_cells: int | None = None,
    estimate: str | None = None,
    extra: str | None = None,
) -> SweepMetadata:
    """The metadata of a sweep. SweepError for grids of different shapes.

    n_cells: how many cells can have a value; None for all that the mask lets through. extra: goes into the digest.
    """
    shapes = {pair.grid.shape for pair in pairs}
    if len(shapes) > 1:
        raise SweepError(
            f"the pairs give grids of different shapes, {sorted(shapes)}: use prompts of one length, or leave pos out of by"
        )
    first = pairs[0]
    return SweepMetadata(
        model=model.name,
        fingerprint=model.fingerprint,
        kinds=list(model.config.kinds),
        tokens=model.texts(first.base.ids),
        site=first.grid.site.name,
        axes=first.grid.axes,
        n_cells=sum(pair.n_cells for pair in pairs) if n_cells is None else n_cells,
        metric=metric_text(metric),
        into=spec.into,
        has_source=first.source_ids is not None,
        code=code,
        digest=digest([*_parts(pairs, metric, spec), *([] if extra is None else [extra])]),
        estimate=estimate,
    )


def _parts(pairs: Sequence[Pair], metric: object, spec: SweepSpec) -> Iterator[Part]:
    """What the code does not show: token ids, the values that edits write, the traces that a mean is over, functions."""
    yield from metric_parts(metric)
    reference = traces_parts(spec.reference)
    for pair in pairs:
        yield from run_parts(pair.base.ids, pair.base.edits)
        if pair.source_ids is not None:
            yield from run_parts(pair.source_ids, ())
        yield from reference


# -- titles and labels of pictures --


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


def asked_text(question: SweepMetadata) -> str:
    """The prompts and the metric, for a picture that stands by itself: 'Clean: "...". Corrupted: "...". Measured: ...'.

    Prompts that are not texts, and sets of them, are left out.
    """
    prompts = prompt_lines(question.code, has_source=question.has_source)
    return " ".join([*prompts, f"Measured: {metric_label(question)}."])


def subtitle_of(question: SweepMetadata) -> str:
    """What stands below the title of a sweep's figure, line by line: the prompts, the metric, and the call's details."""
    prompts = prompt_lines(question.code, has_source=question.has_source)
    details = call_details(question.code)
    return "\n".join([*prompts, f"Measured: {question.metric}" + (f"; {details}" if details else "")])


def prompt_lines(code: str, *, has_source: bool) -> list[str]:
    """The prompts of a call, named, of long ones the stretch around the first difference; none unless they are texts."""
    prompts: list[str] = [ast.literal_eval(text) for text, _ in _PROMPTS.findall(code)]
    if len(prompts) != 1 + has_source:
        return []
    names = ("Clean", "Corrupted") if has_source else ("Prompt",)
    first = next((i for i, (a, b) in enumerate(zip(prompts[0], prompts[-1], strict=False)) if a != b), 0)
    return [f'{name}: "{_stretch(text, first)}".' for name, text in zip(names, prompts, strict=True)]


def prompts_line(prompts: Sequence[str]) -> str:
    """'Prompt: "..."' of one prompt; of several the first, and how many more there are."""
    more = f" and {len(prompts) - 1} more" if len(prompts) > 1 else ""
    return f'Prompt: "{_stretch(prompts[0], 0)}"{more}.' if prompts else ""


def _stretch(text: str, first: int) -> str:
    """A text, or so much of it around a place, with ... for what is left out."""
    begin = 0 if len(text) <= MOST_PROMPT else max(0, min(first - BEFORE_DIFFERENCE, len(text) - MOST_PROMPT))
    end = begin + MOST_PROMPT
    # Words stay whole where a space is near.
    if begin and (space := text.find(" ", begin, min(first, begin + LONGEST_WORD))) >= 0:
        begin = space + 1
    if end < len(text) and (space := text.rfind(" ", max(first, end - LONGEST_WORD), end)) >= 0:
        end = space
    return f"{'...' if begin else ''}{text[begin:end]}{'...' if end < len(text) else ''}"


def metric_label(question: SweepMetadata) -> str:
    """The metric if it fits beside the colours; otherwise the function that all pairs' metrics call."""
    if len(question.metric) <= MOST_METRIC:
        return question.metric
    calls = set(re.findall(r"(gs\.\w+)\(", question.metric))
    return calls.pop() if len(calls) == 1 else "the metric"
