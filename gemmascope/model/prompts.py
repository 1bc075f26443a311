"""Prompts as users hold them: one or several, in lists, columns of tables, arrays or generators; one door for all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor

from gemmascope.arguments import as_list, is_whole
from gemmascope.errors import PromptError

_KINDS = "a prompt is text, token ids or chat messages"


def as_prompts(given: Any) -> Any:
    """One prompt or several, with columns, arrays of texts and generators as lists. PromptError for what is no prompt.

    Lists, tensors and arrays of token ids stay as they are.
    """
    if isinstance(given, (str, Tensor)):
        return given
    if hasattr(given, "ids") and hasattr(given, "stream"):
        raise PromptError(f"{_KINDS}; given a {type(given).__name__}: give its token ids, .ids")
    if isinstance(given, (bytes, bytearray)):
        raise PromptError(f"{_KINDS}; given {type(given).__name__}: make them text first, with .decode()")
    if isinstance(given, Mapping):
        raise PromptError(f"{_KINDS}; given a {type(given).__name__}: {_of_mapping(given)}")
    if isinstance(given, Set):
        raise PromptError(f"prompts stand in an order; given a {type(given).__name__}: give a list, such as sorted(...)")
    if hasattr(given, "__array__"):
        return _of_array(given)
    if isinstance(given, Iterable) and not isinstance(given, (Sequence, type)):
        return as_list(given, "the list of prompts", error=PromptError)
    return given


def listed_prompts(given: Any) -> tuple[list[Any], bool]:
    """The prompts that were given as a list, and whether they are several rather than one. PromptError as in as_prompts."""
    given = as_prompts(given)
    many = is_many(given)
    return (list(given) if many else [given]), many


@contextmanager
def numbered(what: str, number: int, n_all: int) -> Iterator[None]:
    """Around one prompt of several: a PromptError says the number of the one that it is about."""
    try:
        yield
    except PromptError as error:
        if n_all == 1:
            raise
        raise PromptError(f"{what} {number} of {n_all} (counted from 0): {error}") from error


def is_many(prompt: Any) -> bool:
    """Whether this is a list of prompts rather than one prompt: texts, lists or tensors of ids, or conversations."""
    if isinstance(prompt, (str, bytes, Tensor)) or not isinstance(prompt, Sequence) or not prompt:
        return False
    if any(isinstance(p, str) for p in prompt) and not any(map(is_whole, prompt)):
        return True
    return all(map(_is_one, prompt))


def _is_one(given: Any) -> bool:
    """Whether an item of a list is a prompt, or was meant as one, rather than a token id or a message."""
    if isinstance(given, (str, Sequence)) or hasattr(given, "stream"):
        return True
    return hasattr(given, "__array__") and getattr(given, "ndim", 0) > 0


def _of_mapping(given: Mapping[Any, Any]) -> str:
    if "role" in given:
        return "write a conversation of one message as a list, [message]"
    if "input_ids" in given:
        return "give its ['input_ids'], those of one prompt"
    return "give its texts as a list, list(prompts.values())"


def _of_array(given: Any) -> Any:
    """An array of texts as a list; one of numbers as it is."""
    array = np.asarray(given)
    if array.dtype.kind not in "OUST":
        return given
    if array.ndim > 1:
        raise PromptError(f"prompts stand in one column; given a {type(given).__name__} of shape {array.shape}")
    return array.tolist()
