"""Remarks on prompts, answers, metrics and grids before anything runs: errors, and warnings of likely mistakes.

Sweeps, estimates, lenses, direct logits, labs and the command line share them, so that all report the same.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from gemmascope.edits.reach import no_effect_messages
from gemmascope.errors import GemmascopeError, warn
from gemmascope.model.model import Model
from gemmascope.run.bound_metric import PositionedMetric
from gemmascope.run.metric import answer_ids, listed_answers

if TYPE_CHECKING:
    from gemmascope.edits.edit import BoundEdit

Level = Literal["error", "warning"]

# The next word begins with a space after these, but not after an opening quote, a bracket or a dash.
_ENDS_A_WORD = frozenset(",.;:!?)]}%…”»")


@dataclass(frozen=True)
class Remark:
    """An error, or a warning, about an argument of a question that has not run. about: the argument's name."""

    level: Level
    about: str
    text: str


def raise_or_warn(remarks: Iterable[Remark], error: type[GemmascopeError]) -> None:
    """Raise the first error; without one, give the warnings, each text once."""
    remarks = list(remarks)
    raise_first_error(remarks, error)
    for text in dict.fromkeys(remark.text for remark in remarks):
        warn(text)


def raise_first_error(remarks: Iterable[Remark], error: type[GemmascopeError]) -> None:
    """Raise the first error. The caller shows the warnings."""
    for remark in remarks:
        if remark.level == "error":
            raise error(remark.text)


# -- prompts --


def prompt_remarks(name: str, ids: Tensor, model: Model) -> Iterator[Remark]:
    """Remarks on one prompt: a space at its end, and a second `<bos>`."""
    if not model.has_tokenizer:
        return
    texts = model.texts(ids[-8:])
    end = "".join("x" if model.tokenizer.is_special(int(i)) else text for i, text in zip(ids[-8:], texts, strict=True))
    blank = end[len(end.rstrip()) :]
    if blank.strip("\r\n"):
        yield Remark(
            "warning", name, f"the prompt ends in {blank!r}: Gemma's words bring their space, so after it none can follow "
            "as usual. Remove it"
        )  # fmt: skip
    if len(ids) > 1 and int(ids[0]) == int(ids[1]) == model.config.bos_id:
        yield Remark("warning", name, "the prompt begins with <bos> twice: one is put in front of every text. Remove yours")


def pair_remarks(clean: Tensor, corrupt: Tensor) -> Iterator[Remark]:
    """A remark on two equal prompts."""
    if clean.tolist() == corrupt.tolist():
        yield Remark("warning", "corrupt", "the two prompts are the same: patching changes nothing. Change a word in one")


# -- edits --


def edit_remarks(edits: Sequence[BoundEdit], ids: Tensor, model: Model) -> Iterator[Remark]:
    """Remarks on edits of a run that cannot change anything: the warnings of gs.trace."""
    yield from (Remark("warning", "edits", text) for text in no_effect_messages(edits, model, ids))


# -- answers --


def answer_remarks(answers: Mapping[str, object], ids: Tensor | None, model: Model) -> Iterator[Remark]:
    """Remarks on the answers to a prompt.

    answers: by argument: "answer", and "against" where one is subtracted; each one answer or several. ids: the
    prompt's; None for an unknown prompt. PromptError for what is no answer.
    """
    ids_of = {name: answer_ids(answer, model) for name, answer in answers.items()}
    both = set(ids_of.get("answer", ())) & set(ids_of.get("against", ()))
    if both and len(both) == len(ids_of["answer"]) == len(ids_of["against"]):
        yield Remark("error", "against", same_answers_text(answers["answer"]))
    elif both:
        texts = ", ".join(map(repr, model.texts(torch.tensor(sorted(both)))))
        yield Remark(
            "warning", "against", f"{texts} stands on both sides, where it cancels itself out: name it on one alone"
        )
    for name, answer in answers.items():
        yield from _remarks_on_one(name, answer, ids, model)


def against_itself(metric: object, model: Model) -> str | None:
    """The error text for a metric that holds an answer against itself; None for any other."""
    answers = _answers_of(metric)
    if "against" in answers and set(answer_ids(answers["answer"], model)) == set(answer_ids(answers["against"], model)):
        return same_answers_text(answers["answer"])
    return None


