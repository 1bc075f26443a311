"""Triton kernels on an emulated device: launches are counted, and computed in Triton's interpreter or made up."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

from emulated_cuda.clocks import current_stream
from emulated_cuda.tensors import CudaTensor, plain


def patches(computed: bool) -> Iterator[tuple[Any, str, Any]]:
    """What makes the package launch its kernels. computed: whether they compute; otherwise they fill in random numbers.

    The interpreter takes a tenth of a millisecond for each program, so that large work can only be counted.
    """
    from gemmascope.kernels import launch, switch

    def run(kernel: Any, grid: tuple[int, ...], out: Tensor, *args: Any, **constants: Any) -> None:
        from emulated_cuda.device import emulated

        stream = current_stream(out.device)
        stream.launch()
        names = kernel.arg_names
        for name, one in zip(names, (out, *args), strict=False):
            if isinstance(one, CudaTensor):
                one.allocation.access(stream, one.inner, write=one is out or name in _written(kernel))
        emulated().report_last_error()
        emulated().counts.kernel(kernel.fn.__name__)
        inner = plain((out, *args))

        def compute() -> None:
            if computed:
                kernel[grid](*inner, **constants)
            else:
                _fill(inner[0])

        compute()
        emulated().capture(compute, (), {}, None)

    yield switch, "triton_refusal", lambda device: None
    yield launch, "run", run


@cache
def _written(kernel: Any) -> set[str]:
    """The pointers, besides the first, that a kernel stores to."""
    return set(re.findall(r"tl\.store\((\w+)", inspect.getsource(kernel.fn)))


def _fill(out: Tensor) -> None:
    out.copy_(torch.randn(out.shape, generator=torch.Generator().manual_seed(0)))
