"""Exercises of notebook 2: attention, local and global."""

from __future__ import annotations

import torch
from einops import einsum, repeat
from torch import Tensor

from gemmascope.model.maths import soft_cap
from gemmascope.run.trace import Trace
from gemmascope.run.tracing import trace
from gemmascope.workshop.exercises.inputs import SHAPE, normal, random_ids, small_model
from gemmascope.workshop.grading import Exercise, Wrong

CAP, SCALE, GROUP = SHAPE.attn_cap or 0.0, SHAPE.query_scalar**-0.5, SHAPE.heads_per_kv


# 2.1: scores by hand


def _queries_and_keys(seed: int) -> tuple[Tensor, Tensor, float, float]:
    """Queries [pos, head, d_head] and keys [pos, kv_head, d_head] after RoPE, the scale and the cap."""
    return normal(seed, 9, SHAPE.n_heads, 8) * 3, normal(seed + 1, 9, SHAPE.n_kv_heads, 8) * 3, SCALE, CAP


def _products(q: Tensor, k: Tensor) -> Tensor:
    return einsum(q, repeat(k, "pos kv d -> pos (kv g) d", g=GROUP), "q head d, k head d -> head q k")


def _tiled(q: Tensor, k: Tensor) -> Tensor:
    return einsum(q, repeat(k, "pos kv d -> pos (g kv) d", g=GROUP), "q head d, k head d -> head q k")


ex_2_1 = Exercise(
    "2.1",
    _queries_and_keys,
    lambda q, k, scale, cap: soft_cap(_products(q, k) * scale, cap),
    [
        Wrong(lambda q, k, scale, cap: _products(q, k), "the scale and the soft cap are missing"),
        Wrong(
            lambda q, k, scale, cap: soft_cap(_products(q, k), cap),
            "the scale is missing: multiply by it before the soft cap",
        ),
        Wrong(lambda q, k, scale, cap: _products(q, k) * scale, "the soft cap is missing"),
        Wrong(
            lambda q, k, scale, cap: soft_cap(_products(q, k), cap) * scale, "the scale comes before the soft cap, not after"
        ),
        Wrong(
            lambda q, k, scale, cap: soft_cap(_tiled(q, k) * scale, cap),
            "query heads were dealt out in turn: query head h reads kv head h // (heads per kv head), neighbours share one",
        ),
        Wrong(
            lambda q, k, scale, cap: soft_cap(_products(q, k) * scale, cap).mT,
            "queries and keys have changed places: the axes are [head, query position, key position]",
        ),
        Wrong(
            lambda q, k, scale, cap: soft_cap(_products(q, k)[::GROUP] * scale, cap),
            "query heads counted where kv heads are: there is a score for every query head",
        ),
        Wrong(
            lambda q, k, scale, cap: soft_cap(_products(q, k) * q.shape[-1] ** -0.5, cap),
            "scaled by d_head: Gemma 2 scales by query_pre_attn_scalar ** -0.5, which is given as scale",
        ),
        Wrong(
            lambda q, k, scale, cap: soft_cap(_products(q, k) / scale, cap),
            "divided by the scale: it is a factor, so multiply by it",
        ),
        Wrong(
            lambda q, k, scale, cap: soft_cap(_products(q, k) * scale, cap).masked_fill(~_sees(len(q), len(q)), -torch.inf),
            "the mask was applied as well: asked are the scores before the mask",
        ),
    ],
    "capped scores [head, q_pos, k_pos]",
)


# 2.2: the mask


def _sees(n_pos: int, window: int, shift: int = 0) -> Tensor:
    distance = torch.arange(n_pos)[:, None] - torch.arange(n_pos)
    return (distance >= 0) & (distance < window + shift)


ex_2_2 = Exercise(
    "2.2",
    lambda seed: (8 + seed % 5, 2 + seed % 4),
    _sees,
    [
        Wrong(
            lambda n, window: _sees(n, window, 1),
            "the window lets one token too many in: it counts the query's own position, so distances end at window - 1",
        ),
        Wrong(
            lambda n, window: _sees(n, window, -1),
            "the window leaves one token too few: it counts the query's own position, so distances end at window - 1",
        ),
        Wrong(lambda n, window: _sees(n, n), "the window is missing: this is the mask of a global layer"),
        Wrong(lambda n, window: _sees(n, window).mT, "queries look ahead: a query sees keys at or before its own position"),
        Wrong(lambda n, window: _sees(n, window) | _sees(n, window).mT, "the causal half is missing: no query looks ahead"),
        Wrong(
            lambda n, window: _sees(n, window) | ~_sees(n, n),
            "keys after the query are let in: their distance is negative, and no query looks ahead",
        ),
        Wrong(
            lambda n, window: _sees(n, window) & ~torch.eye(n, dtype=torch.bool),
            "the query's own position is missing: a query sees itself, at distance 0",
        ),
        Wrong(lambda n, window: ~_sees(n, window), "turned round: True where the query sees the key"),
    ],
    "which keys each query sees, bool [q_pos, k_pos]",
)


