"""Products of rows with int8 matrices, and their dequantisation, as Triton kernels.

A matrix has int8 numbers [out, in] and a scale for each group of an output's inputs [out, group]; see streaming/int8.py.
Importing this file needs Triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gemmascope.kernels.launch import launch, power_of_two

# Up to so many rows a product reads the int8 numbers themselves; above, it is faster to dequantise once and let cuBLAS
# multiply. Float32 products without TF32 use no tensor cores, so there it is sooner. Measured on an H100.
FEW_ROWS = {torch.bfloat16: 64, torch.float32: 16}

# Programs that keep every multiprocessor of a large card busy with reading, the fewest groups that a program reads, and the
# most parts that are added.
PROGRAMS, LEAST_GROUPS, MOST_PARTS = 512, 4, 16

DEQUANTISED_ROWS = 32  # of a matrix, that a program dequantises


def product(x: Tensor, numbers: Tensor, scale: Tensor, group: int) -> Tensor:
    """x [row, in] times the transposed matrix: [row, out], summed in float32, for at most FEW_ROWS rows.

    A matrix of few outputs is split over its inputs as well, and a second kernel adds the parts in their order: the same
    rows give the same bits each time, which atomic additions would not.
    """
    x = x.contiguous()
    (n_rows, n_in), n_out, n_groups = x.shape, len(numbers), scale.shape[1]
    rows = max(16, power_of_two(n_rows))
    outs = 32 if rows == 16 else 64
    parts = n_parts(triton.cdiv(n_out, outs), n_groups)
    grid = (triton.cdiv(n_out, outs), parts)
    sums = x.new_empty((parts, n_rows, n_out), dtype=x.dtype if parts == 1 else torch.float32)
    sizes = {"ROWS": rows, "OUTS": outs, "GROUP": group, "num_warps": 4, "num_stages": 4}
    launch(_product, grid, x, numbers, scale, n_rows, n_out, n_in, out=sums, **sizes)
    if parts == 1:
        return sums[0]
    n, tile = n_rows * n_out, 1024
    return launch(_add_parts, (triton.cdiv(n, tile),), sums, n, out=x.new_empty((n_rows, n_out)), PARTS=parts, TILE=tile)


def n_parts(n_tiles: int, n_groups: int) -> int:
    """Into how many parts the inputs of a product are split. It depends on the matrix alone, never on the card."""
    return max(1, min(-(-PROGRAMS // n_tiles), n_groups // LEAST_GROUPS, MOST_PARTS))


def dequantise(numbers: Tensor, scale: Tensor, into: Tensor, group: int) -> None:
    """Write scale x numbers, rounded to the dtype of `into`: the bits that plain torch gives."""
    (n_out, n_in), n_groups = numbers.shape, scale.shape[1]
    grid = (triton.cdiv(n_out, DEQUANTISED_ROWS), n_groups)
    launch(_dequantise, grid, numbers, scale, n_out, n_in, n_groups, out=into, OUTS=DEQUANTISED_ROWS, GROUP=group)


@triton.jit(do_not_specialize=["n_rows"])
def _product(
    out: tl.tensor,
    x: tl.tensor,
    numbers: tl.tensor,
    scale: tl.tensor,
    n_rows: int,
    n_out: int,
    n_in: int,
    ROWS: tl.constexpr,
    OUTS: tl.constexpr,
    GROUP: tl.constexpr,
) -> None:
    """One tile of outputs for all rows, from one part of the groups. Scales multiply float32 sums over their groups."""
    # Inputs that are multiplied at once: in float32 a whole group would not fit in the registers.
    CHUNK: tl.constexpr = GROUP if x.dtype.element_ty == tl.bfloat16 else GROUP // 4
    at = tl.program_id(0) * OUTS + tl.arange(0, OUTS)
    part = tl.program_id(1)
    row = tl.arange(0, ROWS)
    total = tl.zeros((ROWS, OUTS), tl.float32)
    n_groups = tl.cdiv(n_in, GROUP)
    each = tl.cdiv(n_groups, tl.num_programs(1))
    first, stop = part * each, tl.minimum(part * each + each, n_groups)
    for chunk in range(first * (GROUP // CHUNK), stop * (GROUP // CHUNK)):
        column = chunk * CHUNK + tl.arange(0, CHUNK)
        inside = column[None, :] < n_in
        value = tl.load(x + row[:, None] * n_in + column[None, :], mask=(row[:, None] < n_rows) & inside, other=0.0)
        place = numbers + at[:, None].to(tl.int64) * n_in + column[None, :]
        number = tl.load(place, mask=(at[:, None] < n_out) & inside, other=0)
        group = chunk // (GROUP // CHUNK)
        step = tl.load(scale + at * n_groups + group, mask=at < n_out, other=0.0).to(tl.float32)
        # An int8 number is exact in bfloat16. "ieee": float32 products are not rounded to TF32.
        sums = tl.dot(value, tl.trans(number.to(value.dtype)), input_precision="ieee")
        total += sums * step[None, :]
    place = out + (part * n_rows + row[:, None]).to(tl.int64) * n_out + at[None, :]
    tl.store(place, total.to(out.dtype.element_ty), mask=(row[:, None] < n_rows) & (at[None, :] < n_out))


@triton.jit
def _add_parts(out: tl.tensor, sums: tl.tensor, n: int, PARTS: tl.constexpr, TILE: tl.constexpr) -> None:
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = at < n
    total = tl.zeros((TILE,), tl.float32)
    for part in range(PARTS):
        total += tl.load(sums + part * n + at, mask=inside, other=0.0)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _dequantise(
    out: tl.tensor,
    numbers: tl.tensor,
    scale: tl.tensor,
    n_out: int,
    n_in: int,
    n_groups: int,
    OUTS: tl.constexpr,
    GROUP: tl.constexpr,
) -> None:
    row = tl.program_id(0) * OUTS + tl.arange(0, OUTS)
    group = tl.program_id(1)
    column = group * GROUP + tl.arange(0, GROUP)
    inside = (row[:, None] < n_out) & (column[None, :] < n_in)
    place = row[:, None].to(tl.int64) * n_in + column[None, :]
    number = tl.load(numbers + place, mask=inside, other=0).to(tl.float32)
    step = tl.load(scale + row * n_groups + group, mask=row < n_out, other=0.0).to(tl.float32)
    tl.store(out + place, (number * step[:, None]).to(out.dtype.element_ty), mask=inside)
