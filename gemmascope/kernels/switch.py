"""Whether Triton kernels compute on a device. This file alone decides; a model's repr says what it decided, and why."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType
from typing import ParamSpec, cast

import torch
from torch import Tensor

from gemmascope.errors import warn

P = ParamSpec("P")

# GEMMASCOPE_TRITON=0 switches the kernels off. It is read once for each device.
VARIABLE = "GEMMASCOPE_TRITON"

AMPERE = (8, 0)  # the first compute capability whose tensor cores multiply bfloat16


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
        capped: Tensor = _pointwise("soft_cap")(row, 2.0)
        right = bool(torch.allclose(capped, torch.tanh(row / 2.0) * 2.0))
        problem = None if right else "its kernels give wrong numbers"
    except Exception as error:  # whatever a compiler, a driver or a version of Triton may raise
        problem = f"its kernels do not run ({type(error).__name__}: {str(error)[:200]})"
    if problem is not None:
        warn(f"Triton is installed, but {problem}: {device} computes with plain torch, which is slower")
    return problem


def describe(device: torch.device) -> str:
    """The kernels that compute on a device, for a model's repr: empty for devices that never have others than torch's."""
    if device.type != "cuda":
        return ""
    refusal = triton_refusal(device)
    return " with Triton kernels" if refusal is None else f" without Triton kernels ({refusal})"


def fuses(x: Tensor) -> bool:
    """Whether a pointwise function of x is one Triton kernel: on such a device, and while no gradient is recorded."""
    return x.is_cuda and not torch.is_grad_enabled() and runs_triton(x.device)


def one_kernel_on_cuda(plain: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Decorates a pointwise function of tensors: where `fuses` says so, the kernel of the same name computes it."""

    @functools.wraps(plain)
    def called(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        if fuses(cast(Tensor, args[0])):
            return _pointwise(plain.__name__)(*args, **kwargs)
        return plain(*args, **kwargs)

    return called


def attention_kernels() -> ModuleType:
    """attention.py, which can be imported only where Triton is."""
    return importlib.import_module("gemmascope.kernels.attention")


@functools.cache
def _pointwise(name: str) -> Callable[..., Tensor]:
    """A function of pointwise.py, which can be imported only where Triton is."""
    return cast(Callable[..., Tensor], getattr(importlib.import_module("gemmascope.kernels.pointwise"), name))
