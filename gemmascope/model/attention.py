"""Attention over a layout: scale, soft cap, mask, softmax in float32, exact and in plain torch or in one kernel.

Attend chooses between the forms of the same formula. Where Triton kernels run, one of them computes all runs of a pass.
Elsewhere, runs from position 0 are computed here, in chunks of query rows, each with only the keys that it can see, so that
masked halves and windows cost nothing and no prompt needs its whole score matrix at once. Runs that start after position 0,
and prompts of unlike lengths, go through prefix_attention.py, and runs that grow by one row go through kv_cache.py. If a tap
wants the scores or the pattern of a layer, they are computed whole.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from gemmascope.config import GemmaConfig
from gemmascope.errors import TapError
from gemmascope.kernels.attention_tiles import Runs, Scores, Tiles, fits, many_rows, tile_tables
from gemmascope.kernels.switch import attention_kernels, fuses
from gemmascope.model.kv_cache import KVCache
from gemmascope.model.layout import Block, KeyPool, Layout, PrefixKV
from gemmascope.model.maths import first_visible, index_tensor, ranges, soft_cap, visible
from gemmascope.model.prefix_attention import KeyValues, PrefixAttention, Queries
from gemmascope.model.tap import BoundTap
from gemmascope.sites import EDGE_SITES
from gemmascope.values import chunks

# Scores in memory at once: 32 MB in float32. Measured on two cores: larger chunks do not fit the processor cache.
CHUNK_ELEMENTS = 8 * 2**20
CHUNK_ROWS = 256

# The largest score whose exp float32 can sum: exp(80) is 5e34.
MAX_EXPONENT = 80


class Attend:
    """softmax(mask(cap(q k scale))) v, for the heads of one layer."""

    def __init__(self, scale: float, cap: float | None, window: int | None) -> None:
        self.scale, self.cap, self.window = scale, cap, window

    def __call__(
        self,
        q: Queries,
        k: KeyValues,
        v: KeyValues,
        layout: Layout,
        tap: BoundTap,
    ) -> Queries:
        if layout.kv_cache is not None:
            return self.step(q, k, v, layout.kv_cache, layout)
        whole = any(tap.wants(site) for site in EDGE_SITES)
        if not whole and _kernel_fits(q, k):
            return self._in_one_kernel(q, k, v, layout)
        starts_late = any(block.start for block in layout.blocks)
        # Prompts of unlike lengths are padded to one shape there, in place, so a gradient goes the other way.
        grouped = starts_late or (len(layout.blocks) > 1 and not torch.is_grad_enabled())
        fits_exp = not torch.is_grad_enabled() if self.cap is None else self.cap <= MAX_EXPONENT
        if grouped and not whole and fits_exp:
            return PrefixAttention(self.scale, self.cap, self.window)(q, k, v, layout)
        whole |= starts_late
        parts, at = [], 0
        for i, block in enumerate(layout.blocks):
            stop = at + block.count * block.n_queries
            q_b = rearrange(q[at:stop], "(run q) (kv group) d -> run kv group q d", run=block.count, kv=k.shape[1])
            k_b, v_b = (rearrange(x[block.rows], "(run k) kv d -> run kv k d", run=block.count) for x in (k, v))
            prefix = layout.prefixes[i] if block.start else None
            z = (
                self._whole(q_b, *_with_prefix(k_b, v_b, prefix, block), block, tap)
                if whole
                else self._chunked(q_b, k_b, v_b, block, tap)
            )
            parts.append(rearrange(z, "run kv group q d -> (run q) (kv group) d"))
            at = stop
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def step(
        self,
        q: Float[Tensor, "run head d_head"],
        k: Float[Tensor, "run kv_head d_head"],
        v: Float[Tensor, "run kv_head d_head"],
        cache: KVCache,
        layout: Layout,
    ) -> Float[Tensor, "run head d_head"]:
        """Attention of one new row of every run, whose key and value go into the layer's cache."""
        if _kernel_fits(q, k):
            scores = Scores(self.scale, self.cap, self.window)
            return cache.step_in_kernels(q, k, v, layout.positions, max(layout.starts), scores)
        cache.append(k, v, layout.starts, layout.pass_cache)
        return cache.attend(q, layout.starts, self.scale, self.cap, layout.pass_cache)

    def scores(
        self, q: Float[Tensor, "run kv group q d"], k: Float[Tensor, "run kv k d"]
    ) -> Float[Tensor, "run kv group q k"]:
        """Scaled dot products, before the soft cap: all query heads of a key-value head in one product."""
        flat = rearrange(q * self.scale, "run kv group q d -> run kv (group q) d") @ k.mT
        return rearrange(flat, "run kv (group q) k -> run kv group q k", group=q.shape[2])

    def pattern(
        self, capped: Float[Tensor, "*heads q k"], q_pos: Tensor, k_pos: Tensor, dtype: torch.dtype
    ) -> Float[Tensor, "*heads q k"]:
        """Attention probabilities from capped scores: mask, then softmax in float32."""
        return self.masked(capped, q_pos, k_pos).softmax(-1, dtype=torch.float32).to(dtype)

    def masked(self, capped: Float[Tensor, "*heads q k"], q_pos: Tensor, k_pos: Tensor) -> Float[Tensor, "*heads q k"]:
        """Capped scores, with minus infinity for the keys that a query does not see."""
        return capped.masked_fill(~visible(q_pos, k_pos, self.window), -torch.inf)

    def read(
        self, pattern: Float[Tensor, "run kv group q k"], v: Float[Tensor, "run kv k d"]
    ) -> Float[Tensor, "run kv group q d"]:
        """The values, weighted by the pattern."""
        flat = rearrange(pattern, "run kv group q k -> run kv (group q) k") @ v
        return rearrange(flat, "run kv (group q) d -> run kv group q d", group=pattern.shape[2])

    def _in_one_kernel(self, q: Queries, k: KeyValues, v: KeyValues, layout: Layout) -> Queries:
        pool, rows = _pool(layout)
        group, most_rows = q.shape[1] // k.shape[1], many_rows(q.dtype, q.shape[2])

        def tiles() -> list[Tiles]:
            tables = tile_tables(_runs(layout, rows), group, self.window, most_rows)
            return [Tiles(index_tensor(table, q.device), n) for table, n in tables]

        shared = layout.once(("tiles", self.window, group, most_rows, tuple(rows)), tiles)
        scores = Scores(self.scale, self.cap, self.window)
        return attention_kernels().attend_runs(q, k, v, pool, shared, scores)  # type: ignore[no-any-return]

    def edges(self, site: str, q: Float[Tensor, "q head d"], k: Float[Tensor, "k kv_head d"]) -> Float[Tensor, "head q k"]:
        """An edge site of one run from position 0, from its rotated queries and keys.

        A pattern has the bits of the run: it is computed in the same chunks.
        """
        q = rearrange(q, "q (kv group) d -> 1 kv group q d", kv=k.shape[1])
        k = rearrange(k, "k kv d -> 1 kv k d")
        if site == "pattern":
            whole = _WholePattern(q.shape[3], k.shape[2])
            for rows, seen, pattern in self.patterns(q, k):
                whole.add(pattern, rows, seen)
            return whole.of_heads()[0]
        value = self.scores(q, k)
        return rearrange(value if site == "scores" else soft_cap(value, self.cap), "1 kv group q k -> (kv group) q k")

    def patterns(self, q: Tensor, k: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
        """Chunks of the query rows of runs from position 0: the rows, the keys that some of them see, and their pattern."""
        length, n_queries = k.shape[2], q.shape[3]
        positions = torch.arange(length, device=q.device)
        for rows in _query_chunks(q, length):
            start, stop = rows.start + length - n_queries, rows.stop + length - n_queries
            seen = slice(first_visible(start, self.window), stop)
            capped = soft_cap(self.scores(q[..., rows, :], k[..., seen, :]), self.cap)
            yield rows, seen, self.pattern(capped, positions[start:stop], positions[seen], k.dtype)

    def _chunked(self, q: Tensor, k: Tensor, v: Tensor, block: Block, tap: BoundTap) -> Tensor:
        """Runs from position 0: query rows in chunks, each with the keys that it sees.

        What is read goes into one tensor. Kept apart, the small results would lie between the large scores of a long prompt,
        each chunk's larger than the one before, and the C library could give none of that memory out again.
        """
        whole = _WholePattern(block.n_queries, block.length) if tap.takes_pattern() else None
        z = None if torch.is_grad_enabled() else torch.empty_like(q)
        parts = []
        for rows, seen, pattern in self.patterns(q, k):
            read = self.read(pattern, v[..., seen, :])
            if z is None:
                parts.append(read)
            else:
                z[..., rows, :] = read
            if whole is not None:
                whole.add(pattern, rows, seen)
        if whole is not None:
            tap.take_pattern(whole.of_heads(), block)
        if z is not None:
            return z
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=3)

    def _whole(self, q: Tensor, k: Tensor, v: Tensor, block: Block, tap: BoundTap) -> Tensor:
        def tapped(site: str, value: Tensor) -> Tensor:
            if not tap.wants(site):
                return value
            flat = tap.edges(site, rearrange(value, "run kv group q k -> run (kv group) q k"), block)
            return rearrange(flat, "run (kv group) q k -> run kv group q k", kv=k.shape[1])

        positions = torch.arange(block.stop, device=q.device)
        q_pos, k_pos = positions[block.stop - block.n_queries :], positions[block.stop - k.shape[2] :]
        scores = tapped("scores", self.scores(q, k))
        capped = tapped("scores_capped", soft_cap(scores, self.cap))
        if bool((self.masked(capped, q_pos, k_pos) == -torch.inf).all(-1).any()):
            raise TapError("a query is left without any key to attend to: edits or taps cut all that the mask lets it see")
        return self.read(tapped("pattern", self.pattern(capped, q_pos, k_pos, v.dtype)), v)


