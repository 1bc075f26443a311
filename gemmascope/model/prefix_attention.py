"""Attention of many runs that start and end anywhere, in a few products.

Each run reads its own rows, and runs that start after position 0 read the keys before them from a prefix. Blocks of unlike
lengths are padded to one shape where that costs less than a product for each, and runs that share a prefix read it in one
product, wherever each starts. The two parts are added as unnormalised weights exp(score) and their sums. A soft cap bounds
the scores, so no maximum is needed, and the weights of hidden keys are multiplied by 0. Without a cap (Gemma 3) weights are
exp(score - peak), and both parts are brought to the higher of their peaks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gemmascope.model.layout import Block, Layout, PrefixKV
from gemmascope.model.maths import first_visible, index_tensor, ranges, visible
from gemmascope.values import chunks

# Scores in memory at once: 8 MB in float32. Measured on two cores: larger chunks do not fit the processor cache.
CHUNK_ELEMENTS = 2**21
CHUNK_ROWS = 256
# Scores that padding may add: computing them takes about as long as starting another product's kernels.
PADDING_ELEMENTS = 2**15
# The same on an accelerator, which is quicker at both. A quarter of a gigabyte of scores in float32.
DEVICE_CHUNK_ELEMENTS = 2**26
DEVICE_PADDING_ELEMENTS = 2**25


class _PaddedBlocks(NamedTuple):
    """Blocks of unlike lengths as runs of one shape, their rows at its start.

    queries: the vectors of every run among all queries' heads, [run x kv x group x q]. keys: the same of the keys
    and values, [run x kv x k]. A padded vector repeats the last one of its run and head. real: which of the queries are no
    padding. into: where those are among all queries and heads. seen: 1 for the keys that a query sees, otherwise 0, float32
    [run or 1, 1, q, k].
    """

    n_runs: int
    queries: Tensor
    keys: Tensor
    real: Tensor
    into: Tensor
    seen: Tensor


class _PrefixQueries(NamedTuple):
    """The queries that read the same prefix: rows among all queries (None: all), positions, run starts, and key range."""

    rows: Tensor | None
    positions: Tensor
    starts: Tensor
    first: int
    stop: int


class _Sums(NamedTuple):
    """What queries have read, float32: values times weights [query, head, d_head]; [query, head, 1] the sum of the
    weights and, without a soft cap, the score whose weight is 1 [query, head, 1].
    """

    read: Tensor
    total: Tensor
    peak: Tensor | None

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The peak, if there is one, the total, and what was read."""
        return (self.total, self.read) if self.peak is None else (self.peak, self.total, self.read)


# The axes of queries, and of keys and values, in a pass.
Queries = Float[Tensor, "query head d_head"]
KeyValues = Float[Tensor, "row kv_head d_head"]


