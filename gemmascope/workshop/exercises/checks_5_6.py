"""Exercises of notebooks 5 and 6: dictionaries, steering, int8 and the KV cache."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gemmascope.workshop.exercises.inputs import normal
from gemmascope.workshop.grading import Exercise, Wrong

# 5.1: JumpReLU


def _dictionary(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x [pos, d_model], W_enc [d_model, feature], b_enc [feature], threshold [feature], b_dec [d_model]."""
    return (
        normal(seed, 7, 24),
        normal(seed + 1, 24, 60) / 24**0.5,
        normal(seed + 2, 60) * 0.3,
        normal(seed + 3, 60).abs(),
        normal(seed + 4, 24),
    )


def _pre(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return x @ w + b


ex_5_1 = Exercise(
    "5.1",
    _dictionary,
    lambda x, w, b, threshold, b_dec: _pre(x, w, b) * (_pre(x, w, b) > threshold),
    [
        Wrong(lambda x, w, b, t, d: _pre(x, w, b).relu(), "the threshold is missing: this is a plain ReLU"),
        Wrong(
            lambda x, w, b, t, d: (_pre(x, w, b) - t).relu(),
            "the threshold was subtracted: a JumpReLU lets a number above it through as it is",
        ),
        Wrong(
            lambda x, w, b, t, d: _pre(x - d, w, b) * (_pre(x - d, w, b) > t),
            "b_dec was taken off first: Gemma Scope's dictionaries read the stream as it is",
        ),
        Wrong(lambda x, w, b, t, d: (_pre(x, w, b) > t).float(), "this says which features are on: how much is missing"),
        Wrong(lambda x, w, b, t, d: (x @ w) * ((x @ w) > t), "b_enc is missing"),
    ],
    "activations [pos, feature]",
)


# 5.2: change a feature and keep the error


def _changed(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, int, float]:
    """x [d_model], activations [feature], W_dec [feature, d_model], b_dec [d_model], a feature, its new activation."""
    acts = normal(seed, 60).relu()
    acts[seed % 60] = 0.8
    return normal(seed + 1, 24), acts, normal(seed + 2, 60, 24), normal(seed + 3, 24), seed % 60, 3.0 + seed % 4


def _set(acts: Tensor, feature: int, to: float) -> Tensor:
    new = acts.clone()
    new[feature] = to
    return new


ex_5_2 = Exercise(
    "5.2",
    _changed,
    lambda x, acts, w, b, feature, to: x + (_set(acts, feature, to) - acts) @ w,
    [
        Wrong(
            lambda x, acts, w, b, feature, to: _set(acts, feature, to) @ w + b,
            "the error term was lost: what the dictionary does not explain is to stay in the stream",
        ),
        Wrong(
            lambda x, acts, w, b, feature, to: x + to * w[feature],
            "the new activation was added to the old one: add the difference",
        ),
        Wrong(lambda x, acts, w, b, feature, to: x, "nothing was changed"),
        Wrong(
            lambda x, acts, w, b, feature, to: x + (acts - _set(acts, feature, to)) @ w,
            "the sign is turned round: new less old",
        ),
        Wrong(
            lambda x, acts, w, b, feature, to: x + (_set(acts, feature, to) - acts) @ w + b,
            "b_dec was added: it is part of both reconstructions and falls out of their difference",
        ),
        Wrong(
            lambda x, acts, w, b, feature, to: x - acts[feature] * w[feature],
            "the feature was taken out, which is to set it to 0: to was not used",
        ),
    ],
    "the stream that the run goes on with [d_model]",
)


# 5.3: a direction from contrasting prompts


def _classes(seed: int) -> tuple[Tensor, Tensor]:
    return normal(seed, 5 + seed % 4, 24) + 1, normal(seed + 1, 7, 24)


ex_5_3 = Exercise(
    "5.3",
    _classes,
    lambda positive, negative: positive.mean(0) - negative.mean(0),
    [
        Wrong(lambda p, n: n.mean(0) - p.mean(0), "the sign is turned round: positive less negative"),
        Wrong(
            lambda p, n: p.sum(0) - n.sum(0), "sums: with classes of unequal size that is not the difference of their means"
        ),
        Wrong(lambda p, n: p.mean(0), "the negative prompts were not used: what all prompts share is still in it"),
        Wrong(
            lambda p, n: (p.mean(0) - n.mean(0)) / (p.mean(0) - n.mean(0)).norm(),
            "divided by its length: right in direction, but a strength of 1 would no longer mean the classes' distance",
        ),
    ],
    "the direction [d_model]",
)


# 5.4: take a direction out


def _projected(seed: int) -> tuple[Tensor, Tensor]:
    return normal(seed, 7, 24), normal(seed + 1, 24) * 3


ex_5_4 = Exercise(
    "5.4",
    _projected,
    lambda x, v: x - (x @ v)[:, None] * v / (v @ v),
    [
        Wrong(lambda x, v: x - (x @ v)[:, None] * v, "the direction was not made a unit vector first"),
        Wrong(
            lambda x, v: x - (x @ v)[:, None] * v / v.norm(),
            "divided by the length once: it comes in twice, in the product and in the direction",
        ),
        Wrong(lambda x, v: x - v, "the direction was subtracted: take off as much of it as there is in each row"),
        Wrong(lambda x, v: (x @ v)[:, None] * v / (v @ v), "this is the part along the direction: asked is what is left"),
        Wrong(lambda x, v: x + (x @ v)[:, None] * v / (v @ v), "added rather than taken off"),
        Wrong(
            lambda x, v: x - torch.nn.functional.cosine_similarity(x, v[None])[:, None] * v,
            "the cosine leaves out how long each row is: take the product with the direction instead",
        ),
    ],
    "the rows without the direction [pos, d_model]",
)


# 6.1: int8 in groups


def _weights(seed: int) -> tuple[Tensor, int]:
    """A matrix [out, in] whose groups have different sizes, and the group's length along the input."""
    return normal(seed, 6, 64) * torch.linspace(0.2, 5, 4).repeat_interleave(16), 16


def _int8(
    w: Tensor, group: int, *, top: float = 127, signed: bool = False, rounding: Callable[[Tensor], Tensor] = torch.round
) -> Tensor:
    grouped = w.reshape(len(w), -1, group)
    most = grouped.amax(-1, keepdim=True) if signed else grouped.abs().amax(-1, keepdim=True)
    scale = most / top
    return (rounding(grouped / scale).clamp(-127, 127) * scale).reshape(w.shape)


ex_6_1 = Exercise(
    "6.1",
    _weights,
    _int8,
    [
        Wrong(lambda w, group: _int8(w, w.shape[1]), "one scale for a whole row: each group of inputs has its own"),
        Wrong(
            lambda w, group: _int8(w.T.contiguous(), w.shape[0]).T,
            "the groups run along the output: they run along the input, the last axis",
        ),
        Wrong(
            lambda w, group: _int8(w, group, signed=True),
            "the scale comes from the largest number, not from the largest size: abs is missing",
        ),
        Wrong(lambda w, group: _int8(w, group, top=255), "divided by 255: eight bits with a sign go from -127 to 127"),
        Wrong(lambda w, group: _int8(w, group, top=128), "divided by 128: the largest whole number here is 127"),
        Wrong(
            lambda w, group: (w / (w.abs().max() / 127)).round() * (w.abs().max() / 127),
            "one scale for the whole matrix: each group of inputs has its own",
        ),
        Wrong(
            lambda w, group: _int8(w, group, rounding=torch.trunc),
            "the places after the point were cut off, as a cast to int8 does: round first",
        ),
        Wrong(lambda w, group: w, "nothing was rounded"),
        Wrong(
            lambda w, group: (
                (w.reshape(len(w), -1, group) / (w.reshape(len(w), -1, group).abs().amax(-1, keepdim=True) / 127))
                .round()
                .reshape(w.shape)
            ),
            "these are the whole numbers: multiply by the scale again",
        ),
    ],
    "the weights as rounded [out, in]",
    tolerance=1e-5,
)


# 6.2: bytes of keys and values


def _shape(seed: int) -> tuple[int, ...]:
    """n_local, n_global, n_heads, n_kv_heads, d_head, window, context, bytes a number.

    Of three seeds in a row, one has a prompt shorter than the window.
    """
    n_global = 4 + seed % 7
    return n_global + 1 + seed % 9, n_global, 16, 8, 128 + 64 * (seed % 2), 1024 << (seed % 3), 3000, 2 + 2 * (seed % 2)


def _cache(
    n_local: int, n_global: int, heads: int, d_head: int, window: int, context: int, size: int, parts: int = 2
) -> int:
    return parts * heads * d_head * size * (n_local * min(window, context) + n_global * context)


ex_6_2 = Exercise(
    "6.2",
    _shape,
    lambda n_l, n_g, h, kv, d, window, context, size: _cache(n_l, n_g, kv, d, window, context, size),
    [
        Wrong(
            lambda n_l, n_g, h, kv, d, window, context, size: _cache(n_l, n_g, h, d, window, context, size),
            "query heads counted where kv heads are",
        ),
        Wrong(
            lambda n_l, n_g, h, kv, d, window, context, size: _cache(n_l, n_g, kv, d, context, context, size),
            "the window was forgotten: a local layer keeps no more positions than its window",
        ),
        Wrong(
            lambda n_l, n_g, h, kv, d, window, context, size: 2 * kv * d * size * (n_l * window + n_g * context),
            "a prompt shorter than the window was counted as long as it: a local layer keeps min(window, context) positions",
        ),
        Wrong(
            lambda n_l, n_g, h, kv, d, window, context, size: _cache(n_l, n_g, kv, d, window, context, size, 1),
            "only keys, or only values: both are kept",
        ),
        Wrong(
            lambda n_l, n_g, h, kv, d, window, context, size: _cache(n_l, n_g, kv, d, window, context, 1),
            "numbers counted, not bytes",
        ),
        Wrong(
            lambda n_l, n_g, h, kv, d, window, context, size: _cache(n_g, n_l, kv, d, window, context, size),
            "local and global layers have changed places",
        ),
    ],
    "bytes, a whole number",
)
