"""Tensors that users give, checked in one place: real numbers, at hand, with none that a cast would lose in silence."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gemmascope.errors import GemmascopeError


def is_array(given: Any) -> bool:
    """Whether this is a tensor, or an array of numpy, pandas, xarray or another library that numpy reads."""
    return isinstance(given, Tensor) or (hasattr(given, "__array__") and not isinstance(given, type))


def real_tensor(given: Any, what: str, error: type[GemmascopeError]) -> Tensor:
    """An array of real numbers as a plain tensor, where it is and in its own dtype; a sparse one dense.

    Its gradient is kept: whoever wants none detaches it.

    Args:
        given: A tensor, or an array of numpy, pandas or xarray.
        what: What it is called in the error, such as "the vector".
        error: The class to raise.

    Raises:
        error: It is no array of real numbers: complex, quantised, nested, masked, of texts, or without values (meta).
    """
    if isinstance(given, Tensor):
        return _of_tensor(given, what, error)
    if not is_array(given):
        raise error(f"{what} is a tensor; given {type(given).__name__}")
    try:
        array = np.asarray(given)
    except Exception as failure:  # another library's own reasons
        raise error(f"{what} cannot be read as an array: {failure}") from failure
    if isinstance(given, np.ma.MaskedArray):
        raise error(f"{what} is a masked array, and a tensor has no mask: fill it first, with .filled(VALUE)")
    if array.dtype.kind not in "biuf":
        raise error(f"{what} holds real numbers; given an array of {array.dtype}")
    dtype = {"b": np.bool_, "f": np.float64}.get(array.dtype.kind, np.int64)
    if array.dtype in (np.float32, np.float16):
        dtype = np.float32
    return torch.from_numpy(
        np.array(array, dtype=dtype)
    )  # a copy: torch takes neither negative strides nor other byte orders


def _of_tensor(given: Tensor, what: str, error: type[GemmascopeError]) -> Tensor:
    if given.is_meta:
        raise error(f"{what} is a tensor on the meta device, which has no values")
    if given.is_complex():
        raise error(f"{what} holds real numbers, not complex ones; given {given.dtype}: say .real or .abs(), as you mean it")
    if given.is_quantized:
        raise error(f"{what} is a quantised tensor: give the numbers that it stands for, .dequantize()")
    if given.is_nested:
        raise error(f"{what} is a nested tensor, which has no one shape: give a plain one")
    if given.layout != torch.strided:
        given = given.to_dense()
    if given.is_inference() and not torch.is_inference_mode_enabled():
        given = given.clone()  # one made under torch.inference_mode takes part in no gradient and no write
    return given if type(given) is Tensor else given.as_subclass(Tensor)


def in_float64(value: Tensor) -> Tensor:
    """A tensor in float64: where it is, or on the CPU where its device has no float64, as an Apple GPU has none."""
    return value.double() if has_float64(value.device) else value.cpu().double()


def has_float64(device: torch.device) -> bool:
    return device.type != "mps"
