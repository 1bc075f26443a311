"""A run with its attention patterns and the scales of its norms held at their values: a linear map of stream rows.

What then lies between two writers of the residual stream is linear, so a direction that is read from the stream at one
position can be carried down the layers, and what is written to the stream can be carried up. Both go head by head.

Reference: Ameisen et al., "Circuit Tracing" (transformer-circuits.pub/2025/attribution-graphs).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from gemmascope.circuits.frozen_mlp import FrozenMLP
from gemmascope.config import GemmaConfig
from gemmascope.errors import SiteError
from gemmascope.model.gemma2 import Layer
from gemmascope.model.maths import root_mean_square
from gemmascope.model.tap import SILENT
from gemmascope.run.recorded import RecordedRun
from gemmascope.values import chunks, moved

# The sites that a frozen layer needs of a run, beside the stream at its entry: its norms' scales.
SCALES = ("attn_out_scale", "mlp_in_scale", "mlp_out_scale")

# Patterns of all layers together are kept up to this many bytes; those of longer prompts are computed again in each pass.
PATTERN_BYTES = 2**27

# Positions of directions that go through a product at once. Measured on two cores: more do not fit the caches.
PART_ROWS = 2048

# A chunk of a pattern: the query rows, the keys that some of them see, and the probabilities [kv, group, q, k].
PatternChunk = tuple[slice, slice, Tensor]


@dataclass
class FrozenRun:
    """A trace with the scales of its norms, layer by layer.

    Attributes:
        trace: The run. It has no edits.
        scales: For each layer, what its norms divide each row by: [pos] for each site of SCALES.
        resid_mid: For each layer the stream between attention and MLP, [pos, d_model]; empty where no MLP is passed.
    """

    trace: RecordedRun
    scales: list[dict[str, Tensor]] = field(default_factory=list)
    resid_mid: list[Tensor] = field(default_factory=list)
    _patterns: dict[int, list[PatternChunk]] = field(default_factory=dict)

    @property
    def n_pos(self) -> int:
        """The number of positions."""
        return len(self.trace.residuals[0])

    def add(self, values: dict[str, Tensor], *, keep_mid: bool) -> None:
        """Take the values of the next layer, by site: SCALES and, to pass its MLP, resid_mid."""
        self.scales.append({site: values[site].float() for site in SCALES})
        if keep_mid:
            self.resid_mid.append(values["resid_mid"])

    @property
    def keeps_patterns(self) -> bool:
        """Whether the patterns of all layers are few enough to be kept."""
        return keeps_patterns(self.trace.model.config, self.n_pos)

    def layer(self, module: Layer) -> FrozenLayer:
        """A layer of the run, while the layer is lent by a pass."""
        return FrozenLayer(module, self)

    def patterns(self, module: Layer) -> list[PatternChunk] | Iterator[PatternChunk]:
        """The attention pattern of a layer, in chunks of query rows, float32."""
        if module.index in self._patterns:
            return self._patterns[module.index]
        computed = self._compute_patterns(module)
        if not self.keeps_patterns:
            return computed
        self._patterns[module.index] = list(computed)
        return self._patterns[module.index]

    def _compute_patterns(self, module: Layer) -> Iterator[PatternChunk]:
        q, k = self.queries_and_keys(module)
        attend, kv = module.self_attn.attend, k.shape[1]
        q, k = rearrange(q, "q (kv group) d -> 1 kv group q d", kv=kv), rearrange(k, "k kv d -> 1 kv k d")
        for rows, seen, pattern in attend.patterns(q, k):
            yield rows, seen, pattern[0].float()

    def queries_and_keys(self, module: Layer) -> tuple[Tensor, Tensor]:
        """The rotated queries [pos, head, d_head] and keys [pos, kv_head, d_head] of a layer, as in the run."""
        tap = SILENT.at(module.index, self.trace.layout)
        x, layout, tap = module.bring(self.trace.residuals[module.index], self.trace.layout, tap)
        q, k, _ = module.self_attn.queries_keys_values(module.input_layernorm(x), layout, tap)
        return q, k


class FrozenLayer:
    """One layer of a frozen run: what its attention and its MLP do to directions that are read from the stream.

    A direction is given at some positions from 0 on: [..., pos, d_model] with as many positions as it has, at most those of
    the run. All numbers are float32.
    """

    def __init__(self, module: Layer, run: FrozenRun) -> None:
        self.module, self.run, self.index = module, run, module.index
        self.config = run.trace.model.config
        self.device = module.device

    def _gain(self, norm: str, scale: Tensor) -> Float[Tensor, "pos d_model"]:
        weight = getattr(self.module, norm).weight.float()
        gain: Tensor = (1.0 + weight) / moved(scale, self.device)[:, None]
        return gain

    def scale(self, site: str) -> Float[Tensor, " pos"]:
        """What a norm divides each row by, at one of SCALES."""
        return moved(self.run.scales[self.index][site], self.device)

    @cached_property
    def attn_in_gain(self) -> Float[Tensor, "pos d_model"]:
        """What the input norm multiplies the stream by: its gain over its scale."""
        x = self.run.trace.residuals[self.index]
        return self._gain("input_layernorm", root_mean_square(x, self.config.norm_eps))

    @cached_property
    def attn_out_gain(self) -> Float[Tensor, "pos d_model"]:
        """What the post-norm multiplies the attention output by."""
        return self._gain("post_attention_layernorm", self.scale("attn_out_scale"))

    @cached_property
    def mlp_in_gain(self) -> Float[Tensor, "pos d_model"]:
        """What the norm before the MLP multiplies the stream by."""
        return self._gain("pre_feedforward_layernorm", self.scale("mlp_in_scale"))

    @cached_property
    def mlp_out_gain(self) -> Float[Tensor, "pos d_model"]:
        """What the norm after the MLP multiplies its output by."""
        return self._gain("post_feedforward_layernorm", self.scale("mlp_out_scale"))

    @cached_property
    def mlp(self) -> FrozenMLP:
        """The MLP with its gates held, as RelP has it."""
        x = moved(self.run.resid_mid[self.index], self.device)
        return FrozenMLP(self.module.mlp, self.module.pre_feedforward_layernorm(x), self.mlp_in_gain, self.mlp_out_gain)

    @cached_property
    def w_o(self) -> Float[Tensor, "d_model heads"]:
        """W_O of all heads side by side, as it multiplies a direction above."""
        return self.module.self_attn.output_weights().detach().float()

    @cached_property
    def w_v(self) -> Float[Tensor, "values d_model"]:
        """W_V of all kv heads, as it multiplies a direction at the values."""
        return self.module.self_attn.v_proj.weight.detach().float()

    # -- down: directions that are read --

    def at_z(self, v: Float[Tensor, "target pos d_model"]) -> Float[Tensor, "target pos head d_head"]:
        """Directions that are read from attn_out, as directions at what each head read."""
        product = (v * self.attn_out_gain[: v.shape[1]]) @ self.w_o
        return rearrange(product, "target pos (head d) -> target pos head d", d=self.config.d_head)

    def add_below_attention(self, directions: Sequence[Tensor]) -> None:
        """Add to directions at the stream after attention what they read through it of the stream before, in place.

        directions: several of [target, pos, d_model], each with positions of its own.
        They go through a few at a time, so that what lies between stays small. A pattern that is not kept is computed once
        for all of them.
        """
        parts = [v[at] for v in directions for at in chunks(len(v), max(1, PART_ROWS // v.shape[1]))]
        if self.run.keeps_patterns:
            for part in parts:
                self._add_below([part])
        elif parts:
            self._add_below(parts)

    def _add_below(self, parts: Sequence[Tensor]) -> None:
        config = self.config
        sums = [v.new_zeros(config.n_kv_heads, v.shape[1], len(v), config.d_head) for v in parts]
        for rows, seen, pattern in self.run.patterns(self.module):
            for v, out in zip(parts, sums, strict=True):
                if (stop := min(rows.stop, v.shape[1])) <= rows.start:
                    continue
                read = v[:, rows.start : stop] * self.attn_out_gain[rows.start : stop]
                z = rearrange(read @ self.w_o, "t q (head d) -> t q head d", d=config.d_head)
                keys = slice(seen.start, min(seen.stop, v.shape[1]))
                self._sum_heads(pattern[..., : stop - rows.start, : keys.stop - keys.start], z, out[:, keys])
        for v, out in zip(parts, sums, strict=True):
            v += self._below_values(rearrange(out, "kv k t d -> t k (kv d)"))

    def below_z(self, z: Float[Tensor, "target pos head d_head"]) -> Float[Tensor, "target pos d_model"]:
        """Directions at what each head read, as directions at the stream before the layer, summed over the heads."""
        n, stop = z.shape[:2]
        out = z.new_zeros(self.config.n_kv_heads, stop, n, self.config.d_head)
        for rows, seen, pattern in self.run.patterns(self.module):
            if rows.start >= stop:
                break
            end, keys = min(rows.stop, stop), slice(seen.start, min(seen.stop, stop))
            self._sum_heads(pattern[..., : end - rows.start, : keys.stop - keys.start], z[:, rows.start : end], out[:, keys])
        return self._below_values(rearrange(out, "kv k t d -> t k (kv d)"))

    @staticmethod
    def _sum_heads(pattern: Tensor, z: Tensor, out: Float[Tensor, "kv k target d_head"]) -> None:
        """Add what goes through a part of a pattern, [kv, group, q, k], of directions z [target, q, head, d_head].

        The sum over the heads of a kv head is part of the product.
        """
        z = rearrange(z, "t q (kv group) d -> kv (group q) (t d)", kv=len(out))
        out += (rearrange(pattern, "kv group q k -> kv k (group q)") @ z).view(out.shape)

    def _below_values(self, at_values: Float[Tensor, "target pos values"]) -> Float[Tensor, "target pos d_model"]:
        return (at_values @ self.w_v) * self.attn_in_gain[: at_values.shape[1]]

    # -- up: what is written --

    def head_writes(self, x: Float[Tensor, "pos d_model"]) -> Float[Tensor, "head pos d_model"]:
        """What each head adds to the stream for a part x of the stream before the layer, pattern and scales held."""
        values = ((x * self.attn_in_gain) @ self.w_v.T).view(len(x), self.config.n_kv_heads, -1)
        z = x.new_zeros(self.config.n_kv_heads, self.config.heads_per_kv, len(x), values.shape[-1])
        for rows, seen, pattern in self.run.patterns(self.module):
            z[:, :, rows] += pattern @ rearrange(values[seen], "k kv d -> kv 1 k d")
        w_o = rearrange(self.w_o, "model (head d) -> head d model", head=self.config.n_heads)
        return (rearrange(z, "kv group pos d -> (kv group) pos d") @ w_o) * self.attn_out_gain


def keeps_patterns(config: GemmaConfig, n_pos: int) -> bool:
    """Whether the patterns of all layers together are few enough to be kept."""
    return 4 * config.n_layers * config.n_heads * n_pos**2 <= PATTERN_BYTES


def require_plain(trace: RecordedRun, what: str) -> None:
    """SiteError for a run with edits, or a model whose layers several processes share: neither can be frozen."""
    if trace.bound_edits:
        edit = trace.bound_edits[0].edit
        raise SiteError(f"{what} is of a run without edits, which write to the run what no layer wrote; given {edit!r}")
    if trace.model.network.n_processes > 1:
        raise SiteError(f"{what} needs whole layers in one process; {trace.model.name!r} shares its own among several")
