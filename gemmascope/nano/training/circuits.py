"""Circuits that nano is held to: heads that do a named job, and the edges that long recall runs over."""

from __future__ import annotations

from random import Random

import torch
from torch import Tensor

from gemmascope.config import Kind
from gemmascope.model.model import Model
from gemmascope.nano.training.evaluator import ordinary_ids
from gemmascope.prompts import ioi, recall

REPEAT = 24  # tokens in the random sequences that heads are scored on


def patterns_of(model: Model, prompt: str | list[int]) -> Tensor:
    """Attention probabilities of one prompt [layer, head, q_pos, k_pos]."""
    kept: list[Tensor] = []

    def keep(site: str, layer: int | None, value: Tensor) -> Tensor:
        if site == "pattern":
            kept.append(value)
        return value

    model.run(prompt, tap=keep)
    return torch.stack(kept)


def induction_scores(model: Model, n: int = 20, seed: int = 1) -> Tensor:
    """Mean attention [layer, head] to what followed the same token the first time, on repeated random ids."""
    return _diagonal(model, n, seed, back=REPEAT - 1)


def previous_token_scores(model: Model, n: int = 20, seed: int = 1) -> Tensor:
    """Mean attention [layer, head] to the position before, on the second half of repeated random ids."""
    return _diagonal(model, n, seed, back=1)


def _diagonal(model: Model, n: int, seed: int, back: int) -> Tensor:
    rng = Random(seed)
    ordinary = ordinary_ids(model.tokenizer)
    scores = []
    for _ in range(n):
        part = rng.sample(ordinary, REPEAT)
        pattern = patterns_of(model, [model.tokenizer.bos_id, *part, *part])
        # Entry i of this diagonal is the query at i + back; the second saying's queries begin at REPEAT + 1.
        scores.append(pattern.diagonal(-back, dim1=-2, dim2=-1)[..., REPEAT + 1 - back :].mean(-1))
    return torch.stack(scores).mean(0)


def indirect_object_scores(model: Model, n: int = 100, seed: int = 1) -> Tensor:
    """Mean attention [layer, head] from the last position of an indirect-object prompt to the indirect object."""
    scores = []
    for pair in ioi(n, seed, model.tokenizer):
        ids = model.tokenizer.ids(pair.clean)
        name = model.tokenizer.single(pair.answer)
        if name in ids:  # a name that opens the prompt has no space, and is another token
            scores.append(patterns_of(model, ids)[:, :, -1, ids.index(name)])
    return torch.stack(scores).mean(0)


def recall_with_cut(model: Model, kind: Kind, n: int = 200, seed: int = 1) -> float:
    """Top-1 of long recall with all edges of the `kind` layers cut from the answer's position to where the key was told."""
    right = 0
    for pair in recall(n, seed, model.tokenizer):
        ids, other = model.tokenizer.ids(pair.clean), model.tokenizer.ids(pair.corrupt)
        told = next(i for i, (a, b) in enumerate(zip(ids, other, strict=True)) if a != b)
        # The whole statement, "The key of Anna is seven.": the full stop may have read the key.
        logits = _run_cut(model, ids, kind, slice(told - 5, told + 2))
        right += int(logits[-1].argmax()) == model.tokenizer.single(pair.answer)
    return right / n


def _run_cut(model: Model, ids: list[int], kind: Kind, keys: slice) -> Tensor:
    """Logits [pos, vocab] with the last position's edges to `keys` cut; what is left of its attention sums to one."""

    def cut(site: str, layer: int | None, value: Tensor) -> Tensor:
        if site != "pattern" or layer is None or model.config.kinds[layer] != kind:
            return value
        left = value.clone()
        left[:, -1, keys] = 0
        left[:, -1] /= left[:, -1].sum(-1, keepdim=True)
        return left

    return model.run(ids, tap=cut)
