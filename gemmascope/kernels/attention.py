"""Attention as Triton kernels: softmax(mask(cap(q k scale))) v for rows without padding and for a KV cache.

No score leaves the chip: each program reads keys tile by tile, keeps the highest score, the sum of the weights and the
weighted values in float32, and rescales them when a higher score comes (Milakov and Gimelshein, arXiv 1805.02867; Dao et
al., arXiv 2205.14135). Which keys a program reads together depends on its own run alone, never on its neighbours.
Importing this file needs Triton.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from gemmascope.kernels.attention_tiles import FEW_ROWS, NO_WINDOW, SPLIT, Scores, Tiles
from gemmascope.kernels.launch import launch, power_of_two
from gemmascope.kernels.pointwise import _tanh


def attend_runs(
    q: Tensor, k: Tensor, v: Tensor, pool: tuple[Tensor, Tensor] | None, tiles: Sequence[Tiles], scores: Scores
) -> Tensor:
    """Attention of runs over their own rows and over a pool of keys before them.

    q [query, head, d_head], k and v [row, kv_head, d_head]. pool: keys and values, [kv_head, row, d_head] in any strides.
    tiles: of each launch.
    """
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    n_kv, d_head = k.shape[1:]
    before = [_dense(x) for x in pool] if pool else [k.transpose(0, 1), v.transpose(0, 1)]
    steps = [x.stride(i) for x in before for i in (0, 1)]
    out = torch.empty_like(q)
    for table, n_rows in tiles:
        launch(
            _attend_runs, (len(table), n_kv), q, k, v, *before, table, *steps, n_kv, d_head, scores.scale,
            scores.cap or 1.0, scores.window or NO_WINDOW, out=out, CAPPED=scores.cap is not None,
            GROUP=q.shape[1] // n_kv, ROWS=n_rows, **_sizes(q.dtype, d_head, n_rows),
        )  # fmt: skip
    return out


def append(k: Tensor, v: Tensor, k_slots: Tensor, v_slots: Tensor, positions: Tensor) -> None:
    """Write the newest position of every run into a KV cache: k and v [run, kv_head, d_head] to its slot in both."""
    n_runs, n_kv, n_slots, d_head = k_slots.shape
    sizes = {"HEADS": power_of_two(n_kv), "DIM": power_of_two(d_head)}
    launch(
        _append, (n_runs,), v_slots, k.contiguous(), v.contiguous(), positions, n_kv, n_slots, d_head, out=k_slots, **sizes
    )


def attend_cache(q: Tensor, k_slots: Tensor, v_slots: Tensor, positions: Tensor, n_used: int, scores: Scores) -> Tensor:
    """Attention of the newest row of every run, q [run, head, d_head], over its slots of a KV cache.

    k_slots, v_slots: [run, kv_head, slot, d_head]. positions: of the newest rows. n_used: at least as many slots as are in
    use in any run.
    """
    q = q.contiguous()
    n_runs, n_heads, d_head = q.shape
    n_kv, n_slots = k_slots.shape[1:3]
    group, n_splits = n_heads // n_kv, triton.cdiv(n_used, SPLIT)
    n_rows = max(FEW_ROWS, power_of_two(group))
    # Of each split: the weighted values, the highest score, and the sum of the weights.
    parts = q.new_empty((n_splits, n_runs, n_heads, d_head + 2), dtype=torch.float32)
    launch(
        _attend_cache, (n_splits, n_kv, n_runs), q, k_slots, v_slots, positions, n_kv, n_slots, d_head, scores.scale,
        scores.cap or 1.0, out=parts, CAPPED=scores.cap is not None, GROUP=group, ROWS=n_rows, SPLIT=SPLIT,
        **_sizes(q.dtype, d_head, n_rows),
    )  # fmt: skip
    sizes = {"DIM": power_of_two(d_head)}
    return launch(_add_splits, (n_runs * n_heads,), parts, n_splits, d_head, out=torch.empty_like(q), **sizes)


def _dense(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _sizes(dtype: torch.dtype, d_head: int, n_rows: int) -> dict[str, int]:
    """How many keys a program reads at once, and its warps: as many as registers and shared memory of an RTX 3090 hold."""
    dim = max(16, power_of_two(d_head))
    keys = 16 if dtype == torch.float32 else 64 if dim <= 128 else 32
    wide = dim > 128 if dtype == torch.float32 else n_rows > FEW_ROWS
    return {"DIM": dim, "KEYS": keys, "num_warps": 8 if wide else 4, "num_stages": 2}


@triton.jit
def _capped(x: tl.tensor, cap: float, EXACT: tl.constexpr) -> tl.tensor:
    """cap * tanh(x / cap). EXACT: to units in the last place of float32; otherwise to 1e-7 of the cap, which is faster."""
    if EXACT:
        return cap * _tanh(x / cap)
    return cap - 2.0 * cap / (tl.exp(x * (2.0 / cap)) + 1.0)


@triton.jit
def _add_keys(
    highest: tl.tensor,
    total: tl.tensor,
    read: tl.tensor,
    q: tl.tensor,
    q_at: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    k_step: int,
    v_step: int,
    first: int,
    stop: int,
    width: int,
    scale: float,
    cap: float,
    window: int,
    CAPPED: tl.constexpr,
    DIM: tl.constexpr,
    KEYS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Add what queries q [row, dim] at positions q_at read from the keys first to stop - 1; k and v are key 0's."""
    column = tl.arange(0, DIM)[None, :]
    for start in range(first, stop, KEYS):
        at = start + tl.arange(0, KEYS)
        inside = (at < stop)[:, None] & (column < width)
        row = at[:, None].to(tl.int64)
        keys = tl.load(k + row * k_step + column, mask=inside, other=0.0)
        # "ieee": float32 products are not rounded to TF32.
        products = tl.dot(q, tl.trans(keys), input_precision="ieee") * scale
        if CAPPED:
            products = _capped(products, cap, q.dtype == tl.float32)
        key = at[None, :]
        seen = (key < stop) & (key <= q_at[:, None]) & (key > q_at[:, None] - window)
        products = tl.where(seen, products, float("-inf"))
        higher = tl.maximum(highest, tl.max(products, axis=1))
        reference = tl.where(higher == float("-inf"), 0.0, higher)  # rows that have seen no key yet
        weights = tl.exp(products - reference[:, None])
        rescale = tl.exp(highest - reference)
        values = tl.load(v + row * v_step + column, mask=inside, other=0.0)
        total = total * rescale + tl.sum(weights, axis=1)
        read = read * rescale[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        highest = higher
    return highest, total, read


@triton.jit
def _attend_runs(
    out: tl.tensor,
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    pool_k: tl.tensor,
    pool_v: tl.tensor,
    tiles: tl.tensor,
    pool_k_head: int,
    pool_k_row: int,
    pool_v_head: int,
    pool_v_row: int,
    n_kv: int,
    width: int,
    scale: float,
    cap: float,
    window: int,
    CAPPED: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
    KEYS: tl.constexpr,
) -> None:
    """The queries of one tile, of all heads that share a key-value head: row r of the program is query r // GROUP."""
    tile = tiles + tl.program_id(0) * 7
    kv = tl.program_id(1).to(tl.int64)
    q_row, n_queries, q_first = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    run_row, run_start, pool_row, key_first = tl.load(tile + 3), tl.load(tile + 4), tl.load(tile + 5), tl.load(tile + 6)
    row = tl.arange(0, ROWS)
    query = row // GROUP
    column = tl.arange(0, DIM)[None, :]
    head_row = (q_row + query).to(tl.int64) * (n_kv * GROUP) + kv * GROUP + row % GROUP
    place = head_row[:, None] * width + column
    inside = (query < n_queries)[:, None] & (column < width)
    rows = tl.load(q + place, mask=inside, other=0.0)
    q_at = q_first + query
    highest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    read = tl.zeros((ROWS, DIM), tl.float32)
    before_k = pool_k + kv * pool_k_head + pool_row.to(tl.int64) * pool_k_row
    before_v = pool_v + kv * pool_v_head + pool_row.to(tl.int64) * pool_v_row
    highest, total, read = _add_keys(
        highest, total, read, rows, q_at, before_k, before_v, pool_k_row, pool_v_row, key_first, run_start,
        width, scale, cap, window, CAPPED, DIM, KEYS,
    )  # fmt: skip
    step = n_kv * width
    own = run_row.to(tl.int64) * step + kv * width
    own_first, own_stop = tl.maximum(run_start, key_first), q_first + n_queries
    highest, total, read = _add_keys(
        highest, total, read, rows, q_at, k + own, v + own, step, step, own_first, own_stop,
        width, scale, cap, window, CAPPED, DIM, KEYS,
    )  # fmt: skip
    total = tl.where(query < n_queries, total, 1.0)
    tl.store(out + place, (read / total[:, None]).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _append(
    k_slots: tl.tensor,
    v_slots: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    positions: tl.tensor,
    n_kv: int,
    n_slots: int,
    width: int,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
) -> None:
    run = tl.program_id(0).to(tl.int64)
    head, column = tl.arange(0, HEADS)[:, None], tl.arange(0, DIM)[None, :]
    inside = (head < n_kv) & (column < width)
    slot = tl.load(positions + run) % n_slots
    given = (run * n_kv + head) * width + column
    place = ((run * n_kv + head) * n_slots + slot) * width + column
    tl.store(k_slots + place, tl.load(k + given, mask=inside), mask=inside)
    tl.store(v_slots + place, tl.load(v + given, mask=inside), mask=inside)


@triton.jit
def _attend_cache(
    parts: tl.tensor,
    q: tl.tensor,
    k_slots: tl.tensor,
    v_slots: tl.tensor,
    positions: tl.tensor,
    n_kv: int,
    n_slots: int,
    width: int,
    scale: float,
    cap: float,
    CAPPED: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    SPLIT: tl.constexpr,
    DIM: tl.constexpr,
    KEYS: tl.constexpr,
) -> None:
    """What the newest row of one run reads from one split of its slots, for all heads that share a key-value head."""
    kv, run = tl.program_id(1), tl.program_id(2).to(tl.int64)
    n_used = tl.minimum(tl.load(positions + run) + 1, n_slots).to(tl.int32)
    first = tl.program_id(0) * SPLIT
    stop = tl.minimum(first + SPLIT, n_used)
    row = tl.arange(0, ROWS)
    column = tl.arange(0, DIM)[None, :]
    head_row = (run * n_kv + kv) * GROUP + row
    inside = (row < GROUP)[:, None] & (column < width)
    rows = tl.load(q + head_row[:, None] * width + column, mask=inside, other=0.0)
    highest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    read = tl.zeros((ROWS, DIM), tl.float32)
    slots = (run * n_kv + kv) * n_slots * width
    # Every slot in use is seen: a local layer's cache holds its window.
    q_at = tl.zeros((ROWS,), tl.int32) + n_slots
    highest, total, read = _add_keys(
        highest, total, read, rows, q_at, k_slots + slots, v_slots + slots, width, width, first, stop,
        width, scale, cap, n_slots + 1, CAPPED, DIM, KEYS,
    )  # fmt: skip
    n_heads = tl.num_programs(2) * n_kv * GROUP
    place = parts + (tl.program_id(0).to(tl.int64) * n_heads + head_row) * (width + 2)
    tl.store(place[:, None] + column, read, mask=inside)
    tl.store(place + width, highest, mask=row < GROUP)
    tl.store(place + width + 1, total, mask=row < GROUP)


@triton.jit(do_not_specialize=["n_splits"])
def _add_splits(out: tl.tensor, parts: tl.tensor, n_splits: int, width: int, DIM: tl.constexpr) -> None:
    """Add what a head's row read from each split, in their order. A split without slots in use adds exact zeros."""
    head_row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, DIM)
    inside = column < width
    highest = tl.full((1,), float("-inf"), tl.float32)
    total = tl.zeros((1,), tl.float32)
    read = tl.zeros((DIM,), tl.float32)
    for split in range(n_splits):
        place = parts + (split * tl.num_programs(0) + head_row) * (width + 2)
        peak = tl.load(place + width)
        higher = tl.maximum(highest, peak)
        rescale, factor = tl.exp(highest - higher), tl.exp(peak - higher)
        total = total * rescale + tl.load(place + width + 1) * factor
        read = read * rescale + tl.load(place + column, mask=inside, other=0.0) * factor
        highest = higher
    tl.store(out + head_row * width + column, (read / total).to(out.dtype.element_ty), mask=inside)
