"""One layer of a decoding step that no tap reads: Layer.forward's numbers to the bit, without module calls and taps.

Beside the products of a single row, those calls take as long as the products themselves.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gemmascope.kernels.switch import fuses, fuses_on_cpu
from gemmascope.model.gemma2 import Layer
from gemmascope.model.kv_cache import KVCache
from gemmascope.model.layout import Layout
from gemmascope.model.maths import gelu_gate, half_tables, rms_norm, rotate, turn
from gemmascope.model.modules import MLP, Attention, Linear, RMSNorm, product

Rows = Float[Tensor, "run d"]
Function = Callable[[Rows], Rows]


class UntappedLayer:
    """A layer for one row of each run, as a function of the stream, the step's layout and the layer's KV cache."""

    def __init__(self, layer: Layer) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.d_head = attention.config.d_head
        self.rope = attention.config.d_head, attention.rope_theta, attention.rope_factor
        self.attend = attention.attend.step
        self.q, self.k, self.v, self.o = map(
            _product_of, (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        )
        self.gate, self.up, self.down = map(_product_of, (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
        # In kernels, which take every dtype, or in plain torch with what it would convert at every call.
        like = layer.input_layernorm.weight.detach()
        with torch.no_grad():
            self.in_kernels = fuses(like) or fuses_on_cpu(like)
        self.gelu_gate = gelu_gate if self.in_kernels else gelu_gate.__wrapped__  # type: ignore[attr-defined]
        self.before, self.after, self.mlp_before, self.mlp_after = map(
            self._norm_of,
            (layer.input_layernorm, layer.post_attention_layernorm, layer.pre_feedforward_layernorm,
             layer.post_feedforward_layernorm),
        )  # fmt: skip
        self.q_norm, self.k_norm = (
            self._norm_of(norm) if isinstance(norm, RMSNorm) else None for norm in (attention.q_norm, attention.k_norm)
        )

    @classmethod
    def of(cls, layer: Layer) -> UntappedLayer | None:
        """None for a layer that computes otherwise than Layer does: quantised, divided among processes, or with hooks."""
        usual = type(layer) is Layer and type(layer.self_attn) is Attention and type(layer.mlp) is MLP
        linear = (module for module in layer.modules() if isinstance(module, nn.Linear))
        hooked = any(module._forward_hooks or module._forward_pre_hooks for module in layer.modules())
        return cls(layer) if usual and not hooked and all(type(module) is Linear for module in linear) else None

    def __call__(self, x: Rows, layout: Layout, cache: KVCache) -> Rows:
        """The stream after the layer, from that before it. The new keys and values are appended to the cache."""
        rows = self.before(x)
        n_runs, d_head = len(x), self.d_head
        q, k, v = (projected(rows).view(n_runs, -1, d_head) for projected in (self.q, self.k, self.v))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = self._rotated(q, k, layout)
        written = self.o(self.attend(q, k, v, cache, layout).flatten(1))
        x = self.after(written).add_(x)
        rows = self.mlp_before(x)
        return self.mlp_after(self.down(self.gelu_gate(self.gate(rows), self.up(rows)))).add_(x)

    def _rotated(self, q: Tensor, k: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        cos, sin = layout.rope(*self.rope)
        if self.in_kernels:
            return rotate(q, cos, sin), rotate(k, cos, sin)
        tables = layout.once(("half tables", *self.rope), lambda: half_tables(cos, sin, q.dtype))
        return turn(q, *tables), turn(k, *tables)

    def _norm_of(self, norm: RMSNorm) -> Function:
        weight, eps = norm.weight.detach(), norm.eps
        if self.in_kernels:
            return lambda x: rms_norm(x, weight, eps)
        weight, plain = weight.float(), rms_norm.__wrapped__  # type: ignore[attr-defined]
        return lambda x: plain(x, weight, eps)


def _product_of(linear: nn.Module) -> Function:
    assert isinstance(linear, nn.Linear)
    weight = linear.weight.detach()
    return lambda x: product(x, weight)
