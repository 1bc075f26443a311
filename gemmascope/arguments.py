"""Checks of what users type: whole numbers, finite numbers, booleans, words and lists, of Python, numpy or torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import islice
from numbers import Real
from typing import SupportsFloat, SupportsIndex, TypeGuard

from gemmascope.errors import GemmascopeError

# The most items read from a user's iterable: an endless generator would never return.
MAX_ITEMS = 2**20


def whole_number(
    value: object, name: str, *, least: int | None = None, most: int | None = None, error: type[GemmascopeError]
) -> int:
    """A whole number as an int. Takes Python's and numpy's integers and 0-d integer tensors; refuses True and 2.0.

    Args:
        value: What the user typed.
        name: The argument's name for the error, such as "top".
        least: The smallest number allowed; None for no bound.
        most: The largest number allowed; None for no bound.
        error: The class to raise.

    Raises:
        error: The value is not a whole number, or is outside the bounds. The message says what is allowed.
    """
    if is_whole(value):
        number = int(value)
        if (least is None or number >= least) and (most is None or number <= most):
            return number
    raise error(f"{name} is a whole number{_bounds(least, most)}; given {short_repr(value)}")


def finite_number(value: object, name: str, *, error: type[GemmascopeError]) -> float:
    """A finite number as a float. Takes Python's and numpy's real numbers and 0-d tensors; refuses True and strings.

    Raises:
        error: The value is not a number, or is NaN, infinite or too large for a float.
    """
    if is_number(value):
        try:
            number = float(value)
        except (OverflowError, RuntimeError):  # 10**400; a tensor on the meta device
            number = math.nan
        if math.isfinite(number):
            return number
    raise error(f"{name} is a finite number; given {short_repr(value)}")


def is_whole(value: object) -> TypeGuard[SupportsIndex]:
    """Whether this is a single whole number: a Python or numpy integer or a 0-d integer tensor, but not a boolean."""
    if isinstance(value, (bool, type)) or not hasattr(value, "__index__") or getattr(value, "ndim", 0) != 0:
        return False
    if getattr(value, "is_meta", False):  # a tensor without values
        return False
    dtype = str(getattr(value, "dtype", ""))
    return "bool" not in dtype and "float" not in dtype and "complex" not in dtype


def is_number(value: object) -> TypeGuard[SupportsFloat]:
    """Whether this is a single real number, whole or not, but not a boolean."""
    if isinstance(value, bool) or getattr(value, "ndim", 0) != 0 or getattr(value, "is_meta", False):
        return False
    dtype = str(getattr(value, "dtype", ""))
    if dtype:
        return "bool" not in dtype and "complex" not in dtype and any(kind in dtype for kind in ("int", "float"))
    return isinstance(value, Real)


def equals_text(value: object, text: str) -> bool:
    """Whether this is exactly that string. Comparing an array with == would give an array."""
    return isinstance(value, str) and value == text


def true_or_false(value: object, name: str, *, error: type[GemmascopeError]) -> bool:
    """A boolean as a bool. Takes Python's and numpy's booleans; refuses numbers, strings and lists.

    Raises:
        error: The value is anything else.
    """
    if isinstance(value, bool) or (type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_")):
        return bool(value)
    raise error(f"{name} is True or False; given {short_repr(value)}")


def one_of(value: object, name: str, choices: Iterable[str], *, error: type[GemmascopeError]) -> str:
    """One of several strings.

    Raises:
        error: The value is anything else. The message lists the choices.
    """
    allowed = tuple(choices)
    if isinstance(value, str) and value in allowed:
        return value
    raise error(f"{name} is one of {', '.join(map(repr, allowed))}; given {short_repr(value)}")


def is_list(value: object) -> TypeGuard[Iterable[object]]:
    """Whether this can be read as a list: an iterable that is no string, mapping or type."""
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes, bytearray, Mapping, type))


def as_list(value: object, name: str, *, error: type[GemmascopeError]) -> list[object]:
    """The items of an iterable as a list. The caller checks the items.

    Raises:
        error: The value is a string, a mapping, a type, a 0-d tensor or not iterable; or it yields more than MAX_ITEMS,
            as an endless generator does.
    """
    if not is_list(value):
        raise error(f"{name} is a list; given {short_repr(value)}")
    try:
        items = list(islice(value, MAX_ITEMS + 1))
    except Exception as failure:  # iterating over a 0-d tensor or array fails, and so may a user's generator
        raise error(f"{name} is a list, and cannot be read as one: {type(failure).__name__}: {failure}") from failure
    if len(items) > MAX_ITEMS:
        raise error(f"{name} holds more than {MAX_ITEMS:,}: given {short_repr(value)}, which may have no end")
    return items


def as_words(value: object) -> list[str] | None:
    """One string or a list of strings, as a list; None for anything else."""
    try:
        words = [value] if isinstance(value, str) else as_list(value, "words", error=GemmascopeError)
    except GemmascopeError:
        return None
    return [str(word) for word in words] if all(isinstance(word, str) for word in words) else None


def as_numbers(value: object) -> list[object] | None:
    """One number or several, as a list whose items the caller checks; None for anything else.

    Takes a number, a list, tuple, range, generator, or a tensor or array with one axis. A set is sorted. Strings, mappings
    and arrays with more axes give None.
    """
    value = as_python(value, unreadable=None)
    if is_whole(value):
        return [value]
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=lambda item: (not is_whole(item), int(item) if is_whole(item) else 0))
    # An endless iterable gives more than MAX_ITEMS, which the caller refuses as too many.
    return list(islice(value, MAX_ITEMS + 1)) if is_list(value) else None


def as_python(value: object, *, unreadable: object) -> object:
    """A tensor, an array or one of its numbers as Python's lists and numbers; anything else unchanged.

    unreadable: What to return for a tensor whose numbers cannot be listed: a meta, sparse or nested one.
    """
    if not hasattr(value, "tolist"):
        return value
    try:
        return value.tolist()
    except (RuntimeError, TypeError, NotImplementedError, ValueError):
        return unreadable


def _bounds(least: int | None, most: int | None) -> str:
    if least is not None and most is not None:
        return f" from {least} to {most}"
    if least is not None:
        return f" of at least {least}"
    return "" if most is None else f" of at most {most}"


def whole_text(value: int) -> str:
    """A whole number as Python code. Python writes none of more than 4,300 digits in base 10."""
    return str(value) if value.bit_length() < 128 else hex(value)


def short_repr(value: object) -> str:
    """A value's repr for an error message, cut to 80 characters."""
    try:
        text = repr(value)
    except Exception:  # Python writes no whole number of more than 4,300 digits, and a user's own class may fail
        text = f"a whole number of {value.bit_length()} bits" if isinstance(value, int) else f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."
