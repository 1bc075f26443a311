"""Attention over a layout: the one place where rows look at other rows.

Exact, in plain torch: scale, soft cap, mask, softmax in float32. Query rows go in chunks, each with the keys cut to
what those rows can see, so that the causal half and the window come for free and no prompt needs its whole score matrix
at once. When a tap wants the scores or the pattern of a layer, they are made whole, and what the tap returns is used.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from gemmascope.model.layout import Block, Layout
from gemmascope.model.maths import soft_cap, visible
from gemmascope.model.tap import BoundTap
from gemmascope.sites import EDGE_SITES

# Scores held at once, in elements: 32 MB in float32. Measured on two cores: larger chunks leave the cache.
CHUNK_ELEMENTS = 8 * 2**20
CHUNK_ROWS = 256


class Attend:
    """softmax(mask(cap(q k scale))) v, for the heads of one layer."""

    def __init__(self, scale: float, cap: float | None, window: int | None) -> None:
        self.scale, self.cap, self.window = scale, cap, window

    def __call__(
        self,
        q: Float[Tensor, "row head d_head"],
        k: Float[Tensor, "row kv_head d_head"],
        v: Float[Tensor, "row kv_head d_head"],
        layout: Layout,
        tap: BoundTap,
    ) -> Float[Tensor, "row head d_head"]:
        whole = any(tap.wants(site) for site in EDGE_SITES)
        parts = []
        for block in layout.blocks:
            q_b = rearrange(q[block.rows], "(run q) (kv group) d -> run kv group q d", run=block.count, kv=k.shape[1])
            k_b, v_b = (rearrange(x[block.rows], "(run k) kv d -> run kv k d", run=block.count) for x in (k, v))
            z = self._whole(q_b, k_b, v_b, block, tap) if whole else self._chunked(q_b, k_b, v_b)
            parts.append(rearrange(z, "run kv group q d -> (run q) (kv group) d"))
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
        masked = capped.masked_fill(~visible(q_pos, k_pos, self.window), -torch.inf)
        return masked.softmax(-1, dtype=torch.float32).to(dtype)

    def read(
        self, pattern: Float[Tensor, "run kv group q k"], v: Float[Tensor, "run kv k d"]
    ) -> Float[Tensor, "run kv group q d"]:
        """The values, weighted by the pattern."""
        flat = rearrange(pattern, "run kv group q k -> run kv (group q) k") @ v
        return rearrange(flat, "run kv (group q) d -> run kv group q d", group=pattern.shape[2])

    def first_seen(self, q_pos: int) -> int:
        """The earliest key that a query at this position sees."""
        return 0 if self.window is None else max(0, q_pos - self.window + 1)

    def _chunked(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n_pos = q.shape[3]
        positions = torch.arange(n_pos, device=q.device)
        per_row = q.shape[0] * q.shape[1] * q.shape[2] * n_pos
        step = min(CHUNK_ROWS, max(1, CHUNK_ELEMENTS // per_row))
        parts = []
        for start in range(0, n_pos, step):
            stop = min(start + step, n_pos)
            seen = slice(self.first_seen(start), stop)
            capped = soft_cap(self.scores(q[..., start:stop, :], k[..., seen, :]), self.cap)
            pattern = self.pattern(capped, positions[start:stop], positions[seen], v.dtype)
            parts.append(self.read(pattern, v[..., seen, :]))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=3)

    def _whole(self, q: Tensor, k: Tensor, v: Tensor, block: Block, tap: BoundTap) -> Tensor:
        def tapped(site: str, value: Tensor) -> Tensor:
            if not tap.wants(site):
                return value
            flat = tap.edges(site, rearrange(value, "run kv group q k -> run (kv group) q k"), block)
            return rearrange(flat, "run (kv group) q k -> run kv group q k", kv=k.shape[1])

        positions = torch.arange(block.length, device=q.device)
        scores = tapped("scores", self.scores(q, k))
        capped = tapped("scores_capped", soft_cap(scores, self.cap))
        return self.read(tapped("pattern", self.pattern(capped, positions, positions, v.dtype)), v)
