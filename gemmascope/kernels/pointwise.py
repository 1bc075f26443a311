"""The pointwise functions of model/maths.py, each as one Triton kernel: same names, same arguments, no gradient.

Numbers are read once, computed with in float32, and rounded to the tensor's dtype wherever the plain functions round.
Importing this file needs Triton.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from gemmascope.kernels.launch import launch, power_of_two

BLOCK = 1024  # numbers that a program of an elementwise kernel computes


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x over its root mean square, times (1 + weight)."""
    x = x.contiguous()
    width = x.shape[-1]
    tile = power_of_two(width)
    warps = 4 if tile <= 1024 else 8
    rows = x.numel() // width
    return launch(_rms_norm, (rows,), x, weight, width, eps, out=x.new_empty(x.shape), TILE=tile, num_warps=warps)


def gelu_gate(gate: Tensor, up: Tensor) -> Tensor:
    """gelu(gate) x up, with GELU's tanh form."""
    gate, up = gate.contiguous(), up.contiguous()
    grid = (triton.cdiv(gate.numel(), BLOCK),)
    return launch(_gelu_gate, grid, gate, up, gate.numel(), out=gate.new_empty(gate.shape), TILE=BLOCK)


def soft_cap(x: Tensor, cap: float | None) -> Tensor:
    """cap * tanh(x / cap). cap None: x as it is."""
    if cap is None:
        return x
    x = x.contiguous()
    return launch(_soft_cap, (triton.cdiv(x.numel(), BLOCK),), x, x.numel(), cap, out=x.new_empty(x.shape), TILE=BLOCK)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [row, heads, d_head] turned by its position's angles (RoPE)."""
    x = x.contiguous()
    rows, heads, d_head = x.shape
    sizes = {"HEADS": power_of_two(heads), "HALF": power_of_two(d_head // 2)}
    strides = cos.stride(0), sin.stride(0)
    return launch(_rotate, (rows,), x, cos, sin, *strides, heads, d_head // 2, out=x.new_empty(x.shape), **sizes)


@triton.jit
def _tanh(x: tl.tensor) -> tl.tensor:
    """tanh, to 3 units in the last place of float32. The one of CUDA's library is not to be had in the interpreter."""
    size = tl.abs(x)
    small = tl.where(size < 0.65, x, 0.0)
    square = small * small
    near = -0.00592792965 * square + 0.0208633058  # a polynomial, since 1 - exp(-2x) cancels for small x
    near = (near * square - 0.0538159646) * square + 0.133324385
    near = small + small * square * (near * square - 0.333333224)
    decay = tl.exp(-2.0 * size)
    far = (1.0 - decay) / (1.0 + decay)
    return tl.where(size < 0.65, near, tl.where(x < 0.0, -far, far))


@triton.jit
def _rms_norm(out: tl.tensor, x: tl.tensor, weight: tl.tensor, width: int, eps: float, TILE: tl.constexpr) -> None:
    row = tl.program_id(0).to(tl.int64) * width
    at = tl.arange(0, TILE)
    inside = at < width
    value = tl.load(x + row + at, mask=inside, other=0.0).to(tl.float32)
    gain = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(value * value, axis=0) / width + eps
    # A mean square that overflows must give NaN, as in rms_scale, and not zeros.
    scale = tl.where(mean == float("inf"), float("nan"), 1.0 / tl.sqrt(mean))
    scaled = value * scale
    tl.store(out + row + at, (scaled + scaled * gain).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gelu_gate(out: tl.tensor, gate: tl.tensor, up: tl.tensor, n: int, TILE: tl.constexpr) -> None:
    at = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = at < n
    x = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    active = 0.5 * x * (1.0 + _tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))  # sqrt(2 / pi)
    active = active.to(out.dtype.element_ty).to(tl.float32)  # rounded here too, as the plain product's input is
    tl.store(out + at, (active * factor).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _soft_cap(out: tl.tensor, x: tl.tensor, n: int, cap: float, TILE: tl.constexpr) -> None:
    at = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = at < n
    scaled = (tl.load(x + at, mask=inside, other=0.0).to(tl.float32) / cap).to(out.dtype.element_ty)
    squeezed = _tanh(scaled.to(tl.float32)).to(out.dtype.element_ty)
    tl.store(out + at, (squeezed.to(tl.float32) * cap).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _rotate(
    out: tl.tensor,
    x: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    cos_stride: int,
    sin_stride: int,
    heads: int,
    half: int,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEADS)[:, None]
    at = tl.arange(0, HALF)[None, :]
    inside = (head < heads) & (at < half)
    left = (row * heads + head) * 2 * half + at
    first = tl.load(x + left, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x + left + half, mask=inside, other=0.0).to(tl.float32)
    dtype = out.dtype.element_ty
    c = tl.load(cos + row * cos_stride + at, mask=at < half, other=0.0).to(dtype).to(tl.float32)
    s = tl.load(sin + row * sin_stride + at, mask=at < half, other=0.0).to(dtype).to(tl.float32)
    turned_left = (first * c).to(dtype).to(tl.float32) - second * s
    turned_right = (second * c).to(dtype).to(tl.float32) + first * s
    tl.store(out + left, turned_left.to(dtype), mask=inside)
    tl.store(out + left + half, turned_right.to(dtype), mask=inside)
