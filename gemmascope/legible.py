"""Text that is safe to show in a terminal or a page: invisible and direction-changing characters are spelled out.

Model names, tokens, prompts, labels and paths come from files that somebody else wrote. An escape code in one of them could
move the terminal's cursor or colour it, and a direction mark could make a line read as a different one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

SelfT = TypeVar("SelfT")

# Invisible, but the characters around them need them: 👩‍👧, and letters of Indic scripts.
_JOINERS = "\u200c\u200d"


def legible_line(text: str) -> str:
    """One line of text with its escape codes, line ends and direction marks spelled out, as \\x1b or \\u202e."""
    if text.isprintable():
        return text
    joins = _JOINERS if len(text) > 1 else ""
    return "".join(c if c.isprintable() or c in joins else c.encode("unicode_escape").decode() for c in text)


def legible(text: str) -> str:
    """Text of several lines: line ends and tabs stay, everything else that `legible_line` escapes is spelled out."""
    return "".join(c if c in "\n\t" else legible_line(c) for c in text) if not text.isprintable() else text


def signed(value: float, largest: float, digits: int = 4) -> str:
    """A number with its sign, to so many digits: '+1.25', and '0' for what is rounding beside the largest number shown."""
    return "0" if abs(value) < 1e-6 * abs(largest) or value == 0 else f"{value:+.{digits}g}"


def prints_legibly(method: Callable[[SelfT], str]) -> Callable[[SelfT], str]:
    """Decorator for a __repr__ or __str__: passes what it returns through `legible`."""

    @wraps(method)
    def wrapper(self: SelfT) -> str:
        return legible(method(self))

    return wrapper
