"""Weights by name, in TransformerLens' orientation: a row of the stream multiplies each from the left, row @ W.

The checkpoint stores each matrix the other way round, [out, in], and the heads of a projection in one matrix. Names here are
views of it where it is in memory. No norm's gain is folded into them: attn_in @ layer.W_Q[head] is the head's query before
RoPE, attn_in being the normed stream.
"""

from __future__ import annotations

from typing import Protocol

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from gemmascope.arguments import as_numbers, is_whole, short_repr
from gemmascope.errors import PromptError
from gemmascope.model.factored_matrix import EmbeddingNetwork
from gemmascope.model.modules import MLP, Attention
from gemmascope.peer_calls import OF_MODEL, hint
from gemmascope.tokens.tokenizer import Tokenizer


class _Model(Protocol):
    """What is read of a Model."""

    _tokenizer: Tokenizer | None

    @property
    def network(self) -> EmbeddingNetwork: ...
    @property
    def W_E(self) -> Tensor: ...


# The names of a layer's matrices.
LAYER_WEIGHTS = ("W_Q", "W_K", "W_V", "W_O", "W_gate", "W_in", "W_out")


class NamedWeights:
    """The matrices of a layer by name. A view where the layer is in memory: writing to one writes to the model."""

    self_attn: Attention
    mlp: MLP

    @property
    def W_Q(self) -> Float[Tensor, "head d_model d_head"]:
        """Queries: q = attn_in @ W_Q[head], before RoPE."""
        return self._reading(self.self_attn.q_proj.weight)

    @property
    def W_K(self) -> Float[Tensor, "kv_head d_model d_head"]:
        """Keys: k = attn_in @ W_K[kv_head], before RoPE. Query head h reads kv head h // config.heads_per_kv."""
        return self._reading(self.self_attn.k_proj.weight)

    @property
    def W_V(self) -> Float[Tensor, "kv_head d_model d_head"]:
        """Values: v = attn_in @ W_V[kv_head]."""
        return self._reading(self.self_attn.v_proj.weight)

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        """Outputs: attn_raw = the sum of z @ W_O[head] over heads, before the post-norm."""
        heads = self.self_attn.config.n_heads
        return rearrange(self.self_attn.o_proj.weight.detach(), "d_model (head d) -> head d d_model", head=heads)

    @property
    def W_gate(self) -> Float[Tensor, "d_model d_mlp"]:
        """mlp_gate = mlp_in @ W_gate, before GELU."""
        return self.mlp.gate_proj.weight.detach().mT

    @property
    def W_in(self) -> Float[Tensor, "d_model d_mlp"]:
        """mlp_up = mlp_in @ W_in."""
        return self.mlp.up_proj.weight.detach().mT

    @property
    def W_out(self) -> Float[Tensor, "d_mlp d_model"]:
        """mlp_raw = mlp_act @ W_out, before the post-norm."""
        return self.mlp.down_proj.weight.detach().mT

    def _reading(self, weight: Tensor) -> Float[Tensor, "head d_model d_head"]:
        d_head = self.self_attn.config.d_head
        return rearrange(weight.detach(), "(head d) d_model -> head d_model d", d=d_head)


class ModelWeights:
    """The matrices of a model's vocabulary by name, and what each token is in the stream."""

    @property
    def W_E(self: _Model) -> Float[Tensor, "vocab d_model"]:
        """The embedding as it is stored, without the factor sqrt(d_model): the site embed is W_E[ids] * sqrt(d_model).

        The model's own memory, so that writing to it writes to the model; a table that stays in a file is read whole.
        """
        embedding = self.network.model.embed_tokens
        if embedding.mark() is None:
            return embedding.weight.detach()
        return torch.cat([rows.clone() for _, rows in embedding.parts()])

    @property
    def W_U(self: _Model) -> Float[Tensor, "d_model vocab"]:
        """The unembedding, which in Gemma 2 is W_E transposed: logits_raw = final @ W_U, before the soft cap."""
        return self.W_E.mT

    def tokens_to_residual_directions(self: _Model, tokens: object) -> Float[Tensor, "*token d_model"]:
        """The direction of each token in the stream: W_U's column times the last norm's gain, 1 + its weight.

        A row of the last stream over its root mean square, times this, is the token's logit before the soft cap. Reads the
        rows of these tokens only.

        Args:
            tokens: A text that is one token, a token id, or a list of them.

        Returns:
            Float32, [d_model]; for a list [token, d_model].

        Raises:
            PromptError: A text is not one token, or an id is outside the vocabulary.

        Examples:
            >>> model, t = gs.load(), gs.trace("Mary and John")
            >>> last = t.stream[-1][-1]
            >>> direction = model.tokens_to_residual_directions(" went")
            >>> logit = last @ direction / (last.square().mean() + model.config.norm_eps).sqrt()
            >>> bool((logit - t["logits_raw"][-1, model.tokenizer.single(" went")]).abs() < 1e-4)
            True
        """
        single = isinstance(tokens, str) or is_whole(tokens)
        listed = [tokens] if single else as_numbers(tokens)
        if not listed:
            raise PromptError(
                f"tokens are a text that is one token, a token id, or a list of such; given {short_repr(tokens)}"
            )
        torso = self.network.model
        ids = [_token_id(one, len(torso.embed_tokens.weight), self._tokenizer) for one in listed]
        rows = torso.embed_tokens(torch.tensor(ids, device=torso.norm.weight.device)).detach().float()
        directions: Tensor = rows * (1.0 + torso.norm.weight.detach().float())
        return directions[0] if single else directions

    def __getattr__(self, name: str) -> object:
        advice = f": it is a layer's, model.layer(0).{name}" if name in LAYER_WEIGHTS else hint(OF_MODEL, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{advice}")


def _token_id(token: object, size: int, tokenizer: Tokenizer | None) -> int:
    if isinstance(token, str):
        if tokenizer is None:
            raise PromptError(f"the model came without a tokenizer: give token ids in place of {token!r}")
        return tokenizer.single(token)
    if not is_whole(token):
        raise PromptError(f"a token is a text or a token id; given {short_repr(token)}")
    if not 0 <= int(token) < size:
        raise PromptError(f"token id {short_repr(int(token))} is outside the vocabulary: ids go from 0 to {size - 1}")
    return int(token)