class _WholePattern:
    """The pattern of some runs, put together from chunks of its query rows. Keys that no row of a chunk sees have 0."""

    def __init__(self, n_queries: int, n_keys: int) -> None:
        self.shape = (n_queries, n_keys)
        self.value: Tensor | None = None

    def add(self, pattern: Float[Tensor, "run kv group q k"], rows: slice, seen: slice) -> None:
        if self.value is None and pattern.shape[-2:] == self.shape:  # the only chunk
            self.value = pattern
            return
        if self.value is None:
            self.value = pattern.new_zeros(*pattern.shape[:-2], *self.shape)
        self.value[..., rows, seen] = pattern

    def of_heads(self) -> Float[Tensor, "run head q k"]:
        assert self.value is not None
        return rearrange(self.value, "run kv group q k -> run (kv group) q k")


def attend_of(config: GemmaConfig, layer: int) -> Attend:
    """How a layer attends, from the configuration alone."""
    return Attend(config.query_scalar**-0.5, config.attn_cap, config.window_of(layer))


def _kernel_fits(q: Queries, k: KeyValues) -> bool:
    """Whether one Triton kernel computes the attention of these."""
    return fuses(q) and fits(q.dtype, q.shape[2], q.shape[1] // k.shape[1])


def _query_chunks(q: Tensor, n_keys: int) -> Iterator[slice]:
    """Slices of the query rows, each with at most CHUNK_ELEMENTS scores against n_keys keys."""
    per_row = q.shape[0] * q.shape[1] * q.shape[2] * n_keys
    return chunks(q.shape[3], min(CHUNK_ROWS, max(1, CHUNK_ELEMENTS // per_row)))


def _pool(layout: Layout) -> tuple[KeyPool | None, list[tuple[int, int]]]:
    """The keys and values of all prefixes, and for each block its pool's row of position 0 and the first known position."""
    prefixes = {id(x): x for x in layout.prefixes if x is not None}
    none = [(0, 0)] * len(layout.blocks)
    if not prefixes:
        return None, none
    pools = {id(x.pool) for x in prefixes.values()}
    first = next(iter(prefixes.values()))
    if first.pool is not None and len(pools) == 1:
        pool, rows = first.pool, {number: x.pool_row for number, x in prefixes.items()}
    else:
        parts = [(x.k, x.v) for x in prefixes.values()]
        pool = KeyPool(*(x[0] if len(x) == 1 else torch.cat(x, dim=1) for x in zip(*parts, strict=True)))
        stops = np.cumsum([x.k.shape[1] for x in prefixes.values()]).tolist()
        rows = dict(zip(prefixes, [0, *stops], strict=False))
    return pool, [(0, 0) if x is None else (rows[id(x)] - x.first, x.first) for x in layout.prefixes]


def _runs(layout: Layout, rows: list[tuple[int, int]]) -> Runs:
    """The runs of a layout. rows: as _pool returns them."""
    fields = [
        (at, b.first, b.n_queries, b.length, b.start, b.stop, *row)
        for at, b, row in zip(layout.query_firsts, layout.blocks, rows, strict=False)
    ]
    counts = np.array([b.count for b in layout.blocks], dtype=np.int64)
    table = np.repeat(np.array(fields, dtype=np.int64).reshape(-1, 8), counts, axis=0)
    at, first, n_queries, length, start, stop, pool_row, known = table.T
    number = ranges(np.zeros_like(counts), counts)  # of a run in its block
    return Runs(at + number * n_queries, n_queries, first + number * length, start, stop, pool_row, known)


def _with_prefix(k: Tensor, v: Tensor, prefix: PrefixKV | None, block: Block) -> tuple[Tensor, Tensor]:
    """Keys and values of a block behind those of its prefix."""
    if prefix is None:
        return k, v
    before = prefix.between(prefix.first, block.start)
    k_all, v_all = (torch.cat((x.expand(block.count, *x.shape), own), dim=2) for x, own in zip(before, (k, v), strict=True))
    return k_all, v_all
