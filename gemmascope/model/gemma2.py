"""Gemma 2, layer by layer over rows. Module names are the checkpoint's, so weights load with no table of names.

Source: "Gemma 2: Improving Open Language Models at a Practical Size" (arXiv 2408.00118) and transformers' Gemma2ForCausalLM.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from copy import deepcopy
from typing import Any, Protocol

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from gemmascope.arguments import true_or_false
from gemmascope.config import GemmaConfig
from gemmascope.errors import SiteError
from gemmascope.model.attention import Attend
from gemmascope.model.digests import tensor_digest
from gemmascope.model.factored_matrix import FactoredMatrix, ov_of, qk_of
from gemmascope.model.layout import NO_ROWS, Layout
from gemmascope.model.maths import gelu_gate, rms_norm, rms_scale, rotate, soft_cap
from gemmascope.model.shutdown import stop_at_exit
from gemmascope.model.tap import SILENT, BoundTap, Tap

# Rows of the table of tokens that are handed out at once.
TOKENS = 8192


class Linear(nn.Linear):
    """A product without a bias. Its weight is on the meta device until a checkpoint's tensor takes its place."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__(d_in, d_out, bias=False, device="meta")

    def reset_parameters(self) -> None:
        """Draws nothing: there is no memory to draw into."""


class RMSNorm(nn.Module):
    """x / rms(x) * (1 + weight), in float32."""

    def __init__(self, d_model: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(d_model, device="meta"))

    def forward(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        return rms_norm(x, self.weight, self.eps)

    def gain(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """The diagonal of the linear map that this norm is on the rows x: multiply by it to go through the norm. Float32."""
        return rms_scale(x, self.eps) * (1.0 + self.weight.float())


class Attention(nn.Module):
    """Grouped-query attention with RoPE and a soft cap; local layers see a window of keys."""

    def __init__(self, config: GemmaConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        d_q, d_kv = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        self.q_proj = Linear(config.d_model, d_q)
        self.k_proj = Linear(config.d_model, d_kv)
        self.v_proj = Linear(config.d_model, d_kv)
        self.o_proj = Linear(d_q, config.d_model)
        self.attend = Attend(config.query_scalar**-0.5, config.attn_cap, config.window_of(layer))

    def forward(
        self, x: Float[Tensor, "row d_model"], layout: Layout, tap: BoundTap
    ) -> tuple[Float[Tensor, "query d_model"], Float[Tensor, "query head d_head"]]:
        q, k, v = self.queries_keys_values(x, layout, tap)
        z = tap("z", self.attend(q, k, v, layout, tap))
        return self.o_proj(rearrange(z, "row head d -> row (head d)")), z

    def queries_keys_values(
        self, x: Float[Tensor, "row d_model"], layout: Layout, tap: BoundTap
    ) -> tuple[Float[Tensor, "query head d_head"], Float[Tensor, "row kv_head d_head"], Float[Tensor, "row kv_head d_head"]]:
        """The queries and keys, after RoPE, and the values."""
        q, k, v = (
            tap(site, rearrange(project(rows), "row (head d) -> row head d", d=self.config.d_head))
            for site, project, rows in (
                ("q", self.q_proj, layout.query_rows(x)),
                ("k", self.k_proj, x),
                ("v", self.v_proj, x),
            )
        )
        cos, sin = layout.rope(self.config.d_head, self.config.rope_theta)
        q_rot = tap("q_rot", rotate(q, layout.query_rows(cos), layout.query_rows(sin)))
        return q_rot, tap("k_rot", rotate(k, cos, sin)), v

    def head_outputs(self, z: Float[Tensor, "row head d_head"]) -> Float[Tensor, "row head d_model"]:
        """What each head adds to the attention output, before the post-norm: they sum to it."""
        w_o = rearrange(self.o_proj.weight, "d_model (head d) -> head d d_model", head=self.config.n_heads)
        return einsum(z, w_o, "row head d, head d d_model -> row head d_model")


class MLP(nn.Module):
    """GeGLU: down(gelu(gate) * up), with GELU's tanh form."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.d_model, config.d_mlp)
        self.up_proj = Linear(config.d_model, config.d_mlp)
        self.down_proj = Linear(config.d_mlp, config.d_model)

    def forward(self, x: Float[Tensor, "row d_model"], tap: BoundTap) -> Float[Tensor, "row d_model"]:
        gate, up = tap("mlp_gate", self.gate_proj(x)), tap("mlp_up", self.up_proj(x))
        out: Tensor = self.down_proj(tap("mlp_act", gelu_gate(gate, up)))
        return out


class Layer(nn.Module):
    """One layer: attention, then MLP, each between two norms, each added to the stream."""

    def __init__(self, config: GemmaConfig, index: int) -> None:
        super().__init__()
        self.index, self.kind = index, config.kinds[index]
        self.self_attn = Attention(config, index)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.d_model, config.norm_eps)
        self.post_attention_layernorm = RMSNorm(config.d_model, config.norm_eps)
        self.pre_feedforward_layernorm = RMSNorm(config.d_model, config.norm_eps)
        self.post_feedforward_layernorm = RMSNorm(config.d_model, config.norm_eps)

    def forward(self, x: Float[Tensor, "row d_model"], layout: Layout, tap: BoundTap) -> Float[Tensor, "query d_model"]:
        x = tap("resid_pre", x)
        x = tap("resid_mid", layout.query_rows(x) + self._attention(x, layout, tap))
        mlp = tap("mlp_raw", self.mlp(tap("mlp_in", self.pre_feedforward_layernorm(x)), tap))
        return tap("resid_post", x + tap("mlp_out", self.post_feedforward_layernorm(mlp)))

    def _attention(self, x: Tensor, layout: Layout, tap: BoundTap) -> Tensor:
        raw, z = self.self_attn(tap("attn_in", self.input_layernorm(x)), layout, tap)
        raw = tap("attn_raw", raw)
        out = self.post_attention_layernorm(raw)
        if tap.wants("head_out"):
            heads = self.head_out(raw, z)
            changed = tap("head_out", heads)
            if changed is not heads:  # what a tap writes to a head joins the sum; untouched heads change no bit
                out = out + (changed - heads).sum(1)
        return tap("attn_out", out)

    def head_out(
        self, raw: Float[Tensor, "row d_model"], z: Float[Tensor, "row head d_head"]
    ) -> Float[Tensor, "row head d_model"]:
        """What each head adds to the stream: through the post-norm, its scale frozen at that of the whole output."""
        gain = self.post_attention_layernorm.gain(raw)
        return (self.self_attn.head_outputs(z).float() * gain[:, None]).to(raw.dtype)

    def ov(self, head: int, *, gains: bool = True) -> FactoredMatrix:
        """What a query head writes for what stands where it reads: row @ left @ right.

        gains: with those of the norm before it, so that row is a row of the stream over its root mean square, and of the
        post-norm, whose scale depends on the run and is left out. Without them row is attn_in and the product attn_raw's
        part. A negative head counts from the end. SiteError for a head that is not there.
        """
        return ov_of(self, head, gains=true_or_false(gains, "gains", error=SiteError))

    def qk(self, head: int, *, distance: int = 0, gains: bool = True) -> FactoredMatrix:
        """A query head's scores, before the soft cap: query row @ left @ right @ key row, for a key so many positions back.

        RoPE turns queries and keys by their positions, so the matrix depends on their distance. gains: with the gain of
        the norm before it, on both sides, so that the rows are rows of the stream over their root mean square. SiteError for
        a head that is not there, or a distance below 0.
        """
        return qk_of(self, head, distance, gains=true_or_false(gains, "gains", error=SiteError))


class Embedding(nn.Embedding):
    """The table of tokens, which Gemma 2 reads both ways: ids to rows, and rows to logits."""

    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__(vocab_size, d_model, device="meta")

    def reset_parameters(self) -> None:
        """Draws nothing: there is no memory to draw into."""

    def logits(self, x: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
        """The products of rows with every token's embedding, before the soft cap."""
        return F.linear(x, self.weight)

    def parts(self) -> Iterator[tuple[slice, Tensor]]:
        """The table, a part at a time: which tokens, and their rows. A part is good until the next."""
        for start in range(0, len(self.weight), TOKENS):
            tokens = slice(start, min(start + TOKENS, len(self.weight)))
            yield tokens, self.weight.detach()[tokens]

    def digest(self) -> str:
        """The digest of the table as it is now."""
        return tensor_digest(self.weight)

    def mark(self) -> str | None:
        """The stamp of the file that the table stays in; None for a table in memory."""
        return None


class LayerSource(Protocol):
    """Where the layers come from when they are not all at hand as they are computed with: packed, or still to be read."""

    def layers(self, reverse: bool) -> Iterator[Layer]:
        """The layers one after the other. Each is good until the next is asked for, or the iterator is closed."""

    def layer(self, index: int) -> Layer:
        """One layer, with weights of its own."""

    def digest(self, index: int) -> str:
        """A digest of a layer's numbers."""

    def mark(self, index: int) -> str:
        """What a run notes of a layer, to see later whether it changed: costs next to nothing."""


class Torso(nn.Module):
    """What the checkpoint calls `model`: embedding, layers, last norm."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)


def _no_check() -> None:
    """Nobody else holds the weights."""


class Gemma2(nn.Module):
    """The network: token ids to rows, rows through the layers, rows to soft-capped logits.

    A new network is on the meta device, which takes no memory; whoever loads it gives each parameter its values.

    layer_source: provides the layers when this module's own parameters are empty; None when they are filled.

    work_bytes: bytes that the rows of a pass may take, where a memory budget is set.
    owned: whether the weights were read for this network alone.
    check: raises where a model that shares its tensors with this network no longer computes what this one does.
    """

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Torso(config)
        self.layer_source: LayerSource | None = None
        self.work_bytes: int | None = None
        self.keep_alive: tuple[object, ...] = ()  # a tuple, so that torch sees no second module in it
        self.owned = False
        self.check: Callable[[], None] = _no_check

    def forward(self, ids: Int[Tensor, " row"], layout: Layout, tap: Tap = SILENT) -> Float[Tensor, "row d_model"]:
        """One pass: the stream after the last layer, before the last norm, for every row."""
        x = self.embed(ids, layout, tap)
        with closing(self.layers()) as layers:
            for layer in layers:
                x = layer(x, layout, tap.at(layer.index, layout))
        return x

    def copied(self, memo: dict[int, Any]) -> Gemma2:
        """A network with weights of its own, which nobody else holds."""
        memo.update({id(self.check): _no_check, id(self.keep_alive): ()})
        made = deepcopy(self, memo).requires_grad_(False)
        made.owned = True
        return made

    def layers(self, reverse: bool = False) -> Generator[Layer]:
        """The layers in the order of a pass, or in reverse. Each is good until the next is asked for.

        Close it (contextlib.closing) where a pass may end early: layers that stream in hold memory and a thread.
        """
        if self.layer_source is not None:
            yield from self.layer_source.layers(reverse)
        else:
            for layer in reversed(self.model.layers) if reverse else self.model.layers:
                stop_at_exit()
                yield layer  # type: ignore[misc]

    def layer(self, index: int) -> Layer:
        """The layer of this number, from 0, for as long as it is held."""
        return self.model.layers[index] if self.layer_source is None else self.layer_source.layer(index)  # type: ignore[return-value]

    def embed(self, ids: Int[Tensor, " row"], layout: Layout, tap: Tap = SILENT) -> Float[Tensor, "row d_model"]:
        """Token embeddings times sqrt(d_model), which is rounded to the weights' dtype as in training."""
        x = self.model.embed_tokens(ids)
        scale = torch.tensor(self.config.d_model**0.5, dtype=x.dtype)
        return tap.at(None, layout)("embed", x * scale.item())

    def unembed(self, x: Float[Tensor, "row d_model"], tap: BoundTap | None = None) -> Float[Tensor, "row vocab"]:
        """Last norm, unembedding, soft cap: the float32 logits of rows x of the stream."""
        tap = tap or SILENT.at(None, NO_ROWS)
        final = tap("final", self.model.norm(x))
        raw = tap("logits_raw", self.model.embed_tokens.logits(final).float())
        return tap("logits", soft_cap(raw, self.config.final_cap))
