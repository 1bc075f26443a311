"""Exercises of notebooks 0 and 1: positions of tokens, the lens, and what each layer adds."""

from __future__ import annotations

import torch
from torch import Tensor

from gemmascope.model.maths import rms_scale, soft_cap
from gemmascope.run.trace import Trace
from gemmascope.run.tracing import trace
from gemmascope.workshop.exercises.inputs import SHAPE, normal, random_ids, small_model
from gemmascope.workshop.grading import Exercise, Wrong

_WORDS = (" Mary", " John", " and", " the", " store", " went", " to", " gave")
CAP, EPS = SHAPE.final_cap or 0.0, SHAPE.norm_eps


# 0.1: where a token stands


def _tokens(seed: int) -> tuple[list[str], str]:
    order = torch.randperm(len(_WORDS), generator=torch.Generator().manual_seed(seed)).tolist()
    tokens = ["<bos>", *(_WORDS[i] for i in order)]
    return tokens, tokens[1 + seed % len(order)]


def _stripped_position(tokens: list[str], token: str) -> int:
    positions = [at for at, one in enumerate(tokens) if one == token.strip()]
    return positions[0] if positions else -1


ex_0_1 = Exercise(
    "0.1",
    _tokens,
    lambda tokens, token: tokens.index(token),
    [
        Wrong(lambda tokens, token: tokens.index(token) - 1, "<bos> was left out of the count: it stands at position 0"),
        Wrong(lambda tokens, token: tokens.index(token) + 1, "positions are counted from 0, not from 1"),
        Wrong(_stripped_position, "the leading space was taken off: ' Mary' and 'Mary' are two different tokens"),
    ],
    "the position, a whole number",
)


# 0.2: the probability of an answer from soft-capped logits


def _prob(logits: Tensor, token_id: int) -> Tensor:
    return logits.softmax(-1)[-1, token_id]


ex_0_2 = Exercise(
    "0.2",
    lambda seed: (normal(seed, 7, 40) * 3, 2 + seed % 5),
    _prob,
    [
        Wrong(lambda logits, token: logits[-1, token], "this is the logit: the softmax over the vocabulary is missing"),
        Wrong(
            lambda logits, token: logits.softmax(-1)[0, token], "read at the first position: the answer comes after the last"
        ),
        Wrong(
            lambda logits, token: logits.softmax(0)[-1, token],
            "the softmax ran over positions: it belongs over the vocabulary",
        ),
        Wrong(lambda logits, token: logits.log_softmax(-1)[-1, token], "this is the log-probability: exp is missing"),
        Wrong(
            lambda logits, token: logits.softmax(-1)[token],
            "token_id was taken for a position: the first axis is positions, and the answer comes after the last",
        ),
        Wrong(lambda logits, token: 100 * logits.softmax(-1)[-1, token], "this is in percent: a probability is at most 1"),
    ],
    "the probability, one number",
)


# 1.1: what a layer added, from a trace


def _traced(seed: int) -> tuple[Trace, int]:
    return trace(random_ids(seed), model=small_model(seed % 8)), seed % 3


def _added(t: Trace, layer: int) -> Tensor:
    added: Tensor = t["attn_out", layer] + t["mlp_out", layer]
    return added


ex_1_1 = Exercise(
    "1.1",
    _traced,
    _added,
    [
        Wrong(
            lambda t, layer: t["attn_raw", layer] + t["mlp_raw", layer],
            "*_raw is before Gemma 2's post-norms: what joins the stream is *_out",
        ),
        Wrong(
            lambda t, layer: t["resid_post", layer],
            "this is the stream after the layer: the stream before it is still in it",
        ),
        Wrong(lambda t, layer: t["mlp_out", layer], "attention's part, attn_out, is missing"),
        Wrong(lambda t, layer: t["attn_out", layer], "the MLP's part, mlp_out, is missing"),
        Wrong(
            lambda t, layer: t["resid_pre", layer] - t["resid_post", layer], "the sign is turned round: after less before"
        ),
    ],
    "what the layer added to the stream [pos, d_model]",
)


