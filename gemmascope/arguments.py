"""What users type, checked in one place: whole numbers and finite numbers, of Python, numpy or torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import islice
from numbers import Real
from typing import Any

from gemmascope.errors import GemmascopeError

# What a user's iterable may give: an endless one would never come back.
MOST = 2**20


def whole_number(
    given: Any, name: str, *, least: int | None = None, most: int | None = None, error: type[GemmascopeError]
) -> int:
    """A whole number as an int. Takes Python's and numpy's integers and 0-d integer tensors; True and 2.0 are refused.

    Args:
        given: What the user typed.
        name: What it is called in the error, such as "top".
        least: The smallest number allowed; None for no bound.
        most: The largest number allowed; None for no bound.
        error: The class to raise.

    Raises:
        error: It is no whole number, or outside the bounds. Says what was given and what is allowed.
    """
    if is_whole(given):
        number = int(given)
        if (least is None or number >= least) and (most is None or number <= most):
            return number
    raise error(f"{name} is a whole number{_bounds(least, most)}; given {shown(given)}")


def finite_number(given: Any, name: str, *, error: type[GemmascopeError]) -> float:
    """A finite number as a float. Takes Python's and numpy's real numbers and 0-d tensors; True and texts are refused.

    Raises:
        error: It is no number, or NaN, infinite, or too large for a float. Says what was given.
    """
    if is_number(given):
        try:
            number = float(given)
        except (OverflowError, RuntimeError):  # 10**400; a tensor on the meta device
            number = math.nan
        if math.isfinite(number):
            return number
    raise error(f"{name} is a finite number; given {shown(given)}")


def is_whole(given: Any) -> bool:
    """Whether this is one whole number: a Python or numpy integer or a 0-d integer tensor, and no boolean."""
    if isinstance(given, (bool, type)) or not hasattr(given, "__index__") or getattr(given, "ndim", 0) != 0:
        return False
    if getattr(given, "is_meta", False):  # a tensor without values
        return False
    dtype = str(getattr(given, "dtype", ""))
    return "bool" not in dtype and "float" not in dtype and "complex" not in dtype


def is_number(given: Any) -> bool:
    """Whether this is one real number, whole or not, and no boolean."""
    if isinstance(given, bool) or getattr(given, "ndim", 0) != 0 or getattr(given, "is_meta", False):
        return False
    dtype = str(getattr(given, "dtype", ""))
    if dtype:
        return "bool" not in dtype and "complex" not in dtype and any(kind in dtype for kind in ("int", "float"))
    return isinstance(given, Real)


def equals_text(given: Any, word: str) -> bool:
    """Whether this is that very text. An array compared with one is an array."""
    return isinstance(given, str) and given == word


def true_or_false(given: Any, name: str, *, error: type[GemmascopeError]) -> bool:
    """A choice of two as a bool. Takes Python's and numpy's booleans; numbers, texts and lists are refused.

    Raises:
        error: It is something else. Says what was given.
    """
    if isinstance(given, bool) or (type(given).__module__ == "numpy" and type(given).__name__ in ("bool", "bool_")):
        return bool(given)
    raise error(f"{name} is True or False; given {shown(given)}")


def one_of(given: Any, name: str, choices: Iterable[str], *, error: type[GemmascopeError]) -> str:
    """One of some words. Texts only: an array compared with a text is an array.

    Raises:
        error: It is another. Says what was given and which there are.
    """
    words = tuple(choices)
    if isinstance(given, str) and given in words:
        return given
    raise error(f"{name} is one of {', '.join(map(repr, words))}; given {shown(given)}")


def as_list(given: Any, name: str, *, error: type[GemmascopeError]) -> list[Any]:
    """What an iterable gives, as a list, whose members are still to be checked.

    Raises:
        error: It is none, as a text, a mapping, a type or a tensor of no axis is none; or it gives more than MOST, as a
            generator without an end does.
    """
    if isinstance(given, (str, bytes, bytearray, Mapping, type)) or not isinstance(given, Iterable):
        raise error(f"{name} is a list; given {shown(given)}")
    try:
        found = list(islice(given, MOST + 1))
    except Exception as failure:  # of a tensor or an array without an axis; and a generator's own
        raise error(f"{name} is a list, and cannot be read as one: {type(failure).__name__}: {failure}") from failure
    if len(found) > MOST:
        raise error(f"{name} holds more than {MOST:,}: given {shown(given)}, which may have no end")
    return found


def as_words(given: Any) -> list[str] | None:
    """One word, or several in a list, as a list; None for what is neither."""
    try:
        words = [given] if isinstance(given, str) else as_list(given, "words", error=GemmascopeError)
    except GemmascopeError:
        return None
    return [str(word) for word in words] if all(isinstance(word, str) for word in words) else None


def as_numbers(given: Any) -> list[Any] | None:
    """What a user wrote for one number or several, as a list, whose members are still to be checked; None for neither.

    Takes a number, a list, tuple, range, generator, tensor or array of one axis; a set in rising order, as it has none.
    Texts, mappings, and what has more axes than one are neither.
    """
    if getattr(given, "is_meta", False) or isinstance(given, (str, bytes, bytearray, Mapping, type)):
        return None
    if hasattr(given, "tolist"):  # tensors, numpy's arrays and their numbers
        try:
            given = given.tolist()
        except (RuntimeError, TypeError, NotImplementedError, ValueError):  # a sparse or nested tensor
            return None
    if is_whole(given):
        return [given]
    if isinstance(given, (set, frozenset)):
        return sorted(given, key=lambda one: (not is_whole(one), int(one) if is_whole(one) else 0))
    # More than MOST are more than there can be of anything: what counts them refuses them.
    return list(islice(given, MOST + 1)) if isinstance(given, Iterable) else None


def _bounds(least: int | None, most: int | None) -> str:
    if least is not None and most is not None:
        return f" from {least} to {most}"
    if least is not None:
        return f" of at least {least}"
    return "" if most is None else f" of at most {most}"


def shown(given: Any) -> str:
    """What was given, for an error, at most some 80 letters of it."""
    try:
        text = repr(given)
    except Exception:  # Python writes no whole number of more than 4,300 digits; and a user's own class may write nothing
        text = f"a whole number of {given.bit_length()} bits" if isinstance(given, int) else f"a {type(given).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."
