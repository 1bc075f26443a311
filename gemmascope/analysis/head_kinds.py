"""What the scores of gs.head_scores measure: the edges that count for each kind of head, and copying by W_OV.

The copying score is the summary of eigenvalues in Elhage et al., "A Mathematical Framework for Transformer Circuits" (2021).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing

import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gemmascope.analysis.patterns import patterns, rows_at_once
from gemmascope.model.attention import attend_of
from gemmascope.model.factored_matrix import normed_tokens
from gemmascope.model.layout import Block, Layout
from gemmascope.model.model import Model
from gemmascope.model.tap import Tap
from gemmascope.values import moved

Ids = Int[Tensor, " k_pos"]
Rows = Int[Tensor, " q_pos"]
Edges = Bool[Tensor, "q_pos k_pos"]

REACH, POSITIONAL, ENTROPY = "local_reach", "positional", "entropy"

# Kinds that are measured on all queries but the first, which can only see itself.
OVER_ALL = (REACH, POSITIONAL, ENTROPY)


def _distance(ids: Ids, rows: Rows) -> Int[Tensor, "q_pos k_pos"]:
    return rows[:, None] - torch.arange(len(ids), device=ids.device)


def _previous_token(ids: Ids, rows: Rows) -> Edges:
    edges = _distance(ids, rows) == 1
    edges[:, 0] = False  # attention to <bos> is a resting place, whatever the head does elsewhere
    return edges


def _duplicate_token(ids: Ids, rows: Rows) -> Edges:
    return (ids[rows][:, None] == ids[None, :]) & (_distance(ids, rows) > 0)


def _induction(ids: Ids, rows: Rows) -> Edges:
    previous = torch.cat((ids.new_full((1,), -1), ids[:-1]))  # the token before each key
    return (ids[rows][:, None] == previous[None, :]) & (_distance(ids, rows) > 0)


def _self(ids: Ids, rows: Rows) -> Edges:
    edges = _distance(ids, rows) == 0
    edges[rows == 0] = False  # the first query sees no other key
    return edges


def _first_occurrence(ids: Ids, rows: Rows) -> Edges:
    listed = ids.tolist()
    first = {token: pos for pos, token in reversed(list(enumerate(listed)))}
    is_first = torch.tensor([first[token] == pos for pos, token in enumerate(listed)], device=ids.device)
    return _duplicate_token(ids, rows) & is_first


def _sink(ids: Ids, rows: Rows) -> Edges:
    edges = _distance(ids, rows) > 0
    edges[:, 1:] = False
    return edges


# By kind: the rule that marks a query's target keys, and its description.
TARGETS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "previous_token": (_previous_token, "attention to the token before"),
    "duplicate_token": (_duplicate_token, "attention to earlier places of the same token"),
    "induction": (_induction, "attention to what followed earlier places of the same token"),
    "sink": (_sink, "attention to the first position, <bos>"),
    "self": (_self, "attention to the query's own position"),
    "first_occurrence": (_first_occurrence, "attention to the first of earlier places of the same token"),
}

COPYING, NAME_COPYING = "copying", "name_copying"
KINDS = (*TARGETS, *OVER_ALL, COPYING)

MEANINGS = {
    **{kind: meaning for kind, (_, meaning) in TARGETS.items()},
    REACH: "mean distance of attention, in positions",
    POSITIONAL: "the largest share of queries whose strongest key is at one distance",
    ENTROPY: "mean entropy of attention, in nats",
    NAME_COPYING: "share of names that W_OV, having read them, puts among the tokens it raises most",
    COPYING: "how far W_OV raises the logit of the token that is read",
}
# The unit of a picture's colours and where they end, None for the largest score; other kinds are shares of attention.
UNITS: dict[str, tuple[str, float | None]] = {
    REACH: ("distance (positions)", None),
    POSITIONAL: ("share of queries", 1.0),
    ENTROPY: ("entropy (nats)", None),
    NAME_COPYING: ("share of names", 1.0),
    COPYING: ("copying, -1 to 1", 1.0),
}


def edge_weights(kind: str, ids: Ids, rows: Rows) -> Float[Tensor, "q_pos k_pos"]:
    """The weight of each edge from some query positions: 1 at a kind's target keys, and the distance for kinds without."""
    if kind in OVER_ALL:
        return _distance(ids, rows).clamp(min=0).float()
    rule, _ = TARGETS[kind]
    return rule(ids, rows).float()


def count_queries(kind: str, ids: Ids, window: int, n_rows: int) -> tuple[int, int]:
    """The number of a prompt's queries that have target keys, and of those with none inside the window.

    n_rows: query rows to look at in one step.
    """
    n_queries = n_beyond = 0
    for rows in torch.split(torch.arange(len(ids), device=ids.device), n_rows):
        targets = edge_weights(kind, ids, rows) != 0
        near = targets & (_distance(ids, rows) < window)
        n_queries += int(targets.any(-1).sum())
        n_beyond += int((targets.any(-1) & ~near.any(-1)).sum())
    return n_queries, n_beyond


