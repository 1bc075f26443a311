"""Launches of Triton kernels, and what every kernel requires."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Protocol

import torch
from torch import Tensor

from gemmascope.errors import DeviceError


class Launcher(Protocol):
    def __call__(self, *args: Tensor | float, **constants: object) -> object: ...


class Kernel(Protocol):
    """A function that triton.jit returned; a grid of programs, in brackets, makes it callable."""

    def __getitem__(self, grid: tuple[int, ...]) -> Launcher: ...


def launch(kernel: Kernel, grid: tuple[int, ...], *args: Tensor | float, out: Tensor, **constants: object) -> Tensor:
    """Run the programs of a kernel on the device of `out`, which it fills. `out` is its first argument."""
    for arg in args:
        if isinstance(arg, Tensor):
            require_device(arg, out.device)
    if 0 not in grid:
        run(kernel, grid, out, *args, **constants)
    return out


def run(kernel: Kernel, grid: tuple[int, ...], out: Tensor, *args: Tensor | float, **constants: object) -> None:
    """Triton launches on the current device, which is another one if a model is on the second card."""
    elsewhere = out.is_cuda and out.device.index != torch.cuda.current_device()
    with torch.cuda.device(out.device) if elsewhere else nullcontext():
        kernel[grid](out, *args, enable_fp_fusion=True, **constants)  # Triton's default differs between versions


def require_device(x: Tensor, device: torch.device) -> None:
    """DeviceError for a tensor on another device: a kernel would read whatever is at that address."""
    if x.device != device:
        raise DeviceError(
            f"a tensor is on {x.device}, the rows are on {device}. A layer of a pass is empty, on the meta "
            "device, once the next layer is requested"
        )


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n: the sizes of a kernel's tiles are powers of two."""
    return 1 << max(0, n - 1).bit_length()