class PrefixAttention:
    """softmax(mask(cap(q k scale))) v for the heads of one layer, for no cap or one whose exp float32 can sum."""

    def __init__(self, scale: float, cap: float | None, window: int | None) -> None:
        self.scale, self.cap, self.window = scale, cap, window

    def __call__(self, q: Queries, k: KeyValues, v: KeyValues, layout: Layout) -> Queries:
        # On a CPU the first bfloat16 product of a shape costs milliseconds, and every start and count is a new shape.
        dtype, compute_dtype = v.dtype, torch.float32 if v.device.type == "cpu" else v.dtype
        factor = self.scale if self.cap is None else self.scale / self.cap
        q, k, v = (q * factor).to(compute_dtype), k.to(compute_dtype), v.to(compute_dtype)
        total = q.new_empty(*q.shape[:2], 1, dtype=torch.float32)
        peak = torch.empty_like(total) if self.cap is None else None
        sums = _Sums(torch.empty_like(q, dtype=torch.float32), total, peak)
        exact, padded = layout.once(("own rows", self.window), lambda: self._group_blocks(layout, q.shape[1], k.shape[1]))
        for block, first in exact:
            queries = slice(first, first + block.count * block.n_queries)
            own = _Sums(sums.read[queries], total[queries], None if peak is None else peak[queries])
            self._read_own(q[queries], k[block.rows], v[block.rows], block, own)
        for group in padded:
            self._read_padded(q, k, v, group, sums)
        for prefix, queries_of_prefix in _prefix_queries(layout, self.window):
            self._add_prefix(q, prefix, queries_of_prefix, sums)
        return sums.read.div_(sums.total).to(dtype)

    def _group_blocks(self, layout: Layout, n_heads: int, n_kv: int) -> tuple[list[tuple[Block, int]], list[_PaddedBlocks]]:
        """The blocks that are computed in their own shape, with their first queries, and those that are padded to one."""
        device = layout.positions.device
        most, spare = _most_scores(device), PADDING_ELEMENTS if device.type == "cpu" else DEVICE_PADDING_ELEMENTS
        exact, padded = [], []
        for group in _groups(layout.blocks, most // n_heads, spare // n_heads):
            if len(group) == 1:
                exact.append((layout.blocks[group[0]], layout.query_firsts[group[0]]))
            else:
                padded.append(_pad(layout, group, self.window, n_heads, n_kv))
        return exact, padded

    def _read_padded(self, q: Tensor, k: Tensor, v: Tensor, group: _PaddedBlocks, sums: _Sums) -> None:
        """Write what the runs of unlike blocks read from their own rows."""
        # Each vector is copied once, to where the product wants it: rearranging whole rows would copy them a second time.
        q_rows, k_rows, v_rows = (
            x.flatten(0, 1).index_select(0, at).view(group.n_runs * k.shape[1], -1, x.shape[-1])
            for x, at in ((q, group.queries), (k, group.keys), (v, group.keys))
        )
        shape = (group.n_runs, -1, *group.seen.shape[2:])
        for into, value in zip(sums.parts, self._sums(q_rows @ k_rows.mT, v_rows, group.seen, shape), strict=True):
            real = value.flatten(0, 1).index_select(0, group.real)
            into.view(-1, into.shape[-1]).index_copy_(0, group.into, real.to(into.dtype))

    def _read_own(self, q: Tensor, k: Tensor, v: Tensor, block: Block, sums: _Sums) -> None:
        """Write what the runs of a block read from their own rows."""
        n_kv, group = k.shape[1], q.shape[1] // k.shape[1]

        def by_run(x: Tensor, length: int) -> Tensor:
            return x.view(block.count, length, n_kv, -1, x.shape[-1]).permute(0, 2, 3, 1, 4)

        q, *into = (by_run(x, block.n_queries) for x in (q, *sums.parts))  # [run, kv, group, row, d]
        k, v = (by_run(x, block.length).flatten(0, 2) for x in (k, v))  # [run x kv, row, d]
        for rows, seen in self._chunks(block, block.count * n_kv * group, q.device):
            q_rows = q[..., rows, :].flatten(0, 1).flatten(1, 2)
            stop = block.length - block.n_queries + rows.stop
            first = block.length - block.n_queries + rows.start
            factors = _seen((first, stop), (seen.start, seen.stop), self.window, q.device)
            products = q_rows @ k[:, seen].mT
            by_head = (len(products), group, -1, products.shape[-1])
            shape = (block.count, n_kv, group, rows.stop - rows.start, -1)
            for part, value in zip(into, self._sums(products, v[:, seen], factors, by_head), strict=True):
                part[..., rows, :] = value.view(shape)

    def _add_prefix(self, q: Tensor, prefix: PrefixKV, queries: _PrefixQueries, sums: _Sums) -> None:
        """Add what queries read from the keys before their runs."""
        k, v = (x.to(q.dtype) for x in prefix.between(queries.first, queries.stop))
        n_kv, k_pos = len(k), torch.arange(queries.first, queries.stop, device=q.device)
        for part in chunks(len(queries.starts), max(1, _most_scores(q.device) // (q.shape[1] * len(k_pos)))):
            rows, starts = part if queries.rows is None else queries.rows[part], queries.starts[part]
            q_rows = q[rows].view(len(starts), n_kv, -1, q.shape[-1]).transpose(0, 1).flatten(1, 2)  # [kv, row x group, d]
            seen = k_pos < starts[:, None]
            if self.window is not None:
                seen &= k_pos > queries.positions[part, None] - self.window
            shape = (n_kv, len(starts), -1, len(k_pos))
            *peak, total, read = (
                value.float().view(n_kv, len(starts), -1, value.shape[-1]).transpose(0, 1).flatten(1, 2)
                for value in self._sums(q_rows @ k.mT, v, seen[:, None], shape)
            )
            if sums.peak is not None:
                before, own = sums.peak[rows], peak[0]
                highest = torch.maximum(before, own)
                for into in (sums.total, sums.read):
                    into[rows] = into[rows] * (before - highest).exp()
                total, read = (value * (own - highest).exp() for value in (total, read))
            for into, value in ((sums.total, total), (sums.read, read)):
                if isinstance(rows, slice):
                    into[rows].add_(value)
                else:
                    into.index_add_(0, rows, value)

    def _sums(self, products: Tensor, v: Tensor, seen: Tensor | None, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
        """The peak of the scores if there is no cap, the sum of the weights, and the values times the weights.

        products: of queries and keys, divided by the cap. seen: where 0 the key is hidden, for products in this shape.
        """
        if self.cap is not None:
            weights = products.float().tanh_().mul_(self.cap).exp_()
            if seen is not None:
                weights.view(shape).mul_(seen)
            return weights.sum(-1, keepdim=True), weights.to(v.dtype) @ v
        scores = products.float()
        if seen is not None:
            scores.view(shape).masked_fill_(seen == 0, -torch.inf)
        # Of a query that sees none of these keys the peak is the least number, and so each weight 0.
        peak = scores.amax(-1, keepdim=True).clamp_(min=torch.finfo(torch.float32).min)
        weights = scores.sub_(peak).exp_()
        return peak, weights.sum(-1, keepdim=True), weights.to(v.dtype) @ v

    def _chunks(self, block: Block, n_heads: int, device: torch.device) -> Iterator[tuple[slice, slice]]:
        """Chunks of query rows, each with the rows of its run that it sees."""
        before = block.length - block.n_queries
        step = max(1, _most_scores(device) // (n_heads * block.length))
        if device.type == "cpu":
            step = min(CHUNK_ROWS, step, max(32, self.window or CHUNK_ROWS))
        for rows in chunks(block.n_queries, step):
            yield rows, slice(first_visible(before + rows.start, self.window), before + rows.stop)


def _most_scores(device: torch.device) -> int:
    """How many scores are in memory at once."""
    return CHUNK_ELEMENTS if device.type == "cpu" else DEVICE_CHUNK_ELEMENTS


def _groups(blocks: Sequence[Block], most: int, spare: int) -> Iterator[list[int]]:
    """Blocks to compute in one shape, by their indices; one alone keeps its own shape.

    most: how many scores of a head such a group may have. spare: how many of them may be padding.
    """
    group: list[int] = []
    n_runs = longest = most_queries = n_exact = 0
    for index in sorted(range(len(blocks)), key=lambda i: (-blocks[i].length, blocks[i].n_queries)):
        block = blocks[index]
        runs, q_len, k_len = n_runs + block.count, max(most_queries, block.n_queries), max(longest, block.length)
        exact = n_exact + block.count * block.n_queries * block.length
        n_scores = runs * q_len * k_len
        if group and (n_scores > most or n_scores - exact > spare):
            yield group
            group, runs, q_len, k_len = [], block.count, block.n_queries, block.length
            exact = block.count * q_len * k_len
        group.append(index)
        n_runs, most_queries, longest, n_exact = runs, q_len, k_len, exact
    if group:
        yield group


def _pad(layout: Layout, group: Sequence[int], window: int | None, n_heads: int, n_kv: int) -> _PaddedBlocks:
    blocks = [layout.blocks[index] for index in group]
    counts = [block.count for block in blocks]
    length, n_queries = (np.repeat([getattr(b, name) for b in blocks], counts) for name in ("length", "n_queries"))
    first_key = np.concatenate([b.first + np.arange(b.count) * b.length for b in blocks])
    firsts = [layout.query_firsts[index] for index in group]
    first_query = np.concatenate([at + np.arange(b.count) * b.n_queries for at, b in zip(firsts, blocks, strict=True)])
    q, k = np.arange(n_queries.max()), np.arange(length.max())
    own_q = (length - n_queries)[:, None] + q  # the query's row in its run
    if (own_q == own_q[:1]).all():
        own_q = own_q[:1]
    seen = k <= own_q[..., None]
    if window is not None:
        seen &= k > own_q[..., None] - window
    q_rows, k_rows = (
        (first[:, None] + np.minimum(own, count[:, None] - 1))[:, None]
        for first, own, count in ((first_query, q, n_queries), (first_key, k, length))
    )
    queries = (q_rows * n_heads + np.arange(n_heads)[:, None]).reshape(-1)  # query heads in the order of their kv heads
    keys = (k_rows * n_kv + np.arange(n_kv)[:, None]).reshape(-1)
    real = np.flatnonzero(np.repeat((q < n_queries[:, None])[:, None], n_heads, axis=1))
    arrays = queries, keys, real, queries[real], seen[:, None].astype(np.float32)
    return _PaddedBlocks(len(length), *(index_tensor(array, layout.positions.device) for array in arrays))


def _prefix_queries(layout: Layout, window: int | None) -> Iterator[tuple[PrefixKV, _PrefixQueries]]:
    """Each prefix of a layout with the queries that read it, which are the same in all layers of the kind."""
    if not layout.prefixes:
        return
    for number, (_, indices) in enumerate(groupby(range(len(layout.blocks)), lambda i: id(layout.prefixes[i]))):
        blocks = list(indices)
        prefix = layout.prefixes[blocks[0]]
        if prefix is None:
            continue
        first = prefix.first
        queries = layout.once((number, window), lambda: _find_prefix_queries(layout, blocks, first, window))  # noqa: B023
        if queries is not None:
            yield prefix, queries


def _find_prefix_queries(layout: Layout, blocks: list[int], known: int, window: int | None) -> _PrefixQueries | None:
    chosen = [layout.blocks[i] for i in blocks]
    n_queries = np.repeat([b.n_queries for b in chosen], [b.count for b in chosen])
    stops = np.repeat([b.stop for b in chosen], [b.count for b in chosen])
    positions = ranges(stops - n_queries, n_queries)
    starts = np.repeat([b.start for b in chosen], [b.count * b.n_queries for b in chosen])
    seen = np.zeros_like(positions) if window is None else np.maximum(positions - window + 1, 0)
    reading = np.flatnonzero(seen < starts)
    if not len(reading):
        return None
    all_read = len(reading) == layout.query_firsts[-1]
    device = layout.positions.device
    rows = None if all_read else index_tensor(reading + layout.query_firsts[blocks[0]], device)
    first, stop = int(seen[reading].min()), int(starts[reading].max())
    return _PrefixQueries(
        rows, index_tensor(positions[reading], device), index_tensor(starts[reading], device), max(known, first), stop
    )


def _seen(q: tuple[int, int], k: tuple[int, int], window: int | None, device: torch.device) -> Tensor | None:
    """1 where a query sees a key, otherwise 0; None where every query sees every key."""
    if q[0] >= k[1] - 1 and (window is None or q[1] - 1 - k[0] < window):
        return None
    return visible(torch.arange(*q, device=device), torch.arange(*k, device=device), window).float()
