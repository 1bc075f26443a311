"""When a text that is generated ends: at a token, or at a text; and its text as it comes, token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemmascope.arguments import as_numbers, is_whole, shown
from gemmascope.errors import GenerationError, PromptError
from gemmascope.model.model import Model
from gemmascope.tokens.tokenizer import Tokenizer

END_OF_TURN = "<end_of_turn>"

# A character is at most so many lone bytes.
MOST_BYTES = 4

REPLACEMENT = "\ufffd"  # what a decoder writes where bytes are no character, or not yet


@dataclass(frozen=True)
class Stopping:
    """ids: tokens that end a text. silent: those of them that are no part of it. texts: texts that end it."""

    ids: frozenset[int]
    silent: frozenset[int]
    texts: tuple[str, ...]

    @classmethod
    def of(cls, stop: Any, prompt: Any, model: Model) -> Stopping:
        """What stop= asks for, with the model's end tokens; after chat messages also the end of a turn.

        GenerationError for a text that no sequence of tokens holds, or anything that is neither a text nor an id.
        """
        ends = set(model.config.eos_ids)
        if _is_chat(prompt):
            ends |= _control(END_OF_TURN, model.tokenizer)
        asked: set[int] = set()
        texts = []
        for one in _listed(stop):
            if isinstance(one, str):
                _require_possible(one, model)
                control = _control(one, model.tokenizer)
                asked |= control
                texts += [] if control else [one]
            else:
                asked.add(_token(one, model))
        silent = ends | {i for i in asked if model.has_tokenizer and _is_control(i, model.tokenizer)}
        return cls(frozenset(ends | asked), frozenset(silent), tuple(texts))


class IncrementalDetokenizer:
    """The text of one run's new tokens, as they come.

    before: the prompt's ids, for a decoder that drops the space at the very start of what it is given.
    """

    def __init__(self, tokenizer: Tokenizer | None, stopping: Stopping, before: Sequence[int]) -> None:
        self.tokenizer, self.stopping = tokenizer, stopping
        self.text = ""
        self._said = list(before[-1:])  # the tokens whose text was given out last
        self._held: list[int] = []  # those after them, whose text was not

    def add(self, token: int) -> tuple[str, str | None]:
        """Take a token: the text that is whole with it, and why the run ends here, or None if it goes on."""
        if token not in self.stopping.silent:
            self._held.append(token)
        if token in self.stopping.ids:
            return self.rest(), f"token {token if self.tokenizer is None else repr(self.tokenizer.text(token))}"
        piece = self._piece()
        if piece.endswith(REPLACEMENT) and len(self._held) < MOST_BYTES:
            return "", None
        before = len(self.text)
        self._say(piece)
        for text in self.stopping.texts:
            if text in self.text[max(0, before - len(text) + 1) :]:
                return piece, f"text {text!r}"
        return piece, None

    def rest(self) -> str:
        """The text of tokens that were held back because a character was not whole."""
        return self._say(self._piece())

    def _say(self, piece: str) -> str:
        self.text += piece
        if self._held:
            self._said, self._held = self._held, []
        return piece

    def _piece(self) -> str:
        """The text of the tokens held back, read after the ones before them."""
        if self.tokenizer is None or not self._held:
            return ""
        before = self.tokenizer.decode(self._said)
        return self.tokenizer.decode([*self._said, *self._held])[len(before) :]


def _listed(stop: Any) -> list[Any]:
    if isinstance(stop, (str, bytes, Mapping)) or is_whole(stop):
        return [stop]
    listed = as_numbers(stop)
    return [stop] if listed is None else listed


def _token(given: Any, model: Model) -> int:
    if not is_whole(given):
        raise GenerationError(f"stop is a text, a token id, or a list of such; given {shown(given)}")
    size = model.config.vocab_size
    if not 0 <= int(given) < size:
        raise GenerationError(f"stop={shown(int(given))} is no token of {model.name!r}: ids go from 0 to {size - 1}")
    return int(given)


def _is_chat(prompt: Any) -> bool:
    return isinstance(prompt, Sequence) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def _control(text: str, tokenizer: Tokenizer) -> set[int]:
    """The control token that a text is; none if it is text."""
    ids = tokenizer.encode(text)
    return set(ids) if len(ids) == 1 and _is_control(ids[0], tokenizer) else set()


def _is_control(token: int, tokenizer: Tokenizer) -> bool:
    return tokenizer.is_special(token) or tokenizer.text(token) == END_OF_TURN  # which some tokenizers say is text


def _require_possible(text: str, model: Model) -> None:
    if not text:
        raise GenerationError("a stop text is at least one character; given an empty text")
    try:
        possible = can_occur(text, model.tokenizer)
    except PromptError as error:
        raise GenerationError(f"stop={text!r} cannot be looked for: {error}") from error
    if not possible:
        raise GenerationError(f"the stop text {text!r} cannot occur: no sequence of tokens of {model.name!r} holds it")


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