# 2.3: induction, from a pattern


def _pattern(seed: int) -> tuple[Tensor, int]:
    """A pattern [head, q_pos, k_pos] over `<bos>` and `half` tokens that occur twice, and that number."""
    half = 6 + seed % 4
    n_pos = 1 + 2 * half
    scores = normal(seed, SHAPE.n_heads, n_pos, n_pos) * 2
    return scores.masked_fill(~_sees(n_pos, n_pos), -torch.inf).softmax(-1), half


def _back(pattern: Tensor, back: int, first: int) -> Tensor:
    return torch.stack([pattern[:, q, q - back] for q in range(first, pattern.shape[1])], -1).mean(-1)


ex_2_3 = Exercise(
    "2.3",
    _pattern,
    lambda pattern, half: _back(pattern, half - 1, 1 + half),
    [
        Wrong(
            lambda pattern, half: _back(pattern, half, 1 + half),
            "off by one: this is attention to the same token in the first copy (a duplicate-token score); induction reads "
            "the token that followed it",
        ),
        Wrong(
            lambda pattern, half: _back(pattern, 1, 1 + half),
            "this is attention to the token before (a previous-token score)",
        ),
        Wrong(
            lambda pattern, half: _back(pattern, half - 1, half - 1),
            "the first copy was averaged in: only queries of the second copy have seen what follows",
        ),
        Wrong(
            lambda pattern, half: _back(pattern, half - 2, 1 + half) if half > 2 else pattern[:, 0, 0],
            "off by one the other way: this is attention two tokens after the same token in the first copy",
        ),
        Wrong(
            lambda pattern, half: _back(pattern[:, :-1], half - 1, half),
            "<bos> was left out of the count: the second copy stands at positions 1 + half to 2 * half",
        ),
        Wrong(
            lambda pattern, half: _back(pattern[:, :-1], half - 1, 1 + half),
            "the last token of the second copy was left out: it stands at position 2 * half",
        ),
        Wrong(
            lambda pattern, half: _back(pattern.mT, half - 1, 1 + half),
            "queries and keys have changed places: the axes are [head, q_pos, k_pos]",
        ),
    ],
    "one score for each head [head]",
)


# 2.4: a pattern times the values


def _reading(seed: int) -> tuple[Tensor, Tensor]:
    pattern, _ = _pattern(seed)
    return pattern, normal(seed + 1, pattern.shape[1], SHAPE.n_kv_heads, 8)


def _read(pattern: Tensor, v: Tensor, order: str = "(kv g)") -> Tensor:
    return einsum(pattern, repeat(v, f"pos kv d -> pos {order} d", g=GROUP), "head q k, k head d -> q head d")


ex_2_4 = Exercise(
    "2.4",
    _reading,
    _read,
    [
        Wrong(
            lambda pattern, v: _read(pattern, v, "(g kv)"),
            "query heads were dealt out in turn: query head h reads kv head h // (heads per kv head)",
        ),
        Wrong(
            lambda pattern, v: _read(pattern.mT, v), "summed over queries: a head sums values over the keys that it reads"
        ),
        Wrong(
            lambda pattern, v: _read(pattern[::GROUP].repeat_interleave(GROUP, 0), v),
            "kv heads counted where query heads are: every query head has a pattern of its own",
        ),
        Wrong(lambda pattern, v: _read(pattern, v).transpose(0, 1), "the axes are [pos, head, d_head]"),
    ],
    "z: what each head reads [pos, head, d_head]",
)


# 2.5: the mean distance of attention


def _run(seed: int) -> tuple[Trace, int]:
    return trace(random_ids(seed, 14), model=small_model(seed % 8)), seed % 3


def _distance(t: Trace, layer: int, start: int = 1) -> Tensor:
    pattern = t["pattern", layer]
    at = torch.arange(pattern.shape[-1], dtype=torch.float32)
    back = (at[:, None] - at).clamp(min=0)
    mean: Tensor = (pattern * back).sum(-1)[:, start:].mean(-1)
    return mean


def _distance_absolute(t: Trace, layer: int) -> Tensor:
    pattern = t["pattern", layer]
    at = torch.arange(pattern.shape[-1], dtype=torch.float32)
    mean: Tensor = (pattern * at).sum(-1)[:, 1:].mean(-1)
    return mean


ex_2_5 = Exercise(
    "2.5",
    _run,
    _distance,
    [
        Wrong(lambda t, layer: _distance(t, layer, 0), "position 0 was averaged in: <bos> can look nowhere but at itself"),
        Wrong(_distance_absolute, "this is the mean key position: distance is query position less key position"),
        Wrong(lambda t, layer: _distance(t, layer) + 1, "off by one: a query that reads itself looks 0 positions back"),
        Wrong(lambda t, layer: -_distance(t, layer), "the sign is turned round: looking back is a positive distance"),
    ],
    "mean distance of attention for each head [head]",
)
