"""Reads prompts as users pass them: one or several, in lists, table columns, arrays or generators."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from gemmascope.arguments import as_list, is_whole, short_repr
from gemmascope.errors import PromptError, warn
from gemmascope.tokens.tokenizer import IMAGE_TOKENS, Message, Tokenizer
from gemmascope.values import real_tensor

Prompt = str | Sequence[int] | Tensor | Sequence[Message]

_KINDS = "a prompt is text, token ids or chat messages"


def as_prompts(prompt: object) -> Any:
    """One prompt or several, with table columns, arrays of texts and generators turned into lists.

    Lists, tensors and arrays of token ids are returned as they are. PromptError for a value that is not a prompt.
    """
    if isinstance(prompt, (str, Tensor)):
        return prompt
    if hasattr(prompt, "ids") and hasattr(prompt, "stream"):
        raise PromptError(f"{_KINDS}; given a {type(prompt).__name__}: give its token ids, .ids")
    if isinstance(prompt, (bytes, bytearray)):
        raise PromptError(f"{_KINDS}; given {type(prompt).__name__}: make them text first, with .decode()")
    if isinstance(prompt, Mapping):
        raise PromptError(f"{_KINDS}; given a {type(prompt).__name__}: {_hint(prompt)}")
    if isinstance(prompt, Set):
        raise PromptError(f"prompts stand in an order; given a {type(prompt).__name__}: give a list, such as sorted(...)")
    if hasattr(prompt, "__array__"):
        return _of_array(prompt)
    if isinstance(prompt, Iterable) and not isinstance(prompt, (Sequence, type)):
        return as_list(prompt, "the list of prompts", error=PromptError)
    return prompt


def listed_prompts(prompt: object) -> tuple[list[Prompt], bool]:
    """The prompts as a list, and whether the user passed several rather than one. PromptError as in as_prompts."""
    prompts = as_prompts(prompt)
    is_list = is_prompt_list(prompts)
    return (list(prompts) if is_list else [prompts]), is_list


@contextmanager
def number_errors(what: str, number: int, n_all: int) -> Iterator[None]:
    """Adds the number of a prompt, one of several, to the PromptErrors raised inside."""
    try:
        yield
    except PromptError as error:
        if n_all == 1:
            raise
        raise PromptError(f"{what} {number} of {n_all} (counted from 0): {error}") from error


def is_prompt_list(prompt: object) -> bool:
    """Whether this is a list of prompts rather than one prompt: texts, lists or tensors of ids, or conversations."""
    if isinstance(prompt, (str, bytes, Tensor)) or not isinstance(prompt, Sequence) or not prompt:
        return False
    if any(isinstance(p, str) for p in prompt) and not any(map(is_whole, prompt)):
        return True
    return all(map(_is_one, prompt))


def _is_one(item: object) -> bool:
    """Whether an item of a list is a prompt, or meant as one, rather than a token id or a message."""
    if isinstance(item, (str, Sequence)) or hasattr(item, "stream"):
        return True
    return hasattr(item, "__array__") and getattr(item, "ndim", 0) > 0


def _hint(mapping: Mapping[str, object]) -> str:
    if "role" in mapping:
        return "write a conversation of one message as a list, [message]"
    if "pixel_values" in mapping:
        return "it holds an image, and the text model runs alone here. Of a prompt without one, give its ['input_ids']"
    if "input_ids" in mapping:
        return "give its ['input_ids'], those of one prompt"
    return "give its texts as a list, list(prompts.values())"


def _of_array(value: object) -> object:
    """An array of texts as a list; an array of numbers unchanged."""
    array = np.asarray(value)
    if array.dtype.kind not in "OUST":
        return value
    if array.ndim > 1:
        raise PromptError(f"prompts stand in one column; given a {type(value).__name__} of shape {array.shape}")
    return array.tolist()


def warn_of_images(prompt: object, ids: Tensor, tokenizer: Tokenizer | None) -> None:
    """Warn of a prompt with a token that stands for an image: the text model runs alone, and reads none."""
    in_text = [name for name in IMAGE_TOKENS if name in prompt] if isinstance(prompt, str) else []
    known = {} if tokenizer is None else tokenizer.image_tokens
    found = [*in_text, *(name for name, token_id in known.items() if bool((ids == token_id).any()))]
    if found:
        warn(
            f"the prompt holds {found[0]!r}, behind which a multimodal Gemma reads an image: the text model runs alone "
            "here, and takes it as a token like any other"
        )


def is_chat(prompt: object) -> bool:
    """Whether a prompt is a list of chat messages."""
    return _is_list(prompt) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def _is_list(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def as_ids(prompt: object) -> Tensor:
    """Token ids as a tensor, int64 [pos]. PromptError for a value that is not one sequence of whole numbers."""
    if isinstance(prompt, Tensor) and not prompt.is_complex() and not prompt.is_floating_point():
        prompt = real_tensor(prompt, "a prompt of token ids", PromptError)
    ids = prompt if isinstance(prompt, Tensor) else _tensor_of(prompt)
    if ids.is_nested:
        raise PromptError("the token ids of one prompt have one axis, [pos]; given a nested tensor")
    if ids.dim() == 2 and len(ids) == 1:  # the batch axis that transformers' tokenizers put in front
        ids = ids[0]
    if ids.dim() != 1:
        raise PromptError(f"the token ids of one prompt have one axis, [pos]; given shape {tuple(ids.shape)}")
    if len(ids) == 0:
        raise PromptError("the prompt is empty: give at least one token id")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise PromptError(f"token ids are whole numbers; given a tensor of {ids.dtype}")
    return ids.long()


def _tensor_of(prompt: object) -> Tensor:
    if hasattr(prompt, "__array__"):  # numpy, pandas, xarray
        array = np.asarray(prompt)
        if array.dtype.kind not in "iu":
            raise PromptError(f"token ids are whole numbers; given an array of {array.dtype}")
        return torch.from_numpy(array.astype(np.int64))
    if not _is_list(prompt):
        raise PromptError(f"a prompt is text, token ids or chat messages; given {type(prompt).__name__}")
    return torch.tensor([_whole(i) for i in prompt], dtype=torch.long)


def _whole(value: object) -> int:
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError as error:
        raise PromptError(f"token ids are whole numbers; given {short_repr(value)}") from error
    if isinstance(value, bool):  # an int to Python, but nobody means a token by True
        raise PromptError(f"token ids are whole numbers; given {short_repr(value)}")
    if abs(number) >= 2**63:  # beyond int64
        raise PromptError(f"token id {short_repr(number)} is outside any vocabulary")
    return number
