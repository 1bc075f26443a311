"""Tensors in JSON, exact to the bit: a few numbers as nested lists, more as base64 of their bytes."""

from __future__ import annotations

import base64
import binascii
import sys
from collections.abc import Callable, Mapping
from typing import TypeGuard

import torch
from torch import Tensor

from gemmascope.arguments import short_repr
from gemmascope.errors import EditError
from gemmascope.values import real_tensor

# Tensors of up to this many numbers are written as lists, which a person can read and write.
LISTED = 64
MOST_AXES = 8

_FLOATS = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_INTEGERS = {
    "int64": torch.int64, "int32": torch.int32, "int16": torch.int16, "int8": torch.int8, "uint8": torch.uint8,
}  # fmt: skip
DTYPES = {**_FLOATS, **_INTEGERS, "bool": torch.bool}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def tensor_json(value: object, what: str) -> dict[str, object]:
    """A tensor or array as JSON. what: its name for an error, such as "the vector".

    Raises:
        EditError: It holds NaN or infinity, which no edit can write, or numbers of a dtype that is not saved.
    """
    tensor = real_tensor(value, what, EditError).detach().cpu()
    if tensor.dtype not in _NAMES:
        raise EditError(f"{what} has numbers of {tensor.dtype}; saved are {', '.join(DTYPES)}: convert it first, .float()")
    _require_finite(tensor, what)
    content: dict[str, object] = {"dtype": _NAMES[tensor.dtype]}
    if 0 < tensor.numel() <= LISTED and tensor.dim() <= MOST_AXES:
        return {**content, "values": tensor.tolist()}
    data = _bytes_of(tensor)
    return {**content, "shape": list(tensor.shape), "base64": base64.b64encode(data).decode()}


def tensor_of(content: object, what: str) -> Tensor:
    """The tensor that tensor_json wrote. EditError for anything else."""
    if not isinstance(content, Mapping):
        raise EditError(f"{what} is an object of dtype and values, or dtype, shape, base64; given {short_repr(content)}")
    name = content.get("dtype", "float32")
    if not isinstance(name, str) or name not in DTYPES:
        raise EditError(f"the dtype of {what} is one of {', '.join(DTYPES)}; given {short_repr(name)}")
    fields = content.keys() - {"dtype"}
    if fields == {"values"}:
        tensor = _of_list(content["values"], name, what)
    elif fields == {"shape", "base64"}:
        tensor = _of_bytes(content["shape"], content["base64"], DTYPES[name], what)
    else:
        given = ", ".join(short_repr(field) for field in content) or "nothing"
        raise EditError(f"{what} has dtype and values, or dtype, shape and base64; given {given}")
    _require_finite(tensor, what)
    return tensor


def _of_list(values: object, name: str, what: str) -> Tensor:
    fits: Callable[[object], bool] = _is_real if name in _FLOATS else _is_whole if name in _INTEGERS else _is_bool
    level, n_axes = [values], 0
    while any(isinstance(one, list) for one in level):
        if not all(isinstance(one, list) for one in level):
            raise EditError(f"the values of {what} are no tensor: lists and numbers stand side by side in them")
        level = [each for one in level if isinstance(one, list) for each in one]
        n_axes += 1
        if n_axes > MOST_AXES:
            raise EditError(f"the values of {what} have more than {MOST_AXES} axes")
    if not level:
        raise EditError(f"the values of {what} are an empty list")
    if wrong := [one for one in level if not fits(one)]:
        raise EditError(f"the values of {what} are numbers of {name}; given {short_repr(wrong[0])}")
    try:
        return torch.tensor(values, dtype=DTYPES[name])
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise EditError(f"the values of {what} are no tensor of {name}: {error}") from error


def _of_bytes(shape: object, text: object, dtype: torch.dtype, what: str) -> Tensor:
    if not isinstance(shape, list) or len(shape) > MOST_AXES or not all(_is_whole(n) and 0 <= n < 2**40 for n in shape):
        raise EditError(f"the shape of {what} is a list of up to {MOST_AXES} sizes; given {short_repr(shape)}")
    if not isinstance(text, str):
        raise EditError(f"the base64 of {what} is a text; given {short_repr(text)}")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise EditError(f"the base64 of {what} is damaged: {error}") from error
    n_bytes = dtype.itemsize
    for size in shape:
        n_bytes *= size
    if len(data) != n_bytes:
        raise EditError(f"the base64 of {what} holds {len(data):,} bytes, and its dtype and shape take {n_bytes:,}")
    if not data:
        return _empty(shape, dtype, what)
    if dtype == torch.bool and max(data) > 1:
        raise EditError(f"the base64 of {what} is damaged: a bool is 0 or 1")
    raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return _little_endian(raw, dtype.itemsize).view(dtype).reshape(shape)


def _empty(shape: list[int], dtype: torch.dtype, what: str) -> Tensor:
    try:
        return torch.empty(shape, dtype=dtype)
    except RuntimeError as error:  # sizes beside a 0 whose product has no 64 bits
        raise EditError(f"the shape of {what} is too large: {short_repr(shape)}") from error


def _bytes_of(tensor: Tensor) -> bytes:
    """The bytes of the numbers in their order, each with its lowest byte first."""
    raw = tensor.contiguous().reshape(-1).view(torch.uint8)
    return _little_endian(raw, tensor.element_size()).numpy().tobytes()


def _little_endian(raw: Tensor, size: int) -> Tensor:
    return raw if sys.byteorder == "little" else raw.reshape(-1, size).flip(1).reshape(-1)


def _require_finite(tensor: Tensor, what: str) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise EditError(f"{what} holds NaN or infinity, which no edit writes, or a number too large for {tensor.dtype}")


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
