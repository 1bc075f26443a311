"""Attention of runs that start later than position 0, and read the keys before them from elsewhere.

Runs that share their earlier keys read them in one product, wherever each of them starts; what each reads from its own
rows is a product for every block. The halves meet as weights exp(score - top) and their sums, where top bounds every
score: the soft cap. So nothing is masked out by minus infinity, and no maximum is looked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gemmascope.model.layout import Block, Layout, PrefixKV
from gemmascope.model.maths import soft_cap, visible

# Scores held at once, in elements: 8 MB in float32. Measured on two cores: larger chunks leave the cache.
CHUNK_ELEMENTS = 2**21
CHUNK_ROWS = 256


class _Readers(NamedTuple):
    """Rows that read the same earlier keys: their places among the rows that ask, positions and runs' starts."""

    rows: Tensor
    positions: Tensor
    starts: Tensor
    first: int
    stop: int


class PrefixAttention:
    """softmax(mask(cap(q k scale))) v for the heads of one layer, where cap is a number that exp can take."""

    def __init__(self, scale: float, cap: float, window: int | None) -> None:
        self.scale, self.cap, self.window = scale, cap, window

    def __call__(
        self,
        q: Float[Tensor, "query head d_head"],
        k: Float[Tensor, "row kv_head d_head"],
        v: Float[Tensor, "row kv_head d_head"],
        layout: Layout,
    ) -> Float[Tensor, "query head d_head"]:
        dtype = v.dtype
        # On a CPU the first bfloat16 product of a shape costs milliseconds, and every start and count is another shape.
        at_work = torch.float32 if v.device.type == "cpu" else v.dtype
        q, k, v = (q * self.scale).to(at_work), k.to(at_work), v.to(at_work)
        read, total = torch.empty_like(q, dtype=torch.float32), q.new_empty(*q.shape[:2], 1, dtype=torch.float32)
        at = 0
        for block in layout.blocks:
            asked = slice(at, at + block.count * block.n_queries)
            self._own(q[asked], k[block.rows], v[block.rows], block, read[asked], total[asked])
            at = asked.stop
        for earlier, readers in _readers(layout, self.window):
            self._earlier(q, earlier, readers, read, total)
        return (read / total).to(dtype)

    def _own(self, q: Tensor, k: Tensor, v: Tensor, block: Block, read: Tensor, total: Tensor) -> None:
        """Write what the runs of a block read from their own rows, weighted, and the sums of the weights."""
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

    def _earlier(self, q: Tensor, earlier: PrefixKV, readers: _Readers, read: Tensor, total: Tensor) -> None:
        """Add what rows read from the keys before their runs. read [row, head, d], total [row, head, 1]."""
        k, v = (x.to(q.dtype) for x in earlier.between(readers.first, readers.stop))
        n_kv, k_pos = len(k), torch.arange(readers.first, readers.stop, device=q.device)
        step = max(1, CHUNK_ELEMENTS // (q.shape[1] * len(k_pos)))
        for some in (slice(i, i + step) for i in range(0, len(readers.rows), step)):
            rows, starts = readers.rows[some], readers.starts[some]
            q_rows = q[rows].view(len(rows), n_kv, -1, q.shape[-1]).transpose(0, 1).flatten(1, 2)  # [kv, row x group, d]
            weights = self._weights(q_rows @ k.mT)
            hidden = k_pos >= starts[:, None]
            if self.window is not None:
                hidden |= k_pos <= readers.positions[some, None] - self.window
            weights.view(n_kv, len(rows), -1, len(k_pos)).masked_fill_(hidden[:, None], 0.0)
            for into, part in ((total, weights.sum(-1, keepdim=True)), (read, (weights.to(v.dtype) @ v).float())):
                into.index_add_(0, rows, part.view(n_kv, len(rows), -1, part.shape[-1]).transpose(0, 1).flatten(1, 2))

    def _weights(self, scores: Tensor) -> Tensor:
        """exp(capped score), float32. The cap keeps it far from overflow."""
        return soft_cap(scores.float(), self.cap).exp_()

    def _chunks(self, block: Block, n_heads: int) -> Iterator[tuple[slice, slice]]:
        """Query rows whose scores fit a chunk, and the run's own rows that they see."""
        before = block.length - block.n_queries
        step = min(CHUNK_ROWS, max(1, CHUNK_ELEMENTS // (n_heads * block.length)), max(32, self.window or CHUNK_ROWS))
        for start in range(0, block.n_queries, step):
            stop = min(start + step, block.n_queries)
            seen = 0 if self.window is None else max(0, before + start - self.window + 1)
            yield slice(start, stop), slice(seen, before + stop)


def _readers(layout: Layout, window: int | None) -> Iterator[tuple[PrefixKV, _Readers]]:
    """For each set of earlier keys, the rows that read them. What stays the same from layer to layer is made once."""
    for number, (_, numbers) in enumerate(groupby(range(len(layout.blocks)), lambda i: id(layout.prefixes[i]))):
        blocks = list(numbers)
        earlier = layout.prefixes[blocks[0]]
        if earlier is None:
            continue
        key = (number, window)
        if key not in layout.pass_cache:
            layout.pass_cache[key] = _found_readers(layout, blocks, earlier.first, window)
        if layout.pass_cache[key] is not None:
            yield earlier, layout.pass_cache[key]


def _found_readers(layout: Layout, blocks: list[int], known: int, window: int | None) -> _Readers | None:
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
    return _Readers(reading + at, positions[reading], starts[reading], max(known, first), stop)


def _hidden(q: tuple[int, int], k: tuple[int, int], window: int | None, device: torch.device) -> Tensor | None:
    """True where a query does not see a key; None where every query sees every key."""
    if q[0] >= k[1] - 1 and (window is None or q[1] - 1 - k[0] < window):
        return None
    return ~visible(torch.arange(*q, device=device), torch.arange(*k, device=device), window)
