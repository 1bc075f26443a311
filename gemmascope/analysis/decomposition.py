"""The parts of a run's stream at one position, each along a direction.

The stream is a sum of what the embedding and the sublayers wrote. At one position of one run a post-norm multiplies each
coordinate by a number, so a sublayer's output is in turn a sum: over heads, over what each head read from each token, over
neurons. What edits wrote beside that stands under their own names.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from gemmascope.model.gemma2 import Layer
from gemmascope.model.maths import soft_cap
from gemmascope.run.replay import replay
from gemmascope.run.trace import Trace
from gemmascope.sites import EDGE_SITES

Values = dict[str, Tensor]

STREAM = ("resid_pre", "attn_out", "resid_mid", "mlp_out")

# Columns of a matrix of weights that are made float32 at once.
COLUMNS = 4096


class Decomposition:
    """One trace at one position, and the direction that its parts are multiplied with.

    rest: what stands in the stream and in no split part, by name; it fills as a split goes through the layers.
    """

    def __init__(self, trace: Trace, pos: int, direction: Float[Tensor, " d_model"]) -> None:
        self.trace, self.pos, self.direction = trace, pos, direction
        self.rest: dict[str, float] = {}
        self.rounding = 0.0

    def split(self, by: str) -> Tensor:
        """The parts of every layer, [layer, ...]: (attn_out, mlp_out), heads, neurons, or heads by source token."""
        split, sites = self._ways()[by]
        self._embedding()
        found = []
        with torch.no_grad():
            for layer, values in replay(self.trace, {*STREAM, *sites}):
                found.append(split(layer, values).cpu())
                self._written_to_stream(layer.index, values)
        if self.trace.model.dtype != torch.float32:
            self.rest["rounding of the stream"] = self.rounding
        return torch.stack(found)

    def along(self, rows: Float[Tensor, "pos d_model"]) -> float:
        """What a value of the stream is along the direction at the position."""
        return float(rows[self.pos].float() @ self.direction)

    def _ways(self) -> dict[str, tuple[Callable[[Layer, Values], Tensor], list[str | tuple[str, int]]]]:
        """How each split is made, and the sites that it needs; some of them only where an edit wrote to them."""
        heads = [("head_out", layer) for layer in self._edited_layers(("head_out",))]
        edges = [("pattern", layer) for layer in self._edited_layers(EDGE_SITES)]
        return {
            "sublayer": (self._sublayers, []),
            "head": (self._heads, ["z", "attn_raw", *heads]),
            "neuron": (self._neurons, ["mlp_act", "mlp_raw"]),
            "token": (self._tokens, ["q_rot", "k_rot", "v", "attn_raw", *edges]),
        }

    def _edited_layers(self, sites: tuple[str, ...]) -> list[int]:
        found = {e.address.layer for e in self.trace.bound_edits if e.address.site.name in sites}
        return sorted(layer for layer in found if layer is not None)

    def _embedding(self) -> None:
        there = self.along(self.trace.residuals[0])
        if self._edited(None, "embed"):
            with torch.no_grad():
                own = self.along(self.trace.model.network.embed(self.trace.ids, self.trace.layout))
            self.rest |= {"embed": own, "edit at embed": there - own}
        else:
            self.rest["embed"] = there

    def _edited(self, layer: int | None, *sites: str) -> list[str]:
        """Which of these sites an edit wrote to at the position."""
        there = {
            e.address.site.name
            for e in self.trace.bound_edits
            if e.address.layer == layer and self.pos in e.positions.tolist()
        }
        return [site for site in sites if site in there]

    def _written_to_stream(self, layer: int, values: Values) -> None:
        """What edits wrote to the stream itself, beside what sublayers did; without edits that is rounding."""
        entered, left = self.trace.residuals[layer], self.trace.residuals[layer + 1]
        sums = {
            "resid_pre": (values["resid_pre"], (entered,)),
            "resid_mid": (values["resid_mid"], (values["resid_pre"], values["attn_out"])),
            "resid_post": (left, (values["resid_mid"], values["mlp_out"])),
        }
        for site, (there, written) in sums.items():
            self._beside(layer, self.along(there) - sum(map(self.along, written)), site)

    def _beside(self, layer: int, amount: float, *sites: str) -> None:
        """Note what stands there beside the parts: written by edits of these sites, else rounded off."""
        if edited := self._edited(layer, *sites):
            self.rest[f"edit at {' and '.join(f'layers.{layer}.{site}' for site in edited)}"] = amount
        else:
            self.rounding += amount

    def _sublayers(self, layer: Layer, values: Values) -> Float[Tensor, " sublayer"]:
        return torch.tensor([self.along(values["attn_out"]), self.along(values["mlp_out"])])

    def _heads(self, layer: Layer, values: Values) -> Float[Tensor, " head"]:
        self.rest[f"layers.{layer.index}.mlp_out"] = self.along(values["mlp_out"])
        if "head_out" in values:
            split = values["head_out"][self.pos].float() @ self.direction
        else:
            split = (values["z"][self.pos].float() * self._read_by_heads(layer, values)).sum(-1)
        out = self.along(values["attn_out"])
        self._beside(layer.index, out - float(split.sum()), "attn_raw", "attn_out")
        return split

    def _tokens(self, layer: Layer, values: Values) -> Float[Tensor, "head k_pos"]:
        self.rest[f"layers.{layer.index}.mlp_out"] = self.along(values["mlp_out"])
        n_kv = self.trace.model.config.n_kv_heads
        reads = rearrange(self._read_by_heads(layer, values), "(kv group) d -> kv group d", kv=n_kv)
        held = einsum(values["v"].float(), reads, "k_pos kv d, kv group d -> kv group k_pos")
        split = self._pattern(layer, values) * rearrange(held, "kv group k_pos -> (kv group) k_pos")
        out = self.along(values["attn_out"])
        self._beside(layer.index, out - float(split.sum()), "z", "attn_raw", "head_out", "attn_out")
        return split

    def _neurons(self, layer: Layer, values: Values) -> Float[Tensor, " d_mlp"]:
        self.rest[f"layers.{layer.index}.attn_out"] = self.along(values["attn_out"])
        gain = layer.post_feedforward_layernorm.gain(values["mlp_raw"][self.pos])
        split = values["mlp_act"][self.pos].float() * _through(layer.mlp.down_proj.weight, gain * self.direction)
        self._beside(layer.index, self.along(values["mlp_out"]) - float(split.sum()), "mlp_raw", "mlp_out")
        return split

    def _read_by_heads(self, layer: Layer, values: Values) -> Float[Tensor, "head d_head"]:
        """What each coordinate of each head's z is along the direction, through W_O and the post-norm as it was."""
        gain = layer.post_attention_layernorm.gain(values["attn_raw"][self.pos])
        read = _through(layer.self_attn.o_proj.weight, gain * self.direction)
        return rearrange(read, "(head d) -> head d", head=self.trace.model.config.n_heads)

    def _pattern(self, layer: Layer, values: Values) -> Float[Tensor, "head k_pos"]:
        """The pattern of the position's queries alone; as the edits left it, where some wrote to edges."""
        if "pattern" in values:
            return values["pattern"][:, self.pos].float()
        attend, positions, k = layer.self_attn.attend, self.trace.layout.positions, values["k_rot"]
        q = rearrange(values["q_rot"][self.pos], "(kv group) d -> kv group d", kv=k.shape[1])
        scores = einsum(q * attend.scale, k, "kv group d, k_pos kv d -> kv group k_pos")
        capped = rearrange(soft_cap(scores, attend.cap), "kv group k_pos -> (kv group) 1 k_pos")
        return attend.pattern(capped, positions[self.pos : self.pos + 1], positions, k.dtype)[:, 0].float()


def _through(weight: Float[Tensor, "d_model n"], direction: Float[Tensor, " d_model"]) -> Float[Tensor, " n"]:
    """What each column of a matrix is along a direction, in float32, a block of columns at a time."""
    return torch.cat([direction @ block.float() for block in torch.split(weight, COLUMNS, dim=1)])
