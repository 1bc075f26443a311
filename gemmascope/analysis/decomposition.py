"""The parts of a run's stream at one position, each as a number along a direction.

The stream is the sum of what the embedding and the sublayers wrote. At one position of one run, a post-norm multiplies each
coordinate by a fixed number, so a sublayer's output is a sum in turn: over heads, over source tokens, or over neurons. What
edits added to it gets parts under their own names.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from gemmascope.model.gemma2 import Layer
from gemmascope.model.maths import soft_cap
from gemmascope.model.modules import RMSNorm
from gemmascope.run.replay import edited_layers, replay
from gemmascope.run.trace import Trace
from gemmascope.sites import EDGE_SITES
from gemmascope.values import moved

Values = dict[str, Tensor]

STREAM = ("resid_pre", "attn_out", "resid_mid", "mlp_out")

# Columns of a weight matrix that are converted to float32 at once.
COLUMNS = 4096


class Decomposition:
    """The stream of one trace at one position, along a direction.

    rest: parts of the stream that the split does not cover, by name. It fills up as a split goes through the layers.
    """

    def __init__(self, trace: Trace, pos: int, direction: Float[Tensor, " d_model"]) -> None:
        self.trace, self.pos, self.direction = trace, pos, direction
        self.rest: dict[str, float] = {}
        self.rounding = 0.0

    def split(self, by: str) -> Tensor:
        """The parts of every layer, [layer, ...]: (attn_out, mlp_out), heads, neurons, or heads by source token."""
        split_layer, sites = self._splits()[by]
        self._add_embedding()
        parts = []
        with torch.no_grad():
            for layer, values in replay(self.trace, {*STREAM, *sites}):
                parts.append(split_layer(layer, values).cpu())
                self._add_stream_edits(layer.index, values)
        if self.trace.model.dtype != torch.float32:
            self.rest["rounding of the stream"] = self.rounding
        return torch.stack(parts)

    def along(self, rows: Float[Tensor, "pos d_model"]) -> float:
        """The dot product of the stream's row at the position with the direction."""
        return float(rows[self.pos].float() @ self._direction_at(rows))

    def _direction_at(self, rows: Tensor) -> Float[Tensor, " d_model"]:
        """The direction on the device of these rows: that of their layer."""
        return moved(self.direction, rows.device)

    def _splits(self) -> dict[str, tuple[Callable[[Layer, Values], Tensor], list[str | tuple[str, int]]]]:
        """By name: the function that splits a layer, and the sites it needs, some only in layers where an edit wrote."""
        heads = [("head_out", layer) for layer in edited_layers(self.trace, "head_out")]
        edges = [("pattern", layer) for layer in edited_layers(self.trace, *EDGE_SITES)]
        attn_scales, mlp_scales = (
            [(site, layer) for layer in edited_layers(self.trace, site)] for site in ("attn_out_scale", "mlp_out_scale")
        )
        return {
            "sublayer": (self._sublayers, []),
            "head": (self._heads, ["z", "attn_raw", *attn_scales, *heads]),
            "neuron": (self._neurons, ["mlp_act", "mlp_raw", *mlp_scales]),
            "token": (self._tokens, ["q_rot", "k_rot", "v", "attn_raw", *attn_scales, *edges]),
        }

    def _edited_sites(self, layer: int | None, *sites: str) -> list[str]:
        """Those of the sites that an edit wrote to at the position."""
        edited = {
            e.address.site.name
            for e in self.trace.bound_edits
            if e.address.layer == layer and self.pos in e.positions.tolist()
        }
        return [site for site in sites if site in edited]

    def _add_embedding(self) -> None:
        value = self.along(self.trace.residuals[0])
        if self._edited_sites(None, "embed"):
            with torch.no_grad():
                unedited = self.along(self.trace.model.network.embed(self.trace.ids, self.trace.layout))
            self.rest |= {"embed": unedited, "edit at embed": value - unedited}
        else:
            self.rest["embed"] = value

    def _add_stream_edits(self, layer: int, values: Values) -> None:
        """Add what edits wrote to the stream itself. Without edits the same difference is rounding."""
        entering, leaving = self.trace.residuals[layer], self.trace.residuals[layer + 1]
        sums = {
            "resid_pre": (values["resid_pre"], (entering,)),
            "resid_mid": (values["resid_mid"], (values["resid_pre"], values["attn_out"])),
            "resid_post": (leaving, (values["resid_mid"], values["mlp_out"])),
        }
        for site, (value, written) in sums.items():
            self._add_difference(layer, self.along(value) - sum(map(self.along, written)), site)

    def _add_difference(self, layer: int, difference: float, *sites: str) -> None:
        """Book a difference from the sum of the parts under the edits of these sites, or as rounding without any."""
        if edited := self._edited_sites(layer, *sites):
            self.rest[f"edit at {' and '.join(f'layers.{layer}.{site}' for site in edited)}"] = difference
        else:
            self.rounding += difference

    def _sublayers(self, layer: Layer, values: Values) -> Float[Tensor, " sublayer"]:
        return torch.tensor([self.along(values["attn_out"]), self.along(values["mlp_out"])])

    def _heads(self, layer: Layer, values: Values) -> Float[Tensor, " head"]:
        self.rest[f"layers.{layer.index}.mlp_out"] = self.along(values["mlp_out"])
        if "head_out" in values:
            parts = values["head_out"][self.pos].float() @ self._direction_at(values["head_out"])
        else:
            parts = (values["z"][self.pos].float() * self._z_directions(layer, values)).sum(-1)
        out = self.along(values["attn_out"])
        self._add_difference(layer.index, out - float(parts.sum()), "attn_raw", "attn_out")
        return parts

    def _tokens(self, layer: Layer, values: Values) -> Float[Tensor, "head k_pos"]:
        self.rest[f"layers.{layer.index}.mlp_out"] = self.along(values["mlp_out"])
        n_kv = self.trace.model.config.n_kv_heads
        directions = rearrange(self._z_directions(layer, values), "(kv group) d -> kv group d", kv=n_kv)
        value_parts = einsum(values["v"].float(), directions, "k_pos kv d, kv group d -> kv group k_pos")
        parts = self._pattern(layer, values) * rearrange(value_parts, "kv group k_pos -> (kv group) k_pos")
        out = self.along(values["attn_out"])
        self._add_difference(layer.index, out - float(parts.sum()), "z", "attn_raw", "head_out", "attn_out")
        return parts

    def _neurons(self, layer: Layer, values: Values) -> Float[Tensor, " d_mlp"]:
        self.rest[f"layers.{layer.index}.attn_out"] = self.along(values["attn_out"])
        gain = self._gain(layer.post_feedforward_layernorm, values, "mlp_raw", "mlp_out_scale")
        columns = _columns_along(layer.mlp.down_proj.weight, gain * self._direction_at(gain))
        parts = values["mlp_act"][self.pos].float() * columns
        self._add_difference(layer.index, self.along(values["mlp_out"]) - float(parts.sum()), "mlp_raw", "mlp_out")
        return parts

    def _z_directions(self, layer: Layer, values: Values) -> Float[Tensor, "head d_head"]:
        """The direction pulled back to each head's z, through the post-norm with its scale in the run, and W_O."""
        gain = self._gain(layer.post_attention_layernorm, values, "attn_raw", "attn_out_scale")
        columns = _columns_along(layer.self_attn.o_proj.weight, gain * self._direction_at(gain))
        return rearrange(columns, "(head d) -> head d", head=self.trace.model.config.n_heads)

    def _gain(self, norm: RMSNorm, values: Values, raw: str, scale: str) -> Float[Tensor, " d_model"]:
        """What a post-norm multiplied the row by in the run, with the scale that an edit wrote where there is one."""
        return norm.gain(values[raw][self.pos], values[scale][self.pos] if scale in values else None)

    def _pattern(self, layer: Layer, values: Values) -> Float[Tensor, "head k_pos"]:
        """The pattern's row of the position, with edits of edges where there are any."""
        if "pattern" in values:
            return values["pattern"][:, self.pos].float()
        attend, positions, k = layer.self_attn.attend, self.trace.layout.on(layer.device).positions, values["k_rot"]
        q = rearrange(values["q_rot"][self.pos], "(kv group) d -> kv group d", kv=k.shape[1])
        scores = einsum(q * attend.scale, k, "kv group d, k_pos kv d -> kv group k_pos")
        capped = rearrange(soft_cap(scores, attend.cap), "kv group k_pos -> (kv group) 1 k_pos")
        return attend.pattern(capped, positions[self.pos : self.pos + 1], positions, k.dtype)[:, 0].float()


def _columns_along(weight: Float[Tensor, "d_model n"], direction: Float[Tensor, " d_model"]) -> Float[Tensor, " n"]:
    """The dot product of each column of a matrix with a direction, in float32, a block of columns at a time."""
    return torch.cat([direction @ block.float() for block in torch.split(weight, COLUMNS, dim=1)])