def same_answers_text(answer: object) -> str:
    """The error text for an answer that is held against itself."""
    text = "the two answers are the same token: their difference is 0 everywhere. Change one"
    if len(listed_answers(answer)) > 1:
        text = "both lists hold the same answers: their difference is 0 everywhere. Change one"
        text += ". For several pairs give a metric for each: metric=[gs.logit_diff(a, b), ...]"
    return text


def _remarks_on_one(name: str, answer: object, ids: Tensor | None, model: Model) -> Iterator[Remark]:
    if not model.has_tokenizer:
        return
    answers = listed_answers(answer)
    for one in answers:
        if ids is not None and isinstance(one, str) and f" {one}" not in answers and _lacks_space(one, ids, model):
            spaced = f" {one}"
            yield Remark(
                "warning", name, f"{one!r} has no space in front: after a word the model says {spaced!r}, another token"
            )
        if one in ("<bos>", "<pad>", "<unk>"):
            yield Remark("warning", name, f"the answer {one} is a control token, which no text goes on with")


def _lacks_space(answer: str, ids: Tensor, model: Model) -> bool:
    """Whether an answer without a leading space follows a word, where its token with the space was likely meant."""
    first, last = answer[:1], int(ids[-1])
    end = model.tokenizer.text(last)[-1:]
    after_a_word = not model.tokenizer.is_special(last) and (end.isalnum() or end in _ENDS_A_WORD)
    has_spaces = first.isalnum() and unicodedata.east_asian_width(first) not in "WF"
    return after_a_word and has_spaces and len(model.tokenizer.encode(f" {answer}")) == 1


def metric_remarks(metric: object, ids: Tensor, model: Model) -> Iterator[Remark]:
    """Remarks on the answers of a metric; none on a user's own function."""
    if answers := _answers_of(metric):
        yield from answer_remarks(answers, _read_by(metric, ids, model), model)


def _read_by(metric: object, ids: Tensor, model: Model) -> Tensor | None:
    """The prompt up to the position that a metric reads, which an answer follows; None if it reads several."""
    positions = metric.at(model, ids).positions if isinstance(metric, PositionedMetric) else (len(ids) - 1,)
    return ids[: positions[0] + 1] if len(positions) == 1 else None


def _answers_of(metric: object) -> dict[str, object]:
    """The answers of a metric, by argument; none for a user's own function."""
    answers = getattr(metric, "answers", ()) if hasattr(metric, "bind") else ()
    return dict(zip(("answer", "against"), answers, strict=False))


def shared_metric_remarks(metric: object, n_prompts: int) -> Iterator[Remark]:
    """A remark on one metric for several prompts that has as many answers as there are prompts."""
    answers = _answers_of(metric)
    if n_prompts > 1 and answers and all(_n_answers(answer) == n_prompts for answer in answers.values()):
        yield Remark(
            "warning",
            "metric",
            f"{metric!r} takes all {n_prompts} answers together in every one of the {n_prompts} prompts. "
            f"For one answer each, give a list of metrics: [gs.{getattr(metric, 'name', 'metric')}(...), ...]",
        )


def _n_answers(answer: object) -> int:
    return 1 if isinstance(answer, str) else len(listed_answers(answer))


# -- several prompts --


def prompts_remarks(ids: Sequence[Tensor], metric: object, model: Model) -> Iterator[Remark]:
    """Remarks on prompts and the metric of their next tokens: one metric for all, or a list with one for each."""
    if isinstance(metric, (list, tuple)):
        metrics = list(metric)
    else:
        metrics = [metric] * len(ids)
        yield from shared_metric_remarks(metric, len(ids))
    both = zip(ids, metrics, strict=True)
    yield from numbered("prompt", [[*prompt_remarks("prompt", i, model), *metric_remarks(one, i, model)] for i, one in both])


def numbered(noun: str, remarks: Sequence[Iterable[Remark]]) -> Iterator[Remark]:
    """The remarks on several pairs or prompts: each once, with the numbers of those that it is about."""
    numbers_of: dict[Remark, list[int]] = {}
    for number, on_one in enumerate(remarks):
        for remark in on_one:
            numbers_of.setdefault(remark, []).append(number)
    for remark, numbers in numbers_of.items():
        first = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
        prefix = f"{noun}{'s' if len(numbers) > 1 else ''} {first} of {len(remarks)} (counted from 0): "
        yield remark if len(remarks) == 1 else replace(remark, text=prefix + remark.text)
