"""Text as a terminal or a page can take it: what nobody sees, or what turns its neighbours round, is spelled out.

Model names, tokens, prompts, labels and paths come from files that somebody else wrote. An escape code in one of them would
move a terminal's cursor or colour it, and a mark of direction would make a line read as another.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

SelfT = TypeVar("SelfT")

# Invisible, but what is round them reads otherwise without them: 👩‍👧, and letters of Indic scripts.
_JOINERS = "\u200c\u200d"


def spelled(text: str) -> str:
    """One line of text with its escape codes, line ends and marks of direction spelled out, as \\x1b or \\u202e."""
    if text.isprintable():
        return text
    joins = _JOINERS if len(text) > 1 else ""
    return "".join(c if c.isprintable() or c in joins else c.encode("unicode_escape").decode() for c in text)


def legible(text: str) -> str:
    """Text of any length as a terminal can take it: lines stay lines, escape codes are spelled out."""
    return "".join(c if c in "\n\t" else spelled(c) for c in text) if not text.isprintable() else text


def legibly(method: Callable[[SelfT], str]) -> Callable[[SelfT], str]:
    """For a __repr__ or __str__: what it returns is made legible."""

    @wraps(method)
    def made_legible(self: SelfT) -> str:
        return legible(method(self))

    return made_legible
