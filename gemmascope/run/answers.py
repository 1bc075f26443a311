"""Answers: the tokens that a question is about, as users write them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gemmascope.arguments import as_list, is_whole, shown
from gemmascope.edits.call_text import plain
from gemmascope.errors import PromptError
from gemmascope.model.model import Model

Answer = str | int | Sequence[str | int]


def listed_answers(answer: Any) -> list[Any]:
    """One answer or several, as a list. PromptError for what is neither a text nor a token id."""
    given = answer if isinstance(answer, str) else plain(answer)
    several = isinstance(given, Iterable) and not isinstance(given, (str, bytes, bytearray, Mapping, type))
    answers = as_list(given, "an answer", error=PromptError) if several else [given]
    if not answers:
        raise PromptError("the list of answers is empty")
    if odd := [a for a in answers if not isinstance(a, str) and not is_whole(a)]:
        raise PromptError(f"an answer is a text that is one token, or a token id; given {shown(odd[0])}")
    return [a if isinstance(a, str) else int(a) for a in answers if isinstance(a, str) or is_whole(a)]


def answer_ids(answer: Any, model: Model) -> list[int]:
    """The token ids of one answer or several. PromptError for a text that is not one token, or an id that is none."""
    answers = listed_answers(answer)
    ids = [model.tokenizer.single(a) if isinstance(a, str) else a for a in answers]
    if len(set(ids)) < len(ids):
        raise PromptError(f"the answers name a token twice: {shown(answers)}")
    if wrong := [i for i in ids if not 0 <= i < model.config.vocab_size]:
        raise PromptError(
            f"token id {shown(wrong[0])} is outside the vocabulary: ids go from 0 to {model.config.vocab_size - 1}"
        )
    return ids
