"""Which kernels compute on a device: Triton's on CUDA, C++ on the CPU where they are asked for, otherwise plain torch.

This file alone decides, once for each device, when the first model is made there; a model's repr says what and why.
"""

from __future__ import annotations

import functools
import importlib
import os
import threading
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType
from typing import ParamSpec, Protocol, cast

import torch
from torch import Tensor

from gemmascope.errors import warn

P = ParamSpec("P")

# GEMMASCOPE_TRITON=0 switches Triton's kernels off, GEMMASCOPE_CPU_KERNELS=1 those of the CPU on: they round otherwise than
# plain torch, and were measured on one processor. Each is read once for each device.
VARIABLE = "GEMMASCOPE_TRITON"
CPU_VARIABLE = "GEMMASCOPE_CPU_KERNELS"

CPU = torch.device("cpu")

AMPERE = (8, 0)  # the first compute capability whose tensor cores multiply bfloat16


class Int8Kernels(Protocol):
    """Products with int8 matrices, and their dequantisation: kernels/int8.py, or kernels/cpu/functions.py."""

    FEW_ROWS: dict[torch.dtype, int]

    def product(self, x: Tensor, numbers: Tensor, scale: Tensor, group: int) -> Tensor: ...

    def dequantise(self, numbers: Tensor, scale: Tensor, into: Tensor, group: int) -> None: ...


def runs_kernels(device: torch.device) -> bool:
    """Whether kernels compute on this device."""
    return cpu_refusal() is None if device.type == "cpu" else runs_triton(device)


def runs_triton(device: torch.device) -> bool:
    """Whether Triton kernels compute on this device."""
    return device.type == "cuda" and triton_refusal(device) is None


@functools.cache
def triton_refusal(device: torch.device) -> str | None:
    """Why plain torch computes on a CUDA device instead of Triton; None if Triton does."""
    if os.environ.get(VARIABLE) == "0":
        return f"{VARIABLE} is 0"
    if torch.version.cuda is None or not torch.cuda.is_available():
        return "this torch has no CUDA"
    capability = torch.cuda.get_device_capability(device)
    if capability < AMPERE:
        return f"the card has compute capability {capability[0]}.{capability[1]}, the kernels need {AMPERE[0]}.{AMPERE[1]}"
    if find_spec("triton") is None:
        return "Triton is not installed"
    return _trial_error(device)


def _trial_error(device: torch.device) -> str | None:
    """What goes wrong when a kernel is compiled and run; None if nothing does. Triton needs a C compiler, for example."""
    row = torch.arange(1.0, 5.0, device=device)[None]
    try:
        capped: Tensor = _pointwise("cuda", "soft_cap")(row, 2.0)
        right = bool(torch.allclose(capped, torch.tanh(row / 2.0) * 2.0))
        problem = None if right else "its kernels give wrong numbers"
    except Exception as error:  # whatever a compiler, a driver or a version of Triton may raise
        problem = f"its kernels do not run ({type(error).__name__}: {str(error)[:200]})"
    if problem is not None:
        warn(f"Triton is installed, but {problem}: {device} computes with plain torch, which is slower")
    return problem


_choosing = threading.Lock()


def cpu_refusal() -> str | None:
    """Why plain torch computes on the CPU instead of the C++ kernels; None if they do. The first call may compile them."""
    with _choosing:  # two threads would compile the same
        return _cpu_refusal()


@functools.cache
def _cpu_refusal() -> str | None:
    from gemmascope.kernels.cpu.compiler import CompilingError, find_compiler, load_library

    if not _cpu_kernels_are_asked_for():
        return f"{CPU_VARIABLE} is not 1"
    try:
        find_compiler()
    except CompilingError as reason:
        return str(reason)  # nothing is broken: it is not for this machine
    try:
        load_library()
        problem = None if _cpu_kernels_are_right() else "its kernels give wrong numbers"
    except CompilingError as reason:
        problem = str(reason)
    if problem is not None:
        warn(f"there is a C++ compiler, but {problem}: the CPU computes with plain torch, which is slower")
    return problem


def _cpu_kernels_are_asked_for() -> bool:
    return os.environ.get(CPU_VARIABLE) == "1"


def _cpu_kernels_are_right() -> bool:
    """Whether a kernel computes what plain torch does."""
    row = torch.arange(-20.0, 20.0)
    capped = _pointwise("cpu", "soft_cap")(row, 2.0)
    return bool(torch.allclose(capped, torch.tanh(row / 2.0) * 2.0))


def choose(device: torch.device) -> None:
    """Decide for a device now rather than in the middle of its first run: the CPU's kernels may have to be compiled."""
    if device.type in ("cpu", "cuda"):
        runs_kernels(device)


def describe(device: torch.device) -> str:
    """The kernels that compute on a device, for a model's repr: empty where there are none, or none are asked for."""
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and not _cpu_kernels_are_asked_for()):
        return ""
    name, refusal = ("C++", cpu_refusal()) if device.type == "cpu" else ("Triton", triton_refusal(device))
    return f" with {name} kernels" if refusal is None else f" without {name} kernels ({refusal})"


def fuses(x: Tensor) -> bool:
    """Whether functions of x are one Triton kernel: on such a device, and while no gradient is recorded."""
    return x.is_cuda and not torch.is_grad_enabled() and runs_triton(x.device)


def fuses_on_cpu(x: Tensor) -> bool:
    """Whether a pointwise function of x is one C++ kernel: in the CPU's memory, and while no gradient is recorded."""
    plain = x.is_cpu and type(x) in _PLAIN and x.dtype in _DTYPES
    return plain and not torch.is_grad_enabled() and _cpu_refusal() is None


# What the CPU's kernels read: no subclass, whose memory may be none.
_PLAIN = (Tensor, torch.nn.Parameter)
_DTYPES = (torch.float32, torch.bfloat16)


def one_kernel(plain: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Decorates a pointwise function of tensors: where there is a kernel for them, the one of the same name computes it."""

    @functools.wraps(plain)
    def called(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        x = cast(Tensor, args[0])
        if fuses(x) or fuses_on_cpu(x):
            return _pointwise(x.device.type, plain.__name__)(*args, **kwargs)
        return plain(*args, **kwargs)

    return called


def attention_kernels() -> ModuleType:
    """attention.py, which can be imported only where Triton is."""
    return importlib.import_module("gemmascope.kernels.attention")


@functools.cache
def _pointwise(kind: str, name: str) -> Callable[..., Tensor]:
    """A pointwise kernel for a type of device."""
    module = "cpu.functions" if kind == "cpu" else "pointwise"  # which can be imported only where Triton is
    return cast(Callable[..., Tensor], getattr(importlib.import_module(f"gemmascope.kernels.{module}"), name))


def int8_kernels(device: torch.device) -> Int8Kernels:
    """The kernels of int8 matrices, where runs_kernels says that there are any."""
    module = "cpu.functions" if device.type == "cpu" else "int8"
    return cast(Int8Kernels, importlib.import_module(f"gemmascope.kernels.{module}"))
