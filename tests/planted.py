"""A Gemma 2 whose weights are set by hand: one head attends to the previous token, and one, in the layer after, completes an
induction by reading what the first one wrote.

The stream has three parts: the token at this position, a constant, and the previous token (written by the first head).
The other heads have queries and keys at random, and write nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gemmascope.config import GemmaConfig
from gemmascope.model.gemma2 import Gemma2
from gemmascope.model.model import Model

VOCAB = 16
CONFIG = GemmaConfig(
    d_model=40, n_heads=4, n_kv_heads=2, d_head=32, d_mlp=8, vocab_size=VOCAB, kinds=("global", "global"), window=64,
    context=64, query_scalar=32.0, attn_cap=50.0, final_cap=30.0,
)  # fmt: skip
HERE, CONSTANT, BEFORE = slice(0, VOCAB), VOCAB, slice(VOCAB + 1, 2 * VOCAB + 1)

PREVIOUS = (0, 1)  # layer, head
INDUCTION = (1, 2)

# The score of the right key before the soft cap of 50; other keys have much smaller scores.
PEAK = 45.0
SCATTER = 2.0


def planted() -> Model:
    """The model, without a tokenizer."""
    network = Gemma2(CONFIG).to_empty(device="cpu")
    with torch.no_grad():
        for weight in network.parameters():
            weight.zero_()
        _scatter(network)
        # Every token is as long as every other, so every norm multiplies every row by the same number.
        table = network.model.embed_tokens.weight
        table[:, HERE] = torch.eye(VOCAB)
        table[:, CONSTANT] = 1.0
        _plant_previous(network)
        _plant_induction(network)
    return Model(network.eval(), None, "planted")


def _rows(weight: Tensor, head: int) -> Tensor:
    return weight[head * CONFIG.d_head : (head + 1) * CONFIG.d_head]


def _columns(weight: Tensor, head: int) -> Tensor:
    return weight[:, head * CONFIG.d_head : (head + 1) * CONFIG.d_head]


def _scatter(network: Gemma2) -> None:
    """Random queries and keys in every head: scores of a deviation of about SCATTER."""
    draw = torch.Generator().manual_seed(0)
    size = (SCATTER * CONFIG.query_scalar**0.5 / CONFIG.d_head**0.5) ** 0.5 / CONFIG.d_model**0.5
    for layer in network.model.layers:
        for project in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            project.weight.normal_(std=size, generator=draw)


def _plant_previous(network: Gemma2) -> None:
    """Queries and keys are constant; the key is rotated one position further, so that RoPE favours distance 1."""
    layer_number, head = PREVIOUS
    attention = network.model.layers[layer_number].self_attn  # type: ignore[union-attr]
    kv_head = head // CONFIG.heads_per_kv
    stands_at = (CONFIG.d_model / 2) ** 0.5  # the constant, after the norm: two numbers of one size among d_model
    half = CONFIG.d_head // 2
    turns = CONFIG.rope_theta ** (-torch.arange(half) / half)  # radians a position
    # The two fastest pairs: what the first cannot tell apart (7 positions are nearly a full turn) the second does.
    size = (PEAK / 2 * CONFIG.query_scalar**0.5) ** 0.5 / stands_at
    _rows(attention.q_proj.weight, head).zero_()
    _rows(attention.k_proj.weight, kv_head).zero_()
    for pair in range(2):
        _rows(attention.q_proj.weight, head)[pair, CONSTANT] = size
        _rows(attention.k_proj.weight, kv_head)[pair, CONSTANT] = size * turns[pair].cos()
        _rows(attention.k_proj.weight, kv_head)[pair + half, CONSTANT] = size * turns[pair].sin()
    _rows(attention.v_proj.weight, kv_head)[:VOCAB, HERE] = torch.eye(VOCAB)
    _columns(attention.o_proj.weight, head)[BEFORE, :VOCAB] = torch.eye(VOCAB)


def _plant_induction(network: Gemma2) -> None:
    """The query is the token here, the key the token before; both in the slowest pairs, which RoPE hardly turns."""
    layer_number, head = INDUCTION
    attention = network.model.layers[layer_number].self_attn  # type: ignore[union-attr]
    kv_head = head // CONFIG.heads_per_kv
    half, used = CONFIG.d_head // 2, VOCAB // 2
    slow = torch.cat((torch.arange(half - used, half), torch.arange(CONFIG.d_head - used, CONFIG.d_head)))
    # A token's number in the stream is sqrt(d_model), and what the post-norm made of the token before is of that size too.
    stands_at = (CONFIG.d_model / 3) ** 0.5
    size = (PEAK * CONFIG.query_scalar**0.5) ** 0.5 / stands_at
    _rows(attention.q_proj.weight, head).zero_()
    _rows(attention.k_proj.weight, kv_head).zero_()
    _rows(attention.q_proj.weight, head)[slow, HERE] = torch.eye(VOCAB) * size
    _rows(attention.k_proj.weight, kv_head)[slow, BEFORE] = torch.eye(VOCAB) * size
    _rows(attention.v_proj.weight, kv_head)[:VOCAB, HERE] = torch.eye(VOCAB)
    _columns(attention.o_proj.weight, head)[HERE, :VOCAB] = torch.eye(VOCAB)
    network.model.layers[layer_number].post_attention_layernorm.weight[:] = 3.0  # type: ignore[union-attr,index]
