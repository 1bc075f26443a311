"""The arguments of an edit as values: copied, compared, and pickled with the edit."""

from __future__ import annotations

import pickle
import sys
from types import CodeType, FrameType, FunctionType

import numpy as np
import torch
from torch import Tensor

from gemmascope.edits.call_text import name_of, plain
from gemmascope.edits.sources import is_trace
from gemmascope.errors import EditError
from gemmascope.model.digests import join_digests, tensor_digest
from gemmascope.values import is_array, real_tensor


def copy_argument(value: object) -> object:
    """A copy of a tensor, an array or a list; anything else is returned unchanged."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    return [copy_argument(one) for one in value] if isinstance(value, list) else value


def equal_arguments(a: object, b: object) -> bool:
    """Whether two arguments of edits are equal: tensors and dictionaries by their numbers, traces by their run."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.device == b.device and bool(torch.equal(a, b))
    if is_array(a) and is_array(b) and not isinstance(a, Tensor) and not isinstance(b, Tensor):
        return bool(np.array_equal(np.asarray(a), np.asarray(b)))
    if is_trace(a) and is_trace(b):
        return bool(a.model is b.model and a.ids.tolist() == b.ids.tolist() and a.edits == b.edits)
    if type(a) is type(b) and hasattr(a, "fingerprint") and hasattr(b, "fingerprint"):
        return a is b or bool(a.fingerprint == b.fingerprint)
    a, b = plain(a), plain(b)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(equal_arguments(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def argument_digest(value: object) -> str:
    """A digest of an argument: tensors by their numbers, traces by model, tokens and edits, functions by their code.

    A function counts as another one under another version of Python, or where what it closes over differs.
    """
    if isinstance(value, Tensor):
        return tensor_digest(value)
    if is_array(value):
        return tensor_digest(real_tensor(value, "the array", EditError))
    if is_trace(value):
        return join_digests([value.model.fingerprint, repr(value.ids.tolist()), *map(argument_digest, value.edits)])
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        code = value.__code__
        parts = [name_of(value), code.co_code.hex(), repr([c for c in code.co_consts if not isinstance(c, CodeType)])]
        return join_digests([*parts, *map(argument_digest, (value.__defaults__, value.__kwdefaults__, cells))])
    if isinstance(value, (list, tuple)):
        return join_digests(map(argument_digest, value))
    if callable(digest := getattr(value, "digest", None)):  # an edit of a trace
        return str(digest())
    return str(getattr(value, "fingerprint", None) or repr(plain(value)))


def require_importable(fn: object, edit: object) -> None:
    """Raises EditError, while an edit is pickled, for a function that no other process can import, such as a lambda."""
    if not isinstance(fn, FunctionType) or _in_cloudpickle():
        return
    try:
        pickle.dumps(fn)
    except (pickle.PicklingError, AttributeError) as error:
        raise EditError(
            f"{edit!r} cannot be pickled: another process cannot import its function, {name_of(fn)!r}. Define it with def "
            "at the top of a module, or pickle with cloudpickle"
        ) from error


def _in_cloudpickle() -> bool:
    """Whether cloudpickle is pickling, which saves a function's code rather than its name."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if "cloudpickle" in frame.f_globals.get("__name__", ""):
            return True
        frame = frame.f_back
    return False
