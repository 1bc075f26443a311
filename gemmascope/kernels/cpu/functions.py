"""Calls of the C++ kernels: the pointwise functions of model/maths.py, and int8 matrices. No gradient.

Same names and arguments as in pointwise.py and int8.py, which are for CUDA. Numbers are computed with in float32, and
rounded to the tensor's dtype wherever the plain functions round. A row's numbers depend on that row alone.
"""

from __future__ import annotations

import functools
from ctypes import CDLL, c_float, c_int, c_int64, c_void_p
from typing import Protocol

import torch
from torch import Tensor

from gemmascope.kernels.cpu.compiler import load_library
from gemmascope.kernels.launch import require_device

# The dtypes that there are kernels for, by their names there.
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}

# Up to so many rows a product reads the int8 numbers themselves; above, it is faster to dequantise once and let the library
# multiply. Measured on a Xeon with AVX-512.
FEW_ROWS = {torch.float32: 8, torch.bfloat16: 8}

P, N, F, T = c_void_p, c_int64, c_float, c_int  # tensors, sizes, numbers, threads
_ARGUMENTS = {
    "rms_norm": (P, P, P, N, N, F, T),
    "gelu_gate": (P, P, P, N, T),
    "soft_cap": (P, P, N, F, T),
    "rotate": (P, P, P, P, N, N, N, N, N, T),
    "product": (P, P, P, P, N, N, N, T),
    "dequantise": (P, P, P, N, N, T),
}


class Function(Protocol):
    def __call__(self, *args: float | None) -> None: ...


library = functools.cache(load_library)  # one library for a process


@functools.cache
def _function(name: str, *dtypes: torch.dtype) -> Function:
    """A function of the library. The names of its dtypes follow its own."""
    loaded: CDLL = library()
    found = loaded["_".join((name, *(DTYPES[dtype] for dtype in dtypes)))]
    found.argtypes, found.restype = _ARGUMENTS[name], None
    return found


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x over its root mean square, times (1 + weight)."""
    x, weight = _ready(x), _ready(weight)
    out, width = torch.empty_like(x), x.shape[-1]
    _require_shape(weight, (width,))
    if x.numel():
        compute = _function("rms_norm", x.dtype, weight.dtype)
        compute(out.data_ptr(), x.data_ptr(), weight.data_ptr(), x.numel() // width, width, eps, torch.get_num_threads())
    return out


def gelu_gate(gate: Tensor, up: Tensor) -> Tensor:
    """gelu(gate) x up, with GELU's tanh form."""
    gate, up = _ready(gate), _ready(up.to(gate.dtype))
    _require_shape(up, gate.shape)
    out = torch.empty_like(gate)
    compute = _function("gelu_gate", gate.dtype)
    compute(out.data_ptr(), gate.data_ptr(), up.data_ptr(), gate.numel(), torch.get_num_threads())
    return out


def soft_cap(x: Tensor, cap: float | None) -> Tensor:
    """cap * tanh(x / cap). cap None: x as it is."""
    if cap is None:
        return x
    x = _ready(x)
    out = torch.empty_like(x)
    _function("soft_cap", x.dtype)(out.data_ptr(), x.data_ptr(), x.numel(), cap, torch.get_num_threads())
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [row, heads, d_head] turned by its position's angles (RoPE)."""
    x = _ready(x)
    rows, heads, d_head = x.shape
    cos, sin = (table if table.stride(-1) == 1 else table.contiguous() for table in (cos.float(), sin.float()))
    for table in (cos, sin):
        require_device(table, x.device)
        _require_shape(table, (rows, d_head))
    out = torch.empty_like(x)
    _function("rotate", x.dtype)(
        out.data_ptr(), x.data_ptr(), cos.data_ptr(), sin.data_ptr(), cos.stride(0), sin.stride(0), rows, heads, d_head,
        torch.get_num_threads(),
    )  # fmt: skip
    return out


def product(x: Tensor, numbers: Tensor, scale: Tensor, group: int) -> Tensor:
    """x [row, in] times the transposed int8 matrix: [row, out], summed in float32. Meant for at most FEW_ROWS rows."""
    x = _ready(x)
    n_out, n_in = _require_matrix(numbers, scale, group)
    _require_shape(x, (len(x), n_in))
    out = x.new_empty((len(x), n_out))
    _function("product", x.dtype)(
        out.data_ptr(), x.data_ptr(), numbers.data_ptr(), scale.data_ptr(), len(x), n_out, n_in, torch.get_num_threads()
    )
    return out


def dequantise(numbers: Tensor, scale: Tensor, into: Tensor, group: int) -> None:
    """Write scale x numbers, rounded to the dtype of `into`: the bits that plain torch gives."""
    n_out, n_in = _require_matrix(numbers, scale, group)
    require_device(into, numbers.device)
    _require_shape(into, (n_out, n_in))
    assert into.is_contiguous()
    compute = _function("dequantise", into.dtype)
    compute(into.data_ptr(), numbers.data_ptr(), scale.data_ptr(), n_out, n_in, torch.get_num_threads())


def _ready(x: Tensor) -> Tensor:
    """A tensor whose numbers stand one behind the other in the CPU's memory."""
    if not x.is_cpu:
        require_device(x, torch.device("cpu"))
    return x.contiguous()


def _require_shape(x: Tensor, shape: tuple[int, ...]) -> None:
    """A kernel reads as many numbers as it is told of."""
    if x.shape != shape:
        raise ValueError(f"a kernel was given a tensor of shape {tuple(x.shape)}, and needs {tuple(shape)}")


def _require_matrix(numbers: Tensor, scale: Tensor, group: int) -> torch.Size:
    """The shape of an int8 matrix whose scales fit."""
    assert group == 128, "the kernels are compiled for groups of 128"
    assert numbers.dtype == torch.int8 and scale.dtype == torch.float16  # noqa: PT018
    assert numbers.is_contiguous() and scale.is_contiguous()  # noqa: PT018
    for tensor in (numbers, scale):
        require_device(tensor, torch.device("cpu"))
    _require_shape(scale, (len(numbers), -(-numbers.shape[1] // group)))
    return numbers.shape
