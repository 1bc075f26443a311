"""A Gemma written out in float64 from a transformers checkpoint, in which every receiver reads a stream of its own.

The oracle of edges: whatever a receiver reads is built by a function from what all senders before it wrote. It shares no
code with the package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# mix(receiver, what the senders before it wrote, by name) -> what it reads, [pos, d_model].
Mix = Callable[[str, dict[str, Tensor]], Tensor]


def whole_stream(receiver: str, written: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(written.values())).sum(0)


class PlainEdges:
    """relp: with the slopes of RelP in place of the gradient's."""

    def __init__(self, checkpoint: Any, *, relp: bool = False) -> None:
        self.config, self.relp = checkpoint.config, relp
        self.weights = {name: t.detach().double() for name, t in checkpoint.state_dict().items()}

    def run(
        self, ids: Sequence[int], mix: Mix = whole_stream, embed: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The logits of the last position, and what every sender wrote."""
        c = self.config
        table = self.weights["model.embed_tokens.weight"]
        scale = torch.tensor(c.hidden_size**0.5, dtype=torch.float32).double()
        written = {"embed": table[list(ids)] * scale if embed is None else embed}
        for layer in range(c.num_hidden_layers):
            written.update(self._heads(layer, mix, dict(written)))
            written[f"m{layer}"] = self._mlp(layer, mix(f"m{layer}", dict(written)))
        final = self._norm(mix("logits", dict(written)), "model.norm.weight")[-1]
        logits = table @ final
        cap = getattr(c, "final_logit_softcapping", None)
        return (logits if cap is None else cap * torch.tanh(logits / cap)), written

    def _norm(self, x: Tensor, weight: str, of: Tensor | None = None) -> Tensor:
        """The norm of x, with the scale of `of` if that is given."""
        scale = torch.rsqrt((x if of is None else of).square().mean(-1, keepdim=True) + self.config.rms_norm_eps)
        return x * (scale.detach() if self.relp else scale) * (1 + self.weights[weight])

    def _heads(self, layer: int, mix: Mix, written: dict[str, Tensor]) -> dict[str, Tensor]:
        c, at = self.config, f"model.layers.{layer}."
        group, d = c.num_attention_heads // c.num_key_value_heads, c.head_dim

        def read(receiver: str, name: str, head: int) -> Tensor:
            normed = self._norm(mix(receiver, dict(written)), at + "input_layernorm.weight")
            projected = normed @ self.weights[f"{at}self_attn.{name}_proj.weight"][head * d : (head + 1) * d].T
            if c.model_type != "gemma2" and name != "v":
                projected = self._norm(projected, f"{at}self_attn.{name}_norm.weight")
            return projected if name == "v" else self._rotated(projected, layer)

        kv = range(c.num_key_value_heads)
        keys = [read(f"a{layer}.kv{head}<k>", "k", head) for head in kv]
        values = [read(f"a{layer}.kv{head}<v>", "v", head) for head in kv]
        raw = {}
        for head in range(c.num_attention_heads):
            q = read(f"a{layer}.h{head}<q>", "q", head)
            pattern = self._pattern(q @ keys[head // group].T * c.query_pre_attn_scalar**-0.5, layer)
            w_o = self.weights[at + "self_attn.o_proj.weight"][:, head * d : (head + 1) * d]
            raw[head] = pattern @ values[head // group] @ w_o.T
        together = torch.stack(list(raw.values())).sum(0)
        weight = at + "post_attention_layernorm.weight"
        return {f"a{layer}.h{head}": self._norm(of_head, weight, of=together) for head, of_head in raw.items()}

    def _pattern(self, scores: Tensor, layer: int) -> Tensor:
        c = self.config
        cap = getattr(c, "attn_logit_softcapping", None)
        scores = scores if cap is None else cap * torch.tanh(scores / cap)
        i = torch.arange(len(scores))
        distance = i[:, None] - i[None]
        seen = distance >= 0
        if c.layer_types[layer] == "sliding_attention":
            seen &= distance < c.sliding_window
        return scores.masked_fill(~seen, -torch.inf).softmax(-1)

    def _rotated(self, x: Tensor, layer: int) -> Tensor:
        from reference import rope_of

        theta, factor = rope_of(self.config, layer)
        half = x.shape[-1] // 2
        inverse = theta ** -(torch.arange(half).double() / half)
        angles = torch.arange(len(x)).double()[:, None] / factor * inverse
        a, b = x[:, :half], x[:, half:]
        return torch.cat((a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), -1)

    def _mlp(self, layer: int, x: Tensor) -> Tensor:
        at = f"model.layers.{layer}."
        x = self._norm(x, at + "pre_feedforward_layernorm.weight")
        gate, up = (x @ self.weights[f"{at}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        active = torch.nn.functional.gelu(gate, approximate="tanh")
        if self.relp:
            active = gate * (active / gate).detach()
        product = active * up
        if self.relp:
            product = product / 2 + product.detach() / 2
        return self._norm(product @ self.weights[at + "mlp.down_proj.weight"].T, at + "post_feedforward_layernorm.weight")
