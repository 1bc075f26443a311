"""When a generated text stops, at a token or at a text, and its text as the tokens arrive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gemmascope.arguments import as_numbers, is_whole, short_repr
from gemmascope.errors import GenerationError, PromptError
from gemmascope.model.model import Model
from gemmascope.model.prompts import is_chat
from gemmascope.tokens.tokenizer import Tokenizer

END_OF_TURN = "<end_of_turn>"

# The most bytes, each its own token, that make one character.
MOST_BYTES = 4

REPLACEMENT = "\ufffd"  # written by a decoder for bytes that are not, or not yet, a character


@dataclass(frozen=True)
class Stopping:
    """What ends a text. ids: tokens that end it. silent: those of them that are not part of it. texts: texts that end it."""

    ids: frozenset[int]
    silent: frozenset[int]
    texts: tuple[str, ...]

    @classmethod
    def of(cls, stop: object, prompt: object, model: Model) -> Stopping:
        """From the user's stop=, with the model's end tokens and, after chat messages, the end of a turn.

        GenerationError for a text that no sequence of tokens can contain, or a value that is neither text nor id.
        """
        end_ids = set(model.config.eos_ids)
        if is_chat(prompt):
            end_ids |= _control(END_OF_TURN, model.tokenizer)
        ids: set[int] = set()
        texts = []
        for one in _listed(stop):
            if isinstance(one, str):
                _require_possible(one, model)
                control = _control(one, model.tokenizer)
                ids |= control
                texts += [] if control else [one]
            else:
                ids.add(_token(one, model))
        silent = end_ids | {i for i in ids if model.has_tokenizer and _is_control(i, model.tokenizer)}
        return cls(frozenset(end_ids | ids), frozenset(silent), tuple(texts))


class IncrementalDetokenizer:
    """Decodes the new tokens of one run one by one.

    before: the prompt's ids, since some decoders drop a space at the very start of a text.
    """

    def __init__(self, tokenizer: Tokenizer | None, stopping: Stopping, before: Sequence[int]) -> None:
        self.tokenizer, self.stopping = tokenizer, stopping
        self.text = ""
        self._decoded = list(before[-1:])  # the last tokens whose text was returned
        self._pending: list[int] = []  # the tokens after them, whose text was not

    def add(self, token: int) -> tuple[str, str | None]:
        """Add a token. Returns the text that it completes, and why the run stops here (None if it does not)."""
        if token not in self.stopping.silent:
            self._pending.append(token)
        if token in self.stopping.ids:
            return self.rest(), f"token {token if self.tokenizer is None else repr(self.tokenizer.text(token))}"
        piece = self._piece()
        if piece.endswith(REPLACEMENT) and len(self._pending) < MOST_BYTES:
            return "", None
        before = len(self.text)
        self._append(piece)
        for text in self.stopping.texts:
            if text in self.text[max(0, before - len(text) + 1) :]:
                return piece, f"text {text!r}"
        return piece, None

    def rest(self) -> str:
        """The text of pending tokens, which may end inside a character."""
        return self._append(self._piece())

    def _append(self, piece: str) -> str:
        self.text += piece
        if self._pending:
            self._decoded, self._pending = self._pending, []
        return piece

    def _piece(self) -> str:
        """The text of the pending tokens, decoded after the ones before them."""
        if self.tokenizer is None or not self._pending:
            return ""
        before = self.tokenizer.decode(self._decoded)
        return self.tokenizer.decode([*self._decoded, *self._pending])[len(before) :]


def _listed(stop: object) -> list[object]:
    if isinstance(stop, (str, bytes, Mapping)) or is_whole(stop):
        return [stop]
    listed = as_numbers(stop)
    return [stop] if listed is None else listed


def _token(value: object, model: Model) -> int:
    if not is_whole(value):
        raise GenerationError(f"stop is a text, a token id, or a list of such; given {short_repr(value)}")
    size = model.config.vocab_size
    if not 0 <= int(value) < size:
        raise GenerationError(f"stop={short_repr(int(value))} is no token of {model.name!r}: ids go from 0 to {size - 1}")
    return int(value)


def _control(text: str, tokenizer: Tokenizer) -> set[int]:
    """The id of a text that is one control token; empty otherwise."""
    ids = tokenizer.encode(text)
    return set(ids) if len(ids) == 1 and _is_control(ids[0], tokenizer) else set()


def _is_control(token: int, tokenizer: Tokenizer) -> bool:
    return tokenizer.is_special(token) or tokenizer.text(token) == END_OF_TURN  # which some tokenizers list as text


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
    """Whether the text of some sequence of tokens contains this text."""
    if text in tokenizer.decode(tokenizer.encode(text)):
        return True
    pieces = set(tokenizer.texts(range(tokenizer.vocab_size)))
    if any(text in piece for piece in pieces):
        return True
    # The text may begin inside a token, continue through whole ones, and end inside another.
    # reached: lengths of its prefixes that end at a token boundary.
    first = {n for piece in pieces for n in range(1, min(len(piece), len(text))) if piece.endswith(text[:n])}
    reached = {0, *first}
    for start in range(len(text)):
        if start in reached:
            rest = text[start:]
            if any(piece.startswith(rest) for piece in pieces):
                return True
            reached |= {start + n for n in range(1, len(rest)) if rest[:n] in pieces}
    return False
