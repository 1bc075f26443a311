"""Gemma 2, layer by layer over rows.

References: "Gemma 2: Improving Open Language Models at a Practical Size" (arXiv 2408.00118); Gemma2ForCausalLM of
transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from copy import deepcopy
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gemmascope.arguments import true_or_false
from gemmascope.config import GemmaConfig
from gemmascope.errors import SiteError
from gemmascope.model.factored_matrix import FactoredMatrix, ov_of, qk_of
from gemmascope.model.layout import NO_ROWS, Layout
from gemmascope.model.maths import soft_cap
from gemmascope.model.mixins.named_weights import NamedWeights
from gemmascope.model.modules import MLP, Attention, Embedding, RMSNorm
from gemmascope.model.shutdown import stop_at_exit
from gemmascope.model.tap import SILENT, BoundTap, Tap
from gemmascope.values import moved


class Layer(NamedWeights, nn.Module):
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
        x, layout, tap = self.bring(x, layout, tap)
        x = tap("resid_pre", x)
        x = tap("resid_mid", layout.query_rows(x) + self._attention(x, layout, tap))
        mlp_in, _ = self.pre_feedforward_layernorm.tapped(x, "mlp_in_scale", tap)
        mlp = tap("mlp_raw", self.mlp(tap("mlp_in", mlp_in), tap))
        out, _ = self.post_feedforward_layernorm.tapped(mlp, "mlp_out_scale", tap)
        return tap("resid_post", x + tap("mlp_out", out))

    @property
    def device(self) -> torch.device:
        """The device that the layer's weights are on, and that it computes on."""
        return self.input_layernorm.weight.device

    def bring(self, x: Tensor, layout: Layout, tap: BoundTap) -> tuple[Tensor, Layout, BoundTap]:
        """Rows, their layout and their tap on the layer's device. The host does not wait for copies from another GPU."""
        device = self.device
        if x.device == device == layout.positions.device or device.type == "meta":  # of a pass before: an error follows
            return x, layout, tap
        layout = layout.on(device)
        return moved(x, device), layout, tap.on(layout)

    def _attention(self, x: Tensor, layout: Layout, tap: BoundTap) -> Tensor:
        attn_in, _ = self.input_layernorm.tapped(x, "attn_in_scale", tap)
        raw, z = self.self_attn(tap("attn_in", attn_in), layout, tap)
        raw = tap("attn_raw", raw)
        out, scale = self.post_attention_layernorm.tapped(raw, "attn_out_scale", tap)
        if tap.wants("head_out"):
            heads = self.head_out(raw, z, scale)
            changed = tap("head_out", heads)
            if changed is not heads:  # add what the tap changed; without a change every bit stays
                out = out + self.sum_of_heads(changed - heads)
        return tap("attn_out", out)

    def sum_of_heads(self, heads: Float[Tensor, "row head d_model"]) -> Float[Tensor, "row d_model"]:
        """The sum of what all heads of the layer wrote."""
        return heads.sum(1)

    def head_out(
        self, raw: Float[Tensor, "row d_model"], z: Float[Tensor, "row head d_head"], scale: Tensor | None = None
    ) -> Float[Tensor, "row head d_model"]:
        """What each head adds to the stream, through the post-norm with the scale of the whole output, or a given one."""
        gain = self.post_attention_layernorm.gain(raw, scale)
        return (self.self_attn.head_outputs(z).float() * gain[:, None]).to(raw.dtype)

    def ov(self, head: int, *, gains: bool = True) -> FactoredMatrix:
        """The OV matrix of a query head: it writes row @ left @ right for a row that it reads.

        Args:
            head: The query head, counted from the end if negative.
            gains: Include the norms' gains, so that row is a stream row over its root mean square; the post-norm's
                scale is left out. Without gains row is attn_in and the product is the head's part of attn_raw. Default True.

        Raises:
            SiteError: There is no such head.
        """
        norms = self.input_layernorm, self.post_attention_layernorm
        return ov_of(self.index, self.self_attn, norms, head, gains=true_or_false(gains, "gains", error=SiteError))

    def qk(self, head: int, *, distance: int = 0, gains: bool = True) -> FactoredMatrix:
        """The QK matrix of a query head: its score before the soft cap is query row @ left @ right @ key row.

        In a Gemma 3, which norms queries and keys, the score is that times the scales of both norms in a run: the inverse
        root mean squares of ("q_raw", layer) and ("k_raw", layer) of the head.

        Args:
            head: The query head, counted from the end if negative.
            distance: How many positions the key is before the query, on which RoPE makes the score depend. Default 0.
            gains: Include the norm's gain on both sides, so that both rows are stream rows over their root mean squares.
                Default True.

        Raises:
            SiteError: There is no such head, or the distance is negative.
        """
        return qk_of(
            self.index,
            self.self_attn,
            self.input_layernorm,
            head,
            distance,
            gains=true_or_false(gains, "gains", error=SiteError),
        )


