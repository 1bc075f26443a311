"""When a text that is generated ends: at a token, or at a text; and its text as it comes, token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemmascope.errors import GenerationError, PromptError
from gemmascope.model.model import Model
from gemmascope.tokens import Tokenizer

END_OF_TURN = "<end_of_turn>"

# A character is at most so many lone bytes; and so many tokens before one are enough to read it as in the whole text.
MOST_BYTES, BEFORE = 4, 8

REPLACEMENT = "\ufffd"  # what a decoder writes where bytes are no character, or not yet


@dataclass(frozen=True)
class Stopping:
    """ids: tokens that end a text. texts: texts that do."""

    ids: frozenset[int]
    texts: tuple[str, ...]

    @classmethod
    def of(cls, stop: Any, prompt: Any, model: Model) -> Stopping:
        """What stop= asks for, with the model's end tokens; after chat messages also the end of a turn.

        GenerationError for a text that no sequence of tokens holds, or anything that is neither a text nor an id.
        """
        listed = [stop] if isinstance(stop, (str, int)) else list(stop) if isinstance(stop, Sequence) else [stop]
        ids = set(model.config.eos_ids)
        if _is_chat(prompt):
            ids |= _end_of_turn(model.tokenizer)
        texts = []
        for one in listed:
            if isinstance(one, int) and not isinstance(one, bool) and 0 <= one < model.config.vocab_size:
                ids.add(one)
            elif isinstance(one, str):
                _require_possible(one, model)
                texts.append(one)
            else:
                raise GenerationError(f"stop is a text, a token id, or a list of such; given {one!r}")
        return cls(frozenset(ids), tuple(texts))


class Writing:
    """The text of one run's new tokens, as they come."""

    def __init__(self, tokenizer: Tokenizer | None, stopping: Stopping) -> None:
        self.tokenizer, self.stopping = tokenizer, stopping
        self.text = ""
        self._ids: list[int] = []
        self._written = 0  # tokens whose text was given out

    def add(self, token: int) -> tuple[str, str | None]:
        """Take a token: the text that is whole with it, and why the run ends here, or None if it goes on."""
        self._ids.append(token)
        if token in self.stopping.ids:
            return self.rest(), f"token {token}" if self.tokenizer is None else self.tokenizer.text(token)
        piece = self._whole_piece()
        before, self.text = len(self.text), self.text + piece
        for text in self.stopping.texts:
            if text in self.text[max(0, before - len(text) + 1) :]:
                return piece, repr(text)
        return piece, None

    def rest(self) -> str:
        """The text of tokens that were held back because a character was not whole."""
        if self.tokenizer is None or self._written == len(self._ids) or self._ids[-1] in self.stopping.ids:
            return ""
        return self._piece()

    def _whole_piece(self) -> str:
        if self.tokenizer is None:
            return ""
        waiting = len(self._ids) - self._written
        piece = self._piece()
        if piece.endswith(REPLACEMENT) and waiting < MOST_BYTES:
            return ""
        self._written = len(self._ids)
        return piece

    def _piece(self) -> str:
        """The text of the tokens that are still to be given out, read after the ones before them."""
        assert self.tokenizer is not None
        first = max(0, self._written - BEFORE)
        before = self.tokenizer.decode(self._ids[first : self._written])
        return self.tokenizer.decode(self._ids[first:])[len(before) :]


def _is_chat(prompt: Any) -> bool:
    return isinstance(prompt, Sequence) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def _end_of_turn(tokenizer: Tokenizer) -> set[int]:
    ids = tokenizer.encode(END_OF_TURN)
    return set(ids) if len(ids) == 1 else set()


def _require_possible(text: str, model: Model) -> None:
    if not text:
        raise GenerationError("a stop text is at least one character; given an empty text")
    try:
        possible = can_occur(text, model.tokenizer)
    except PromptError as error:
        raise GenerationError(f"stop={text!r} cannot be looked for: {error}") from error
    if not possible:
        raise GenerationError(f"the stop text {text!r} cannot occur: no sequence of {model.name!r}'s tokens holds it")


def can_occur(text: str, tokenizer: Tokenizer) -> bool:
    """Whether some sequence of tokens has a text that holds this one."""
    if text in tokenizer.decode(tokenizer.encode(text)):
        return True
    pieces = set(tokenizer.texts(range(tokenizer.vocab_size)))
    if any(text in piece for piece in pieces):
        return True
    # The text may begin inside a token, go on through whole ones, and end inside another.
    begun = {n for piece in pieces for n in range(1, min(len(piece), len(text))) if piece.endswith(text[:n])}
    reached = {0, *begun}
    for start in range(len(text)):
        if start in reached:
            rest = text[start:]
            if any(piece.startswith(rest) for piece in pieces):
                return True
            reached |= {start + n for n in range(1, len(rest)) if rest[:n] in pieces}
    return False
