"""Exercises of notebook 7: the norm of queries and keys in Gemma 3, and how far back a stack of layers can see."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import torch
from torch import Tensor

from gemmascope.workshop.exercises.inputs import SHAPE, normal
from gemmascope.workshop.grading import Exercise, Wrong

EPS = SHAPE.norm_eps


# 7.1: the norm that Gemma 3 gives each head's queries and keys


def _heads(seed: int) -> tuple[Tensor, Tensor, float]:
    return 2 * normal(seed, 5, 3, 8) + 0.5, 0.5 * normal(seed + 1, 8), EPS


def _rms_normed(x: Tensor, dims: tuple[int, ...], gain: Tensor) -> Tensor:
    return x / (x.square().mean(dims, keepdim=True) + EPS).sqrt() * gain


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return _rms_normed(x, (-1,), 1 + weight)


ex_7_1 = Exercise(
    "7.1",
    _heads,
    _normed,
    [
        Wrong(
            lambda x, weight, eps: _rms_normed(x, (-2, -1), 1 + weight),
            "one scale for all heads of a position: each head has its own",
        ),
        Wrong(
            lambda x, weight, eps: _rms_normed(x, (0,), 1 + weight),
            "the mean runs over positions: it runs over d_head alone",
        ),
        Wrong(
            lambda x, weight, eps: _rms_normed(x, (-1,), weight),
            "the norm multiplies by its weight: in Gemma it multiplies by (1 + weight)",
        ),
        Wrong(
            lambda x, weight, eps: _rms_normed(x, (-1,), torch.ones_like(weight)),
            "the norm's gain, (1 + weight), is missing",
        ),
        Wrong(
            lambda x, weight, eps: _rms_normed(x - x.mean(-1, keepdim=True), (-1,), 1 + weight),
            "the mean was taken off, as in a LayerNorm: an RMS norm leaves it",
        ),
        Wrong(
            lambda x, weight, eps: x / x.norm(dim=-1, keepdim=True) * (1 + weight),
            "divided by the length: the root of the mean square is the length over the root of d_head",
        ),
        Wrong(
            lambda x, weight, eps: _rms_normed(x, (1,), 1 + weight),
            "the mean runs over heads: it runs over d_head, the last axis",
        ),
        Wrong(
            lambda x, weight, eps: x / (x.square().mean(-1, keepdim=True) + eps) * (1 + weight),
            "divided by the mean square: by its root",
        ),
    ],
    "queries of the same shape [pos, head, d_head]",
)


# 7.2: how far back the stream after some layers can know of


def _stack(seed: int) -> tuple[list[str], int, int]:
    """Kinds of layers, a window, and a length of prompt.

    Of three stacks one has a global layer, and one a prompt that ends before its reach.
    """
    rng = Random(seed)
    kinds = ["local"] * rng.randint(2, 5)
    if seed % 3 == 1:
        kinds.insert(rng.randrange(len(kinds)), "global")
    window = rng.randint(4, 9)
    if seed % 3 == 2:
        return kinds, window, rng.randint(window + 1, len(kinds) * (window - 1) - 1)
    return kinds, window, rng.randint(60, 90)


def _reach(kinds: Sequence[str], window: int, n_pos: int) -> int:
    return n_pos - 1 if "global" in kinds else min(n_pos - 1, kinds.count("local") * (window - 1))


ex_7_2 = Exercise(
    "7.2",
    _stack,
    _reach,
    [
        Wrong(
            lambda kinds, window, n_pos: n_pos - 1 if "global" in kinds else min(n_pos - 1, len(kinds) * window),
            "a window of n positions holds the query's own: the farthest key is n - 1 positions back",
        ),
        Wrong(
            lambda kinds, window, n_pos: n_pos - 1 if "global" in kinds else min(n_pos - 1, window - 1),
            "this is the reach of one layer: the next one reads positions that have read further back themselves",
        ),
        Wrong(
            lambda kinds, window, n_pos: min(n_pos - 1, len(kinds) * (window - 1)),
            "global layers were counted as local ones: one of them reaches the first position",
        ),
        Wrong(
            lambda kinds, window, n_pos: n_pos if "global" in kinds else min(n_pos - 1, len(kinds) * (window - 1)),
            "the first position is n_pos - 1 positions before the last, not n_pos",
        ),
        Wrong(
            lambda kinds, window, n_pos: (window - 1) ** len(kinds) if "global" not in kinds else n_pos - 1,
            "the reaches of layers add up: they are not multiplied",
        ),
        Wrong(
            lambda kinds, window, n_pos: n_pos - 1 if "global" in kinds else len(kinds) * (window - 1),
            "this may be farther than the first position, which is n_pos - 1 positions before the last",
        ),
        Wrong(
            lambda kinds, window, n_pos: min(n_pos - 1, kinds.count("local") * (window - 1)),
            "a global layer was left out: it sees the first position, however many local ones there are",
        ),
        Wrong(
            lambda kinds, window, n_pos: _reach(kinds, window, n_pos) + 1,
            "positions were counted, the last one with them: asked for is a distance, one less",
        ),
        Wrong(
            lambda kinds, window, n_pos: n_pos - 1 - _reach(kinds, window, n_pos),
            "this is the number of the position: asked for is how far it is from the last one",
        ),
        Wrong(
            lambda kinds, window, n_pos: _reach(kinds[1:], window, n_pos) if "global" not in kinds else n_pos - 1,
            "a layer is missing: the first one looks back as well",
        ),
    ],
    "a distance in positions, a whole number",
)
