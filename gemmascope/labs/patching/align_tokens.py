"""Two prompts beside each other, token by token, with what differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from gemmascope.arguments import whole_number
from gemmascope.errors import PromptError, SweepError
from gemmascope.model.model import Model, Prompt


@dataclass(frozen=True)
class Column:
    """Positions of two tokens that stand for each other, None where one prompt has none. same: whether they are equal."""

    clean: int | None
    corrupt: int | None
    same: bool


def align(clean: Sequence[int], corrupt: Sequence[int]) -> list[Column]:
    """Columns of two prompts' ids: by position if they are equally long, else with gaps, so that like tokens meet."""
    if len(clean) == len(corrupt):
        return [Column(i, i, a == b) for i, (a, b) in enumerate(zip(clean, corrupt, strict=True))]
    columns = []
    for _, a, a_stop, b, b_stop in SequenceMatcher(None, clean, corrupt, autojunk=False).get_opcodes():
        for offset in range(max(a_stop - a, b_stop - b)):
            clean_index = a + offset if a + offset < a_stop else None
            corrupt_index = b + offset if b + offset < b_stop else None
            same = clean_index is not None and corrupt_index is not None and clean[clean_index] == corrupt[corrupt_index]
            columns.append(Column(clean_index, corrupt_index, same))
    return columns


def first_gap(columns: Sequence[Column], clean: list[str], corrupt: list[str]) -> tuple[int, list[str], list[str]]:
    """The first stretch of differing columns with a gap: its first position, and each prompt's tokens in it."""
    gap = next(i for i, column in enumerate(columns) if column.clean is None or column.corrupt is None)
    first = last = gap
    while first > 0 and not columns[first - 1].same:
        first -= 1
    if first > 0 and _continues_word(columns[first], clean, corrupt):  # the token before is the start of a differing word
        first -= 1
    while last < len(columns) and not columns[last].same:
        last += 1
    block = columns[first:last]
    clean_tokens = [clean[c.clean] for c in block if c.clean is not None]
    corrupt_tokens = [corrupt[c.corrupt] for c in block if c.corrupt is not None]
    position = min(n for c in block[:1] for n in (c.clean, c.corrupt) if n is not None)
    return position, clean_tokens, corrupt_tokens


def _continues_word(column: Column, clean: list[str], corrupt: list[str]) -> bool:
    """Whether a token of the column continues the word before it."""
    texts = [] if column.clean is None else [clean[column.clean]]
    texts += [] if column.corrupt is None else [corrupt[column.corrupt]]
    return any(text[:1].isalnum() for text in texts)


def aligned_data(model: Model, clean: list[int], corrupt: list[int]) -> list[dict[str, object]]:
    """The columns as data: {"clean": token, "corrupt": token, "same"}, a token {"pos", "text", "special"} or None."""

    def token(ids: list[int], position: int | None) -> dict[str, object] | None:
        if position is None:
            return None
        special = model.has_tokenizer and model.tokenizer.is_special(ids[position])
        text = model.tokenizer.text(ids[position]) if model.has_tokenizer else str(ids[position])
        return {"pos": position, "text": text, "special": special}

    return [
        {"clean": token(clean, c.clean), "corrupt": token(corrupt, c.corrupt), "same": c.same} for c in align(clean, corrupt)
    ]


def with_token(prompt: Prompt, position: object, text: str, model: Model) -> Prompt:
    """A prompt with another token at a position: as text if it is a text, else as token ids. A word after a space keeps it.

    SweepError for a position that the prompt does not have, or of a control token; PromptError for what is no token.
    """
    ids = model.ids(prompt).tolist()
    place = whole_number(position, "a position", least=0, most=len(ids) - 1, error=SweepError)
    if not model.has_tokenizer:
        new = whole_number(_number(text), "a token id", least=0, most=model.config.vocab_size - 1, error=PromptError)
        return [*ids[:place], new, *ids[place + 1 :]]
    tokenizer = model.tokenizer
    if tokenizer.is_special(ids[place]):
        raise SweepError(f"position {place} holds a control token, which stays: change a token of the text")
    texts = tokenizer.texts(ids)
    if texts[place].startswith(" ") and not text.startswith(" "):
        text = f" {text}"
    written = tokenizer.encode(text)
    if len(written) != 1:
        raise PromptError(f"a token is swapped for one token; {text!r} is {len(written)}: {tokenizer.texts(written)}")
    first = 1 if tokenizer.is_special(ids[0]) else 0
    if isinstance(prompt, str) and "".join(texts[first:]) == prompt:
        return "".join([*texts[first:place], text, *texts[place + 1 :]])
    return [*ids[:place], *written, *ids[place + 1 :]]


def _number(text: str) -> object:
    return int(text) if text.strip().isdecimal() else text
