"""Attention patterns a few query rows at a time, so that the whole pattern of a long prompt is never in memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from gemmascope.model.attention import Attend
from gemmascope.model.maths import soft_cap

# Attention edges in memory at once, in elements: 32 MB in float32.
EDGES = 8 * 2**20

# Some query positions, and their rows of the pattern.
PatternRows = tuple[Int[Tensor, " q_pos"], Float[Tensor, "head q_pos k_pos"]]


def patterns(
    attend: Attend, q: Float[Tensor, "pos head d_head"], k: Float[Tensor, "pos kv_head d_head"]
) -> Iterator[PatternRows]:
    """The pattern of one run in float32, a few query rows at a time, from its queries and keys after RoPE."""
    positions = torch.arange(len(q), device=q.device)
    keys = rearrange(k, "k kv d -> 1 kv k d")
    for rows in torch.split(positions, rows_at_once(q.shape[1], len(q))):
        queries = rearrange(q[rows], "q (kv group) d -> 1 kv group q d", kv=k.shape[1])
        capped = soft_cap(attend.scores(queries, keys), attend.cap)
        pattern = attend.pattern(capped, rows, positions, k.dtype).float()
        yield rows, rearrange(pattern, "1 kv group q k -> (kv group) q k")


def rows_at_once(n_heads: int, n_pos: int) -> int:
    """The number of query rows of a run that fit in EDGES."""
    return max(1, EDGES // (n_heads * n_pos))
