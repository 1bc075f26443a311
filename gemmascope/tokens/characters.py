"""Tokens that are the bytes of one character: where a vocabulary lacks a character, its tokenizer spells it in bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class ByteOf:
    """What a token of a character is. text: the character. nth: which of its `of` tokens this is, from 0."""

    text: str
    nth: int
    of: int

    def __str__(self) -> str:
        return f"byte {self.nth + 1} of {self.of} of {self.text}"


def characters_of(texts: Sequence[str]) -> list[ByteOf | None]:
    """Which of these tokens, which follow each other, are bytes of one character; None for the others.

    Bytes that make no character, as a text that is cut within one leaves behind, are none.

    Examples:
        >>> [str(one) for one in characters_of(["<0xC3>", "<0xA9>", "a", "<0xE4>"])]
        ['byte 1 of 2 of é', 'byte 2 of 2 of é', 'None', 'None']
    """
    matches = [_BYTE.fullmatch(text) for text in texts]
    values = [int(match[1], 16) if match else -1 for match in matches]
    found: list[ByteOf | None] = [None] * len(texts)
    at = 0
    while at < len(values):
        first = values[at]
        n = 0 if first < 0xC2 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4
        part = values[at : at + n]
        try:
            character = bytes(part).decode() if n and len(part) == n and min(part) >= 0 else ""
        except UnicodeDecodeError:
            character = ""
        if character:
            found[at : at + n] = [ByteOf(character, nth, n) for nth in range(n)]
        at += n if character else 1
    return found


def text_of(tokens: Sequence[str]) -> str:
    """Tokens as the text that they are, bytes as their character, without `<bos>` in front."""
    rest = tokens[1:] if tokens and tokens[0] == "<bos>" else tokens

    def part(token: str, character: ByteOf | None) -> str:
        if character is not None:
            return "" if character.nth else character.text
        found = _BYTE.fullmatch(token)
        return chr(int(found[1], 16)) if found and int(found[1], 16) < 0x80 else token

    return "".join(map(part, rest, characters_of(rest)))
