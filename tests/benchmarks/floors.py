"""The least arithmetic and the least bytes that a run needs: what no implementation can do without.

A patch must compute what it changes: a row of the stream whose value changes, in each layer from the patched one on, and
what reads it. What the base run or the source run has computed already is not counted: rows before the patch, the queries,
keys and values of the patched place itself, heads that are not patched. Of the last layer only the last position is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gemmascope.config import GemmaConfig

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Costs:
    """Operations, a multiplication and an addition apart: of one row in a layer, and of one query with one key."""

    query: int
    keys_values: int
    head_output: int
    output: int
    mlp: int
    edge: int
    layer_weights: int
    token: int  # one token's logit
    vocabulary: int

    @classmethod
    def of(cls, c: GemmaConfig) -> Costs:
        query, keys = c.d_model * c.n_heads * c.d_head, c.d_model * c.n_kv_heads * c.d_head
        mlp = 3 * c.d_model * c.d_mlp
        return cls(
            2 * query, 4 * keys, 2 * c.d_model * c.d_head, 2 * query, 2 * mlp, 4 * c.n_heads * c.d_head,
            2 * query + 2 * keys + mlp, 2 * c.d_model, c.vocab_size,
        )  # fmt: skip

    @property
    def row(self) -> int:
        """Everything in a layer but attention's edges."""
        return self.query + self.keys_values + self.output + self.mlp


def visible(length: int, window: int | None) -> Bools:
    """[query, key]: which keys a query sees."""
    back = np.arange(length)[:, None] - np.arange(length)[None]
    return (back >= 0) & (back < (window or length))


def changed_rows(config: GemmaConfig, length: int, layer: int, pos: int) -> Iterator[tuple[Bools, Bools]]:
    """For every layer from the patched one on, the rows that a patch of resid_pre changes at its entry and at its exit."""
    before = np.arange(length) == pos
    for index in range(layer, config.n_layers):
        after = before | (visible(length, config.window_of(index)) & before).any(1)
        yield before, after
        before = after


def patch_flops(config: GemmaConfig, length: int, layer: int, pos: int) -> int:
    """A patch of resid_pre at one position, up to the logits of two tokens at the last position."""
    cost, total = Costs.of(config), 2 * Costs.of(config).token
    for index, (before, after) in enumerate(changed_rows(config, length, layer, pos), layer):
        asked = after.copy()
        if index == config.n_layers - 1:
            asked[:-1] = False
        seen = visible(length, config.window_of(index)) & asked[:, None]
        if index > layer:  # in the patched layer itself the source run has these
            total += cost.query * int((before & asked).sum()) + cost.keys_values * int((before & seen.any(0)).sum())
        # A query that did not change needs its new keys alone: what it read of the others is the base run's.
        total += cost.edge * int((seen & (before[:, None] | before[None])).sum())
        total += (cost.output + cost.mlp) * int(asked.sum())
    return total


def head_patch_flops(config: GemmaConfig, length: int, layer: int) -> int:
    """A patch of one head's z at every position, up to the logits of two tokens at the last position."""
    cost, total = Costs.of(config), 2 * Costs.of(config).token
    for index in range(layer, config.n_layers):
        n_asked = 1 if index == config.n_layers - 1 else length
        if index == layer:  # what the patched head adds is all that is new in attention's output
            total += (cost.head_output + cost.mlp) * n_asked
        else:
            seen = visible(length, config.window_of(index))[-n_asked:]
            total += (cost.query + cost.output + cost.mlp) * n_asked
            total += cost.keys_values * int(seen.any(0).sum()) + cost.edge * int(seen.sum())
    return total


def sweep_flops(config: GemmaConfig, length: int, site: str) -> int:
    """All layers by all positions of resid_pre, or by all heads of z."""
    if site == "resid_pre":
        return sum(patch_flops(config, length, layer, pos) for layer in range(config.n_layers) for pos in range(length))
    if site == "z":
        return config.n_heads * sum(head_patch_flops(config, length, layer) for layer in range(config.n_layers))
    raise ValueError(site)


def forward_flops(config: GemmaConfig, length: int) -> int:
    """One prompt, with the logits of every position."""
    cost = Costs.of(config)
    edges = sum(int(visible(length, config.window_of(index)).sum()) for index in range(config.n_layers))
    return length * (config.n_layers * cost.row + cost.token * cost.vocabulary) + cost.edge * edges


def read_weights(config: GemmaConfig) -> int:
    """The weights that a token reads: every layer's matrices, and the table that gives the logits."""
    return config.n_layers * Costs.of(config).layer_weights + config.vocab_size * config.d_model


def token_flops(config: GemmaConfig, n_prompts: int) -> int:
    """One token for each prompt, without attention's edges, which a short text hardly has."""
    return 2 * n_prompts * read_weights(config)
