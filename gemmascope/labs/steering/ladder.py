"""Ladder: the texts that the model writes at some strengths, in shared passes, and what is new in each."""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher

from gemmascope.edits.edit import Edit
from gemmascope.generation.generate import growing_texts
from gemmascope.model.model import Model, Prompt

# A word with the space before it; the space at the end by itself.
_WORD = re.compile(r"\s*\S+|\s+$")

# A stretch of text, and whether it is not in the unsteered text.
Stretch = tuple[str, bool]


@dataclass
class Ladder:
    """strengths: the rungs, 0 among them; empty until they are chosen. texts: what is written at each so far. is_written:
    whether they are complete.
    """

    strengths: Sequence[float] = ()
    texts: list[str] = field(default_factory=list)
    is_written: bool = False

    def steps(self, prompt: Prompt, model: Model, edits: Sequence[Sequence[Edit]], max_new_tokens: int) -> Generator[None]:
        """Write the texts together, one token of each a step. edits: those of each rung."""
        if self.is_written:
            return
        for continuations in growing_texts(prompt, model, edits, max_new_tokens):
            self.texts = [text for text, _ in continuations]
            yield
        self.is_written = True
        yield

    @property
    def unsteered(self) -> str:
        return self.texts[list(self.strengths).index(0.0)] if self.texts else ""


def stretches(text: str, other: str) -> list[Stretch]:
    """A text in stretches of words that stand in another text as well, in the same order, and of words that do not."""
    words, others = _WORD.findall(text), _WORD.findall(other)
    kept = [""] * len(words)
    for start, _, length in SequenceMatcher(None, words, others, autojunk=False).get_matching_blocks():
        kept[start : start + length] = ["same"] * length
    result: list[Stretch] = []
    for word, mark in zip(words, kept, strict=True):
        is_other = not mark
        if result and result[-1][1] == is_other:
            result[-1] = (result[-1][0] + word, is_other)
        else:
            result.append((word, is_other))
    return result
