"""SweepMetadata: what was asked of a sweep, as data, for its labels, its file and the call that repeats it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from gemmascope.edits.call_text import metric_text
from gemmascope.errors import SweepError
from gemmascope.legible import legible_line
from gemmascope.model.model import Model
from gemmascope.sweeps.digest import Part, digest, metric_parts, run_parts, traces_parts
from gemmascope.sweeps.pairs import Pair
from gemmascope.sweeps.spec import SweepSpec
from gemmascope.tokens.characters import text_of

# Arguments of a sweep's call that a picture's subtitle repeats, and how much of them fits.
_ARGUMENTS = re.compile(r"^    ((?:receiver|ablate|layer|pos|head|q_pos|k_pos|window|edits)=.*),$", re.MULTILINE)
MOST_DETAILS = 110
# Where the arguments of a call begin, one line each: the prompts come first.
_CALL = re.compile(r"^result = gs\.\w+\(\n", re.MULTILINE)
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
    """The prompts and the metric, for a picture that stands by itself: 'Clean: "...". Corrupted: "...". Measured: ...'."""
    return " ".join([*_prompts_of(question), f"Measured: {metric_label(question.metric)}."])


def subtitle_of(question: SweepMetadata) -> str:
    """What stands below the title of a sweep's figure, line by line: the prompts, the metric, and the call's details."""
    details = call_details(question.code)
    return "\n".join(
        [*_prompts_of(question), f"Measured: {metric_of_first(question.metric)}" + (f"; {details}" if details else "")]
    )


def _prompts_of(question: SweepMetadata) -> list[str]:
    return prompt_lines(question.code, has_source=question.has_source, into=question.into, tokens=question.tokens)


def prompt_lines(code: str, *, has_source: bool, into: str = "", tokens: Sequence[str] = ()) -> list[str]:
    """The prompts of a call, named; of several pairs the first, and how many there are.

    code: as call_text writes it; without a call in it there are no lines. has_source: there are two prompts a pair. into,
    tokens: the run that is patched, and its tokens in the first pair, which are shown where the call gives token ids.
    """
    names = ("clean", "corrupt") if has_source else ("clean",)
    patched = into if has_source else "clean"
    given = [_first_prompt(prompts) for prompts in _given_prompts(code, len(names))]
    texts = [
        text_of(tokens) if text is None and tokens and name == patched else text
        for name, (_, text) in zip(names, given, strict=False)
    ]
    return named_prompts(texts, max([n for n, _ in given], default=0))


def named_prompts(texts: Sequence[str | None], n_pairs: int) -> list[str]:
    """A line for each prompt of the first pair, the clean one and the corrupted one, or for the only prompt.

    Of long ones the stretch around the first difference. texts: None for token ids. n_pairs: how many pairs there are.
    """
    names = ("Clean", "Corrupted") if len(texts) > 1 else ("Prompt",)
    place = f", the first of {n_pairs:,}" if n_pairs > 1 else ""
    alike = zip(texts[0] or "", texts[-1] or "", strict=False) if texts else ()
    first = next((i for i, (a, b) in enumerate(alike) if a != b), 0)
    said = ["token ids" if text is None else f'"{_stretch(text, first)}"' for text in texts]
    return [f"{name}{place}: {text}." for name, text in zip(names, said, strict=False)]


def prompts_line(prompts: Sequence[str], what: str = "prompt") -> str:
    """'Prompt: "..."' of one prompt; of several how many there are, and the first. what: such as "positive prompt"."""
    if not any(prompts):
        return ""
    said = f'"{_stretch(prompts[0], 0)}".'
    return f"{len(prompts):,} {what}s, the first: {said}" if len(prompts) > 1 else f"{what.capitalize()}: {said}"


def words_of(model: Model, ids: Tensor) -> str:
    """A prompt's ids as the text that they are; without a tokenizer, the ids."""
    tokens = model.texts(ids)
    return text_of(tokens) if model.has_tokenizer else " ".join(tokens)


def _given_prompts(code: str, n: int) -> list[object]:
    """The first n arguments of a call, in a line each; none where they cannot be read."""
    call = _CALL.search(code)
    lines = code[call.end() :].split("\n")[:n] if call else []
    try:
        return [ast.literal_eval(line.strip().removesuffix(",")) for line in lines]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


def _first_prompt(given: object) -> tuple[int, str | None]:
    """How many prompts an argument holds, and the first as text; None for token ids."""
    if isinstance(given, str):
        return 1, given
    if not isinstance(given, (list, tuple)) or not given or isinstance(given[0], int):
        return 1, None
    if isinstance(given[0], dict):
        return 1, " ".join(str(message.get("content", "")) for message in given)
    return len(given), _first_prompt(given[0])[1]


def _stretch(text: str, first: int) -> str:
    """One line of a text, or of so much of it around a place, with ... for what is left out."""
    begin = 0 if len(text) <= MOST_PROMPT else max(0, min(first - BEFORE_DIFFERENCE, len(text) - MOST_PROMPT))
    end = begin + MOST_PROMPT
    # Words stay whole where a space is near.
    if begin and (space := text.find(" ", begin, min(first, begin + LONGEST_WORD))) >= 0:
        begin = space + 1
    if end < len(text) and (space := text.rfind(" ", max(first, end - LONGEST_WORD), end)) >= 0:
        end = space
    return legible_line(f"{'...' if begin else ''}{text[begin:end]}{'...' if end < len(text) else ''}")


def metric_of_first(metric: str) -> str:
    """A metric as text; of a list with one for each pair, that of the first."""
    try:
        body = ast.parse(metric, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # a function may have any name
        return metric
    if not isinstance(body, ast.List) or len(body.elts) < 2:
        return metric
    return f"{ast.get_source_segment(metric, body.elts[0])}, the first pair's"


def metric_label(metric: str) -> str:
    """The metric if it fits beside the colours; otherwise the function that all pairs' metrics call."""
    if len(metric) <= MOST_METRIC:
        return metric
    calls = set(re.findall(r"(gs\.\w+)\(", metric))
    return calls.pop() if len(calls) == 1 else "the metric"
