"""The device a model is on and the number format it computes in: what device= and dtype= mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from gemmascope.arguments import equals_text, short_repr
from gemmascope.errors import DeviceError, warn

_NAMES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# The major compute capability of the first GPUs that compute in bfloat16.
AMPERE = 8
_FLOAT16 = ("float16", "half", "fp16", "f16")


# What device= is where a model may lie on several: "auto", one device, or a list of GPUs.
DeviceChoice: TypeAlias = str | torch.device | Sequence[str | torch.device]


@dataclass(frozen=True)
class Devices:
    """The devices that a model may lie on, in the order of its layers.

    Attributes:
        each: The devices: one, or several GPUs.
        fewest: Whether as few as hold the model are used, rather than all of them.
    """

    each: tuple[torch.device, ...]
    fewest: bool = False

    @property
    def first(self) -> torch.device:
        """The device on which passes begin and end."""
        return self.each[0]


def choose_devices(device: DeviceChoice) -> Devices:
    """The devices to load to: "auto" is every GPU, the present one first. Raises DeviceError for what cannot be meant."""
    if equals_text(device, "auto") and torch.cuda.is_available():
        present = torch.cuda.current_device()
        numbers = sorted(range(torch.cuda.device_count()), key=lambda number: number != present)
        return Devices(tuple(torch.device("cuda", number) for number in numbers), fewest=True)
    if isinstance(device, (str, torch.device)) or not isinstance(device, Sequence):
        return Devices((choose_device(device),))
    if not device:
        raise DeviceError(
            "device=[] names no device; give 'auto', one device, or a list of GPUs such as ['cuda:0', 'cuda:1']"
        )
    each = tuple(map(choose_device, device))
    if len(each) > 1 and (other := next((one for one in each if one.type != "cuda"), None)) is not None:
        raise DeviceError(
            f"a model lies on one device or on several GPUs, and {str(other)!r} is no GPU; given device="
            f"{short_repr(device)}. Layers that a GPU does not hold stream to it from the host's memory: give memory="
        )
    if twice := [one for at, one in enumerate(each) if one in each[:at]]:
        raise DeviceError(f"device={short_repr(device)} names {str(twice[0])!r} twice: name each GPU once")
    return Devices(each)


def choose_device(device: str | torch.device) -> torch.device:
    """The device to load to: "auto" is cuda if there is one, else the CPU. Raises DeviceError if it is not available."""
    if equals_text(device, "auto"):
        return _with_index(torch.device("cuda")) if torch.cuda.is_available() else torch.device("cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise DeviceError(
            f"device={short_repr(device)} is no device; give 'auto', 'cpu', 'cuda', 'cuda:1', 'mps' or 'meta'"
        ) from error
    if chosen.type == "cuda":
        _require_cuda(chosen)
        chosen = _with_index(chosen)
    elif chosen.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(
            f"device={short_repr(device)} was asked for and this machine has no Apple GPU; give 'auto' or 'cpu'"
        )
    elif chosen.type not in ("cpu", "mps", "meta"):
        raise DeviceError(f"device={short_repr(device)} is not supported; give 'auto', 'cpu', 'cuda', 'mps' or 'meta'")
    return chosen


def one_device(device: DeviceChoice) -> str | torch.device:
    """device= where a model lies on one device. DeviceError for a list of several."""
    if isinstance(device, (str, torch.device)) or not isinstance(device, Sequence):
        return device
    if len(device) != 1:
        raise DeviceError(f"a model that is in memory stays on its one device; given device={short_repr(device)}")
    return device[0]


def _with_index(device: torch.device) -> torch.device:
    """The GPU that "cuda" means in this thread now: in another thread it may mean another one."""
    return torch.device("cuda", torch.cuda.current_device()) if device.index is None else device


def _require_cuda(device: torch.device) -> None:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        why = "this torch was built without CUDA" if torch.version.cuda is None else "torch finds no CUDA GPU here"
        raise DeviceError(f"device={str(device)!r} was asked for and {why}; give 'auto' or 'cpu'")
    if device.index is not None and device.index >= count:
        raise DeviceError(f"device={str(device)!r} was asked for and there are {count} GPUs, cuda:0 to cuda:{count - 1}")


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype | None:
    """The dtype that dtype= names; None for "auto". Raises DeviceError for one that Gemma 2 cannot compute in."""
    if equals_text(dtype, "auto"):
        return None
    name = str(dtype).removeprefix("torch.") if isinstance(dtype, (str, torch.dtype)) else ""
    if name in _FLOAT16:
        raise float16_error()
    if name not in _NAMES:
        raise DeviceError(f"dtype={short_repr(dtype)} is not offered; give 'auto', 'bfloat16' or 'float32', or torch's own")
    return _NAMES[name]


def weights_error(weights: object, choices: str) -> DeviceError:
    """The error for weights= that name none of the choices."""
    four_bits = isinstance(weights, str) and "4" in weights
    why = " (4 bits are not offered: they change what is found)" if four_bits else ""
    return DeviceError(f"weights={short_repr(weights)} is not offered{why}; give 'auto' for what is stored, {choices}")


def float16_error() -> DeviceError:
    return DeviceError(
        "Gemma 2 cannot compute in float16: its residual stream exceeds 65504, the largest float16, and becomes "
        "infinite. Use 'bfloat16' (the same size), 'float32' or 'auto'"
    )


def choose_dtype(dtype: str | torch.dtype, configured: str | None, stored: set[torch.dtype]) -> torch.dtype:
    """The dtype to compute in, from the dtype= argument, the dtype in config.json, and the dtypes of the stored tensors."""
    named = parse_dtype(dtype)
    if named is not None:
        return named
    if torch.float16 in stored:  # float32 holds every float16, bfloat16 does not
        return torch.float32
    if configured in _NAMES:
        return _NAMES[configured]
    return torch.bfloat16 if stored == {torch.bfloat16} else torch.float32


def warn_of_slow_bfloat16(weight: torch.Tensor) -> None:
    """Warn if a model, by one of its weights, computes in bfloat16 on a GPU that has no arithmetic for it."""
    device = weight.device
    if device.type == "cuda" and weight.dtype == torch.bfloat16 and torch.cuda.get_device_capability(device)[0] < AMPERE:
        warn(
            f"{device} ({torch.cuda.get_device_name(device)}) has no arithmetic in bfloat16 and emulates it slowly: load "
            "the model with dtype='float32', and with a budget, memory=, if it does not fit"
        )
