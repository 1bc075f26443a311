"""Kinds of heads, by what their queries attend to: for the token ids of a prompt, the keys that count for each query."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Ids = Int[Tensor, " pos"]
Edges = Bool[Tensor, "q_pos k_pos"]


def _earlier(ids: Ids) -> Edges:
    at = torch.arange(len(ids))
    return at[None, :] < at[:, None]


def _previous_token(ids: Ids) -> Edges:
    at = torch.arange(len(ids))
    edges = at[None, :] == at[:, None] - 1
    edges[:, 0] = False  # to attend to <bos> is to rest
    return edges


def _duplicate_token(ids: Ids) -> Edges:
    return (ids[:, None] == ids[None, :]) & _earlier(ids)


def _induction(ids: Ids) -> Edges:
    before = torch.cat((torch.full((1,), -1), ids[:-1]))  # the token before each key
    return (ids[:, None] == before[None, :]) & _earlier(ids)


def _sink(ids: Ids) -> Edges:
    edges = _earlier(ids).clone()
    edges[:, 1:] = False
    return edges


# What a query of a prompt is to attend to, by kind: (the rule, what it is in words).
TARGETS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "previous_token": (_previous_token, "attention to the token before"),
    "duplicate_token": (_duplicate_token, "attention to earlier places of the same token"),
    "induction": (_induction, "attention to what followed earlier places of the same token"),
    "sink": (_sink, "attention to the first position, <bos>"),
}


def targets(kind: str, ids: Sequence[int]) -> Edges:
    """True at the edges that count for a kind of head, on the CPU; queries without any do not count."""
    rule, _ = TARGETS[kind]
    return rule(torch.tensor(list(ids)))
