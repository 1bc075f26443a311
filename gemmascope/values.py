"""Arrays: checks that those of users hold real numbers, and nothing that a cast would silently drop; and labels for ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from gemmascope.errors import GemmascopeError

if TYPE_CHECKING:
    import xarray

Array = np.ndarray[Any, Any]  # of any shape and dtype


def is_array(value: object) -> bool:
    """Whether this is a tensor, or an array of numpy, pandas, xarray or another library that numpy can read."""
    return isinstance(value, Tensor) or (hasattr(value, "__array__") and not isinstance(value, type))


def real_tensor(value: object, what: str, error: type[GemmascopeError]) -> Tensor:
    """An array of real numbers as a plain dense tensor, on its own device and in its own dtype.

    Gradients are kept; the caller detaches the result if it wants none.

    Args:
        value: A tensor, or an array of numpy, pandas or xarray.
        what: The array's name for the error, such as "the vector".
        error: The class to raise.

    Raises:
        error: The value is complex, quantised, nested, masked, not numeric, or has no values (meta).
    """
    if isinstance(value, Tensor):
        return _plain(value, what, error)
    if not is_array(value):
        raise error(f"{what} is a tensor; given {type(value).__name__}")
    try:
        array = np.asarray(value)
    except Exception as failure:  # each library has its own
        raise error(f"{what} cannot be read as an array: {failure}") from failure
    if isinstance(value, np.ma.MaskedArray):
        raise error(f"{what} is a masked array, and a tensor has no mask: fill it first, with .filled(VALUE)")
    if array.dtype.kind not in "biuf":
        raise error(f"{what} holds real numbers; given an array of {array.dtype}")
    dtype = {"b": np.bool_, "f": np.float64}.get(array.dtype.kind, np.int64)
    if array.dtype in (np.float32, np.float16):
        dtype = np.float32
    return torch.from_numpy(np.array(array, dtype=dtype))  # copied: torch takes no negative strides and no other byte order


def _plain(value: Tensor, what: str, error: type[GemmascopeError]) -> Tensor:
    if value.is_meta:
        raise error(f"{what} is a tensor on the meta device, which has no values")
    if value.is_complex():
        raise error(f"{what} holds real numbers, not complex ones; given {value.dtype}: say .real or .abs(), as you mean it")
    if value.is_quantized:
        raise error(f"{what} is a quantised tensor: give the numbers that it stands for, .dequantize()")
    if value.is_nested:
        raise error(f"{what} is a nested tensor, which has no one shape: give a plain one")
    if value.layout != torch.strided:
        value = value.to_dense()
    if value.is_inference() and not torch.is_inference_mode_enabled():
        value = value.clone()  # a tensor made under torch.inference_mode takes part in no gradient and no in-place write
    return value if type(value) is Tensor else value.as_subclass(Tensor)


def in_float64(value: Tensor) -> Tensor:
    """A tensor in float64, on its own device, or on the CPU where the device has no float64 (Apple GPUs)."""
    return value.double() if has_float64(value.device) else value.cpu().double()


def has_float64(device: torch.device) -> bool:
    return device.type != "mps"


def moved(value: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device: itself if it is there. The host does not wait for a copy from one GPU to another."""
    # A copy to the CPU that is not waited for would be read before it has arrived.
    return value.to(device, non_blocking=device.type == "cuda")


def on_host(*values: Tensor) -> list[Tensor]:
    """Tensors of one device in the CPU's memory. From a GPU they come in one copy, for which the host waits once.

    They travel as float32, which is exact for whole numbers up to 2^24: for token ids.
    """
    if values[0].device.type == "cpu":
        return list(values)
    together = torch.cat([value.reshape(-1).float() for value in values]).cpu()
    parts = torch.split(together, [value.numel() for value in values])
    return [part.view(one.shape).to(one.dtype) for part, one in zip(parts, values, strict=True)]


def chunks(n: int, step: int) -> Iterator[slice]:
    """Slices of up to `step` items that cover n items in order."""
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def labelled(
    values: Tensor | ArrayLike, coords: Mapping[str, object], dims: Sequence[str], name: str, unit: str = ""
) -> xarray.DataArray:
    """Numbers with their labels. unit: what they measure, as the attribute long_name; "" for none."""
    import xarray

    numbers = values.cpu().numpy() if isinstance(values, Tensor) else values
    return xarray.DataArray(numbers, coords, dims, name, {"long_name": unit} if unit else None)