# 1.2: the lens by hand


def _stream(seed: int) -> tuple[Tensor, Tensor, Tensor, float, float]:
    return normal(seed, 24) * 2, normal(seed + 1, 24) * 0.3, normal(seed + 2, 40, 24), EPS, CAP


def _lens(x: Tensor, weight: Tensor, embedding: Tensor, eps: float, cap: float) -> Tensor:
    return soft_cap(embedding @ (x * rms_scale(x, eps) * (1 + weight)), cap)


ex_1_2 = Exercise(
    "1.2",
    _stream,
    _lens,
    [
        Wrong(lambda x, w, e, eps, cap: e @ (x * rms_scale(x, eps) * (1 + w)), "the soft cap is missing"),
        Wrong(lambda x, w, e, eps, cap: soft_cap(e @ x, cap), "the last norm is missing"),
        Wrong(
            lambda x, w, e, eps, cap: soft_cap(e @ (x * rms_scale(x, eps) * w), cap),
            "the norm multiplies by its weight: in Gemma it multiplies by (1 + weight)",
        ),
        Wrong(
            lambda x, w, e, eps, cap: soft_cap(e @ (x * rms_scale(x, eps)), cap), "the norm's gain, (1 + weight), is missing"
        ),
        Wrong(
            lambda x, w, e, eps, cap: (e @ (x * rms_scale(x, eps) * (1 + w))).clamp(-cap, cap),
            "the logits were cut off at the cap: a soft cap is cap * tanh(logit / cap)",
        ),
        Wrong(
            lambda x, w, e, eps, cap: torch.tanh(e @ (x * rms_scale(x, eps) * (1 + w)) / cap),
            "the tanh was not multiplied by the cap again",
        ),
        Wrong(
            lambda x, w, e, eps, cap: soft_cap(e @ ((x - x.mean()) * rms_scale(x - x.mean(), eps) * (1 + w)), cap),
            "the mean was taken off, as in a LayerNorm: an RMS norm leaves it",
        ),
        Wrong(
            lambda x, w, e, eps, cap: soft_cap(e @ (x / x.norm() * (1 + w)), cap),
            "divided by the length: the root of the mean square is the length over the root of d_model",
        ),
    ],
    "soft-capped logits [vocab]",
)


# 1.3: what each sublayer wrote towards an answer


def _written(seed: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """Parts of the stream [part, d_model], the last norm's weight, the answer's direction, eps."""
    return normal(seed, 6, 24), normal(seed + 1, 24) * 0.3, normal(seed + 2, 24), EPS


def _contributions(parts: Tensor, weight: Tensor, direction: Tensor, eps: float) -> Tensor:
    gain = rms_scale(parts.sum(0), eps) * (1 + weight)
    return (parts * gain) @ direction


ex_1_3 = Exercise(
    "1.3",
    _written,
    _contributions,
    [
        Wrong(
            lambda p, w, d, eps: (p * rms_scale(p, eps) * (1 + w)) @ d,
            "each part was given a norm of its own: the norm's scale is that of the whole stream, the same for all parts",
        ),
        Wrong(lambda p, w, d, eps: p @ d, "the last norm is missing: the parts would not add up to the logit"),
        Wrong(lambda p, w, d, eps: (p * rms_scale(p.sum(0), eps)) @ d, "the norm's gain, (1 + weight), is missing"),
        Wrong(
            lambda p, w, d, eps: (p * rms_scale(p.sum(0), eps) * w) @ d,
            "the norm multiplies by its weight: in Gemma it multiplies by (1 + weight)",
        ),
        Wrong(
            lambda p, w, d, eps: (p.cumsum(0) * rms_scale(p.sum(0), eps) * (1 + w)) @ d,
            "this is what stands in the stream after each part, a running sum: asked is what each part added",
        ),
    ],
    "what each part wrote [part]",
)
