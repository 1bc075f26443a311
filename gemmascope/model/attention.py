"""Attention over a layout: the one place where rows look at other rows.

Exact, in plain torch: scale, soft cap, mask, softmax in float32. Query rows go in chunks, each with the keys cut to
what those rows can see, so that the causal half and the window come for free and no prompt needs its whole score matrix
at once. Where runs start later than position 0, later.py has the way. When a tap wants the scores or the pattern of a
layer, they are made whole, and what the tap returns is used.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from gemmascope.errors import TapError
from gemmascope.model.layout import Block, Layout, PrefixKV
from gemmascope.model.maths import soft_cap, visible
from gemmascope.model.prefix_attention import PrefixAttention
from gemmascope.model.tap import BoundTap
from gemmascope.sites import EDGE_SITES

# Scores held at once, in elements: 32 MB in float32. Measured on two cores: larger chunks leave the cache.
CHUNK_ELEMENTS = 8 * 2**20
CHUNK_ROWS = 256

# Scores up to here can be summed as exp(score) in float32 as they are: exp(80) is 5e34.
EXPONENT = 80


class Attend:
    """softmax(mask(cap(q k scale))) v, for the heads of one layer."""

    def __init__(self, scale: float, cap: float | None, window: int | None) -> None:
        self.scale, self.cap, self.window = scale, cap, window

    def __call__(
        self,
        q: Float[Tensor, "query head d_head"],
        k: Float[Tensor, "row kv_head d_head"],
        v: Float[Tensor, "row kv_head d_head"],
        layout: Layout,
        tap: BoundTap,
    ) -> Float[Tensor, "query head d_head"]:
        if layout.kv_cache is not None:
            layout.kv_cache.append(k, v, layout.positions, layout.pass_cache)
            return layout.kv_cache.attend(q, layout.positions, self.scale, self.cap, layout.pass_cache)
        whole = any(tap.wants(site) for site in EDGE_SITES)
        if not whole and any(block.start for block in layout.blocks):
            if self.cap is not None and self.cap <= EXPONENT:
                return PrefixAttention(self.scale, self.cap, self.window)(q, k, v, layout)
            whole = True
        parts, at = [], 0
        for i, block in enumerate(layout.blocks):
            stop = at + block.count * block.n_queries
            q_b = rearrange(q[at:stop], "(run q) (kv group) d -> run kv group q d", run=block.count, kv=k.shape[1])
            k_b, v_b = (rearrange(x[block.rows], "(run k) kv d -> run kv k d", run=block.count) for x in (k, v))
            earlier = layout.prefixes[i] if block.start else None
            z = (
                self._whole(q_b, *_joined(k_b, v_b, earlier, block), block, tap)
                if whole
                else self._chunked(q_b, k_b, v_b, block)
            )
            parts.append(rearrange(z, "run kv group q d -> (run q) (kv group) d"))
            at = stop
        return parts[0] if len(parts) == 1 else torch.cat(parts)

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
        """Capped scores with minus infinity where a query does not see a key."""
        return capped.masked_fill(~visible(q_pos, k_pos, self.window), -torch.inf)

    def read(
        self, pattern: Float[Tensor, "run kv group q k"], v: Float[Tensor, "run kv k d"]
    ) -> Float[Tensor, "run kv group q d"]:
        """The values, weighted by the pattern."""
        flat = rearrange(pattern, "run kv group q k -> run kv (group q) k") @ v
        return rearrange(flat, "run kv (group q) d -> run kv group q d", group=pattern.shape[2])

    def first_seen(self, q_pos: int) -> int:
        """The earliest key that a query at this position sees."""
        return 0 if self.window is None else max(0, q_pos - self.window + 1)

    def _chunked(self, q: Tensor, k: Tensor, v: Tensor, block: Block) -> Tensor:
        """Runs from position 0: query rows in chunks, the keys of each cut to what it sees."""
        positions = torch.arange(block.length, device=q.device)
        parts = []
        for rows in _chunks(q, block.length):
            start, stop = rows.start + block.length - block.n_queries, rows.stop + block.length - block.n_queries
            seen = slice(self.first_seen(start), stop)
            capped = soft_cap(self.scores(q[..., rows, :], k[..., seen, :]), self.cap)
            pattern = self.pattern(capped, positions[start:stop], positions[seen], v.dtype)
            parts.append(self.read(pattern, v[..., seen, :]))
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


def _chunks(q: Tensor, n_keys: int) -> list[slice]:
    """Slices of the query rows whose scores against n_keys keys fit the chunk."""
    n_rows, per_row = q.shape[3], q.shape[0] * q.shape[1] * q.shape[2] * n_keys
    step = min(CHUNK_ROWS, max(1, CHUNK_ELEMENTS // per_row))
    return [slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step)]


def _joined(k: Tensor, v: Tensor, earlier: PrefixKV | None, block: Block) -> tuple[Tensor, Tensor]:
    """Keys and values of a block with the earlier ones in front."""
    if earlier is None:
        return k, v
    early = earlier.between(earlier.first, block.start)
    k_all, v_all = (torch.cat((e.expand(block.count, *e.shape), own), dim=2) for e, own in zip(early, (k, v), strict=True))
    return k_all, v_all