class PatternSums(Tap):
    """Sums over the queries of what each kind measures, from each layer's queries and keys.

    sums: by kind, [layer, head]. n_strongest: how many queries have their strongest key at each distance, [layer, head,
    distance]. whole: take the patterns as they are in the pass, with its edits of scores and patterns. n_heads: how many
    heads the patterns have; None for all of the model.
    """

    def __init__(
        self, model: Model, runs: Sequence[Tensor], kinds: Sequence[str], *, whole: bool = False, n_heads: int | None = None
    ) -> None:
        self.config, self.runs, self.whole = model.config, runs, whole
        self.n_heads = n_heads or model.config.n_heads
        shape = model.config.n_layers, self.n_heads
        self.sums = {kind: torch.zeros(shape, dtype=torch.float64) for kind in kinds}
        longest = max(map(len, runs)) if POSITIONAL in kinds else 0
        self.n_strongest = torch.zeros(*shape, longest, dtype=torch.float64)
        self.queries: Tensor | None = None

    def wants(self, site: str, layer: int | None) -> bool:
        return self.whole and site == "pattern"

    def edges(self, site: str, layer: int, value: Tensor, block: Block) -> Tensor:
        for i in range(block.count):
            ids = moved(self.runs[block.run + i], value.device)
            self._add_rows(layer, ids, torch.arange(len(ids), device=ids.device), value[i].float())
        return value

    def rows(self, site: str, layer: int | None, value: Tensor, layout: Layout) -> Tensor:
        if site == "q_rot" and not self.whole:
            self.queries = value
        elif site == "k_rot" and layer is not None and self.queries is not None:
            for ids, span in zip(self.runs, layout.spans, strict=True):
                self._add(layer, ids, self.queries[span], value[span])
            self.queries = None
        return value

    def add_pattern(self, layer: int, ids: Ids, pattern: Float[Tensor, "head q_pos k_pos"]) -> None:
        """Add a run's whole pattern at a layer, where no pass hands over its queries and keys."""
        ids = moved(ids, pattern.device)
        for rows in torch.split(torch.arange(len(ids), device=ids.device), rows_at_once(*pattern.shape[:2])):
            self._add_rows(layer, ids, rows, pattern[:, rows].float())

    def _add(self, layer: int, ids: Tensor, q: Tensor, k: Tensor) -> None:
        ids = moved(ids, q.device)
        for rows, pattern in patterns(attend_of(self.config, layer), q, k):
            self._add_rows(layer, ids, rows, pattern)

    def _add_rows(self, layer: int, ids: Tensor, rows: Tensor, pattern: Float[Tensor, "head q_pos k_pos"]) -> None:
        for kind, sums in self.sums.items():
            if kind == POSITIONAL:
                self._count_strongest(layer, rows, pattern)
                sums[layer] = self.n_strongest[layer].amax(-1)
                continue
            if kind == ENTROPY:  # the first query's is 0
                part = torch.special.entr(pattern).sum((1, 2))
            else:
                part = einsum(pattern, edge_weights(kind, ids, rows), "head q k, q k -> head")
            sums[layer] += part.cpu().double()

    def _count_strongest(self, layer: int, rows: Tensor, pattern: Float[Tensor, "head q_pos k_pos"]) -> None:
        later = rows > 0
        distances = (rows[later] - pattern[:, later].argmax(-1)).cpu()
        self.n_strongest[layer].scatter_add_(-1, distances, torch.ones_like(distances, dtype=torch.float64))


def copying(model: Model) -> Float[Tensor, "layer head"]:
    """The copying score of every head, -1 to 1: the sum of eigenvalues over the sum of their sizes. Float32, on the CPU.

    The eigenvalues are those of embedding @ OV @ unembedding, [vocab, vocab], with tokens normed as they enter the first
    layer, and through the gains of the head's norms and of the last norm. Its nonzero eigenvalues are those of a
    [d_head, d_head] product. A head that writes nothing scores 0.
    """
    final_gain = 1 + model.network.model.norm.weight.detach().float()
    tokens = _embedding_product(model)
    scores = torch.zeros(model.n_layers, model.config.n_heads)
    with closing(model.layers()) as layers:
        for layer in layers:
            for head in range(model.config.n_heads):
                ov = layer.ov(head)
                # The factors in cyclic order, which keeps the eigenvalues: from W_O to the logits, and from tokens to W_V.
                right, left = moved(ov.right, model.device), moved(ov.left, model.device)
                values = torch.linalg.eigvals((right * final_gain) @ tokens @ left)
                size = values.abs().sum()
                scores[layer.index, head] = values.real.sum() / size if size > 0 else 0.0
    return scores


def _embedding_product(model: Model) -> Float[Tensor, "d_model d_model"]:
    """Sum over the vocabulary of the outer product of a token's embedding with its normed embedding."""
    total = torch.zeros(model.config.d_model, model.config.d_model, device=model.device)
    for _, part in model.network.model.embed_tokens.parts():
        rows = part.float()
        total += rows.mT @ normed_tokens(model, rows)
    return total