class LayerSource(Protocol):
    """Provides layers whose weights are packed, or streamed from memory or files."""

    def layers(self, reverse: bool) -> Iterator[Layer]:
        """The layers in order. Each is valid until the next one is requested, or the iterator is closed."""

    def single(self, index: int) -> Iterator[Layer]:
        """One layer, as in a pass over it alone."""

    def layer(self, index: int) -> Layer:
        """One layer that owns its weights."""

    def digest(self, index: int) -> str:
        """The digest of a layer's weights."""

    def mark(self, index: int) -> str:
        """A cheap mark of a layer, by which a run later sees whether it changed."""


class Torso(nn.Module):
    """Embedding, layers, last norm: `model` in the checkpoint."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)


def _no_check() -> None:
    """The check of a network that shares no weights."""


class Gemma2(nn.Module):
    """The network: token ids to rows, rows through the layers, rows to soft-capped logits.

    A new network is on the meta device, which takes no memory; its loader replaces each parameter.

    layer_source: provides the layers when this module's own parameters are empty. work_bytes: the memory budget of the rows
    of a pass on a device. layer_devices: the device of each layer; empty if all are where the embedding is. n_processes: how
    many processes share each layer. owned: whether the weights were read for this network alone. keep_alive: objects that
    must live as long as the network. check: raises if a transformers model that shares these weights no longer computes the
    same.
    """

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Torso(config)
        self.layer_source: LayerSource | None = None
        self.work_bytes: int | None = None
        self.layer_devices: tuple[torch.device, ...] = ()
        self.n_processes = 1
        self.keep_alive: tuple[object, ...] = ()  # in a tuple, so that torch does not register a module in it
        self.owned = False
        self.check: Callable[[], None] = _no_check

    def forward(self, ids: Int[Tensor, " row"], layout: Layout, tap: Tap = SILENT) -> Float[Tensor, "row d_model"]:
        """One pass: the stream after the last layer, before the last norm, for every row."""
        x = self.embed(ids, layout, tap)
        with closing(self.layers()) as layers:
            for layer in layers:
                x = layer(x, layout, tap.at(layer.index, layout))
        return moved(x, self.device)

    def deep_copy(self, memo: dict[int, object]) -> Gemma2:
        """A network with its own weights."""
        memo.update({id(self.check): _no_check, id(self.keep_alive): ()})
        copied = deepcopy(self, memo).requires_grad_(False)
        copied.owned = True
        return copied

    @property
    def device(self) -> torch.device:
        """The device of the embedding and the last norm: passes begin and end there."""
        return self.model.norm.weight.device

    def device_of(self, layer: int) -> torch.device:
        """The device that a layer, from 0, computes on."""
        return self.layer_devices[layer] if self.layer_devices else self.device

    def layers(self, reverse: bool = False) -> Generator[Layer]:
        """The layers in the order of a pass, or in reverse. Each is valid until the next one is requested.

        Use contextlib.closing if the pass may end early: streaming layers hold memory and a thread.
        """
        if self.layer_source is not None:
            yield from self.layer_source.layers(reverse)
        else:
            for layer in reversed(self.model.layers) if reverse else self.model.layers:
                stop_at_exit()
                yield layer  # type: ignore[misc]

    def single(self, index: int) -> Generator[Layer]:
        """The layer of this index, from 0, as in a pass over it alone, whose memory it takes."""
        if self.layer_source is not None:
            yield from self.layer_source.single(index)
        else:
            yield self.model.layers[index]  # type: ignore[misc]

    def layer(self, index: int) -> Layer:
        """The layer of this index, from 0, valid as long as it is referenced."""
        return self.model.layers[index] if self.layer_source is None else self.layer_source.layer(index)  # type: ignore[return-value]

    def embed(self, ids: Int[Tensor, " row"], layout: Layout, tap: Tap = SILENT) -> Float[Tensor, "row d_model"]:
        """Token embeddings times sqrt(d_model), which is rounded to the weights' dtype as in training."""
        x = self.model.embed_tokens(ids)
        scale = torch.tensor(self.config.d_model**0.5, dtype=x.dtype)
        return tap.at(None, layout)("embed", x * scale.item())

    def unembed(self, x: Float[Tensor, "row d_model"], tap: BoundTap | None = None) -> Float[Tensor, "row vocab"]:
        """Last norm, unembedding, soft cap: the float32 logits of rows x of the stream."""
        tap = tap or SILENT.at(None, NO_ROWS)
        x = moved(x, self.device)
        normed, _ = self.model.norm.tapped(x, "final_scale", tap)
        final = tap("final", normed)
        raw = tap("logits_raw", self.model.embed_tokens.logits(final).float())
        return tap("logits", soft_cap(raw, self.config.final_cap))
