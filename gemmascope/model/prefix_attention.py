"""Attention of runs that start after position 0 and read the keys before them from a prefix.

Runs that share a prefix read it in one product, wherever each starts; each block reads its own rows in another. The two are
added as unnormalised weights exp(score) and their sums. The soft cap bounds the scores, so no maximum is needed, and
hidden keys get weight 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gemmascope.model.layout import Block, Layout, PrefixKV
from gemmascope.model.maths import first_visible, soft_cap, visible
from gemmascope.values import chunks

# Scores in memory at once: 8 MB in float32. Measured on two cores: larger chunks do not fit the processor cache.
CHUNK_ELEMENTS = 2**21
CHUNK_ROWS = 256


class _PrefixQueries(NamedTuple):
    """The queries that read the same prefix: rows among all queries, positions, starts of their runs, and key range."""

    rows: Tensor
    positions: Tensor
    starts: Tensor
    first: int
    stop: int


# The axes of queries, and of keys and values, in a pass.
Queries = Float[Tensor, "query head d_head"]
KeyValues = Float[Tensor, "row kv_head d_head"]


class PrefixAttention:
    """softmax(mask(cap(q k scale))) v for the heads of one layer, for a cap whose exp float32 can sum."""

    def __init__(self, scale: float, cap: float, window: int | None) -> None:
        self.scale, self.cap, self.window = scale, cap, window

    def __call__(
        self,
        q: Queries,
        k: KeyValues,
        v: KeyValues,
        layout: Layout,
    ) -> Queries:
        # On a CPU the first bfloat16 product of a shape costs milliseconds, and every start and count is a new shape.
        dtype, compute_dtype = v.dtype, torch.float32 if v.device.type == "cpu" else v.dtype
        q, k, v = (q * self.scale).to(compute_dtype), k.to(compute_dtype), v.to(compute_dtype)
        read, total = torch.empty_like(q, dtype=torch.float32), q.new_empty(*q.shape[:2], 1, dtype=torch.float32)
        at = 0
        for block in layout.blocks:
            queries = slice(at, at + block.count * block.n_queries)
            self._read_own(q[queries], k[block.rows], v[block.rows], block, read[queries], total[queries])
            at = queries.stop
        for prefix, queries_of_prefix in _prefix_queries(layout, self.window):
            self._add_prefix(q, prefix, queries_of_prefix, read, total)
        return (read / total).to(dtype)

    def _read_own(self, q: Tensor, k: Tensor, v: Tensor, block: Block, read: Tensor, total: Tensor) -> None:
        """Write the weighted values that the runs of a block read from their own rows, and the sums of the weights."""
        n_kv, group = k.shape[1], q.shape[1] // k.shape[1]

        def by_run(x: Tensor, length: int) -> Tensor:
            return x.view(block.count, length, n_kv, -1, x.shape[-1]).permute(0, 2, 3, 1, 4)

        q, read, total = (by_run(x, block.n_queries) for x in (q, read, total))  # [run, kv, group, row, d]
        k, v = (by_run(x, block.length).flatten(0, 2) for x in (k, v))  # [run x kv, row, d]
        for rows, seen in self._chunks(block, block.count * n_kv * group):
            q_rows = q[..., rows, :].flatten(0, 1).flatten(1, 2)
            stop = block.length - block.n_queries + rows.stop
            first = block.length - block.n_queries + rows.start
            weights = self._weights(q_rows @ k[:, seen].mT)
            hidden = _hidden((first, stop), (seen.start, seen.stop), self.window, q.device)
            if hidden is not None:
                weights.view(len(weights), group, -1, weights.shape[-1]).masked_fill_(hidden, 0.0)
            shape = (block.count, n_kv, group, rows.stop - rows.start, -1)
            total[..., rows, :] = weights.sum(-1).view(shape)
            read[..., rows, :] = (weights.to(v.dtype) @ v[:, seen]).view(shape)

    def _add_prefix(self, q: Tensor, prefix: PrefixKV, queries: _PrefixQueries, read: Tensor, total: Tensor) -> None:
        """Add what queries read from the keys before their runs. read [query, head, d], total [query, head, 1]."""
        k, v = (x.to(q.dtype) for x in prefix.between(queries.first, queries.stop))
        n_kv, k_pos = len(k), torch.arange(queries.first, queries.stop, device=q.device)
        step = max(1, CHUNK_ELEMENTS // (q.shape[1] * len(k_pos)))
        for part in chunks(len(queries.rows), step):
            rows, starts = queries.rows[part], queries.starts[part]
            q_rows = q[rows].view(len(rows), n_kv, -1, q.shape[-1]).transpose(0, 1).flatten(1, 2)  # [kv, row x group, d]
            weights = self._weights(q_rows @ k.mT)
            hidden = k_pos >= starts[:, None]
            if self.window is not None:
                hidden |= k_pos <= queries.positions[part, None] - self.window
            weights.view(n_kv, len(rows), -1, len(k_pos)).masked_fill_(hidden[:, None], 0.0)
            for into, value in ((total, weights.sum(-1, keepdim=True)), (read, (weights.to(v.dtype) @ v).float())):
                into.index_add_(0, rows, value.view(n_kv, len(rows), -1, value.shape[-1]).transpose(0, 1).flatten(1, 2))

    def _weights(self, scores: Tensor) -> Tensor:
        """exp(capped score), float32."""
        return soft_cap(scores.float(), self.cap).exp_()

    def _chunks(self, block: Block, n_heads: int) -> Iterator[tuple[slice, slice]]:
        """Chunks of query rows, each with the rows of its run that it sees."""
        before = block.length - block.n_queries
        step = min(CHUNK_ROWS, max(1, CHUNK_ELEMENTS // (n_heads * block.length)), max(32, self.window or CHUNK_ROWS))
        for rows in chunks(block.n_queries, step):
            yield rows, slice(first_visible(before + rows.start, self.window), before + rows.stop)


def _prefix_queries(layout: Layout, window: int | None) -> Iterator[tuple[PrefixKV, _PrefixQueries]]:
    """Each prefix of a layout with the queries that read it, which are the same in all layers of the kind."""
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
    at = sum(b.count * b.n_queries for b in layout.blocks[: blocks[0]])
    chosen = [layout.blocks[i] for i in blocks]
    device = layout.positions.device
    positions = torch.cat([torch.arange(b.stop - b.n_queries, b.stop, device=device).repeat(b.count) for b in chosen])
    counts = torch.tensor([b.count * b.n_queries for b in chosen], device=device)
    starts = torch.repeat_interleave(torch.tensor([b.start for b in chosen], device=device), counts)
    seen = torch.zeros_like(positions) if window is None else (positions - window + 1).clamp(min=0)
    reading = torch.nonzero(seen < starts)[:, 0]
    if not len(reading):
        return None
    first, stop = int(seen[reading].min()), int(starts[reading].max())
    return _PrefixQueries(reading + at, positions[reading], starts[reading], max(known, first), stop)


def _hidden(q: tuple[int, int], k: tuple[int, int], window: int | None, device: torch.device) -> Tensor | None:
    """True where a query does not see a key; None where every query sees every key."""
    if q[0] >= k[1] - 1 and (window is None or q[1] - 1 - k[0] < window):
        return None
    return ~visible(torch.arange(*q, device=device), torch.arange(*k, device=device), window)
