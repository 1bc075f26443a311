"""Kinds of heads, by what their queries attend to: for the token ids of a prompt, what every edge counts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Ids = Int[Tensor, " k_pos"]
Rows = Int[Tensor, " q_pos"]
Edges = Bool[Tensor, "q_pos k_pos"]

REACH = "local_reach"


def _distance(ids: Ids, rows: Rows) -> Int[Tensor, "q_pos k_pos"]:
    return rows[:, None] - torch.arange(len(ids), device=ids.device)


def _previous_token(ids: Ids, rows: Rows) -> Edges:
    edges = _distance(ids, rows) == 1
    edges[:, 0] = False  # to attend to <bos> is to rest
    return edges


def _duplicate_token(ids: Ids, rows: Rows) -> Edges:
    return (ids[rows][:, None] == ids[None, :]) & (_distance(ids, rows) > 0)


def _induction(ids: Ids, rows: Rows) -> Edges:
    before = torch.cat((ids.new_full((1,), -1), ids[:-1]))  # the token before each key
    return (ids[rows][:, None] == before[None, :]) & (_distance(ids, rows) > 0)


def _sink(ids: Ids, rows: Rows) -> Edges:
    edges = _distance(ids, rows) > 0
    edges[:, 1:] = False
    return edges


# What a query of a prompt is to attend to, by kind: (the rule, what it is in words).
TARGETS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "previous_token": (_previous_token, "attention to the token before"),
    "duplicate_token": (_duplicate_token, "attention to earlier places of the same token"),
    "induction": (_induction, "attention to what followed earlier places of the same token"),
    "sink": (_sink, "attention to the first position, <bos>"),
}


def weights(kind: str, ids: Ids, rows: Rows) -> Float[Tensor, "q_pos k_pos"]:
    """What the edges from some query positions count for a kind of head: 1 at its targets; for "local_reach" the distance.

    Queries without any do not count. ids: those of the prompt. rows: the positions of the queries.
    """
    if kind == REACH:
        return _distance(ids, rows).clamp(min=0).float()
    rule, _ = TARGETS[kind]
    return rule(ids, rows).float()


def counted(kind: str, ids: Ids, window: int, step: int) -> tuple[int, int]:
    """How many queries of a prompt count for a kind, and how many of them have nothing that counts within a window.

    step: how many queries are looked at at once.
    """
    n_counted = n_beyond = 0
    for rows in torch.split(torch.arange(len(ids), device=ids.device), step):
        counts = weights(kind, ids, rows) != 0
        near = counts & (_distance(ids, rows) < window)
        n_counted += int(counts.any(-1).sum())
        n_beyond += int((counts.any(-1) & ~near.any(-1)).sum())
    return n_counted, n_beyond
