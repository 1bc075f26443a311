"""Gemma 2 and Gemma 3 written out plainly in float64: loops over heads, positions and keys, one number or vector at a time.

The oracle for the sites that transformers does not expose. It was written from the paper and from transformers'
source, shares no code with the package, and is slow on purpose: there is nothing clever in it to be wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from transformers import Gemma2Config, Gemma2ForCausalLM

Array = NDArray[np.float64]
See = Callable[[str, "int | None", Array], Array]


def rope_of(config: Gemma2Config, layer: int) -> tuple[float, float]:
    """The base of RoPE in a layer and what it divides positions by, from where transformers 5 or 4 keeps them."""
    parameters = getattr(config, "rope_parameters", None)
    if config.model_type == "gemma2":
        return float(parameters["rope_theta"] if parameters else config.rope_theta), 1.0
    kind = config.layer_types[layer]
    if parameters:
        return float(parameters[kind]["rope_theta"]), float(parameters[kind].get("factor", 1.0))
    if kind == "sliding_attention":
        return float(config.rope_local_base_freq), 1.0
    return float(config.rope_theta), float((config.rope_scaling or {}).get("factor", 1.0))


class Reference:
    """One checkpoint, evaluated plainly."""

    def __init__(self, checkpoint: Gemma2ForCausalLM) -> None:
        self.config = checkpoint.config
        self.weights = {name: t.detach().double().cpu().numpy() for name, t in checkpoint.state_dict().items()}

    def run(self, ids: Sequence[int], change: See | None = None) -> dict[tuple[str, int | None], Array]:
        """Every site of a prompt, by (site, layer). change(site, layer, value): the value to go on with instead."""
        values: dict[tuple[str, int | None], Array] = {}

        def record(site: str, layer: int | None, value: Array) -> Array:
            value = value if change is None else change(site, layer, value.copy())
            values[site, layer] = value
            return value

        d_model = self.config.hidden_size
        embedding = self.weights["model.embed_tokens.weight"]
        stream = record("embed", None, np.stack([embedding[i] * math.sqrt(d_model) for i in ids]))
        for layer in range(self.config.num_hidden_layers):
            stream = self._layer(layer, stream, lambda site, value, layer=layer: record(site, layer, value))
        final = record(
            "final", None, self._norm(stream, "model.norm.weight", record("final_scale", None, self._scale(stream)))
        )
        raw = record("logits_raw", None, np.stack([embedding @ row for row in final]))
        record("logits", None, cap(raw, self.config.final_logit_softcapping))
        return values

    def _layer(self, layer: int, stream: Array, see: Callable[[str, Array], Array]) -> Array:
        at = f"model.layers.{layer}."
        stream = see("resid_pre", stream)
        scale = see("attn_in_scale", self._scale(stream))
        x = see("attn_in", self._norm(stream, at + "input_layernorm.weight", scale))
        joins = self._attention(layer, x, see)
        stream = see("resid_mid", stream + see("attn_out", joins))
        scale = see("mlp_in_scale", self._scale(stream))
        x = see("mlp_in", self._norm(stream, at + "pre_feedforward_layernorm.weight", scale))
        gate = see("mlp_gate", x @ self.weights[at + "mlp.gate_proj.weight"].T)
        up = see("mlp_up", x @ self.weights[at + "mlp.up_proj.weight"].T)
        neurons = see("mlp_act", gelu(gate) * up)
        raw = see("mlp_raw", neurons @ self.weights[at + "mlp.down_proj.weight"].T)
        scale = see("mlp_out_scale", self._scale(raw))
        joins = see("mlp_out", self._norm(raw, at + "post_feedforward_layernorm.weight", scale))
        return see("resid_post", stream + joins)

    def _attention(self, layer: int, x: Array, see: Callable[[str, Array], Array]) -> Array:
        c, at = self.config, f"model.layers.{layer}."
        n_pos, d_head, n_heads, n_kv = len(x), c.head_dim, c.num_attention_heads, c.num_key_value_heads
        shared_by = n_heads // n_kv
        q = see("q_raw", self._heads(x, at + "self_attn.q_proj.weight", n_heads))
        k = see("k_raw", self._heads(x, at + "self_attn.k_proj.weight", n_kv))
        v = see("v", self._heads(x, at + "self_attn.v_proj.weight", n_kv))
        if c.model_type != "gemma2":
            q = np.stack([self._norm(row, at + "self_attn.q_norm.weight", self._scale(row)) for row in q])
            k = np.stack([self._norm(row, at + "self_attn.k_norm.weight", self._scale(row)) for row in k])
        q, k = see("q", q), see("k", k)
        q_rot = see("q_rot", self._rotated(q, layer))
        k_rot = see("k_rot", self._rotated(k, layer))

        scores = np.zeros((n_heads, n_pos, n_pos))
        for head in range(n_heads):
            for i in range(n_pos):
                for j in range(n_pos):
                    dot = np.dot(q_rot[i, head], k_rot[j, head // shared_by])
                    scores[head, i, j] = dot / math.sqrt(c.query_pre_attn_scalar)
        scores = see("scores", scores)
        capped = see("scores_capped", cap(scores, c.attn_logit_softcapping))

        pattern = np.zeros((n_heads, n_pos, n_pos))
        for head in range(n_heads):
            for i in range(n_pos):
                first = 0
                if c.layer_types[layer] == "sliding_attention":
                    first = max(0, i - c.sliding_window + 1)
                pattern[head, i, first : i + 1] = softmax(capped[head, i, first : i + 1])
        pattern = see("pattern", pattern)

        z = np.zeros((n_pos, n_heads, d_head))
        for head in range(n_heads):
            for i in range(n_pos):
                for j in range(n_pos):
                    z[i, head] += pattern[head, i, j] * v[j, head // shared_by]
        z = see("z", z)
        return self._joined(layer, z, see)

    def _joined(self, layer: int, z: Array, see: Callable[[str, Array], Array]) -> Array:
        """What attention adds to the stream, and each head's part of it."""
        at = f"model.layers.{layer}."
        n_pos, n_heads, d_head = z.shape
        w_o = self.weights[at + "self_attn.o_proj.weight"]
        by_head = np.zeros((n_pos, n_heads, len(w_o)))
        for head in range(n_heads):
            by_head[:, head] = z[:, head] @ w_o[:, head * d_head : (head + 1) * d_head].T
        raw = see("attn_raw", by_head.sum(axis=1))
        gain = 1.0 + self.weights[at + "post_attention_layernorm.weight"]
        scale = see("attn_out_scale", self._scale(raw))
        for i in range(n_pos):
            by_head[i] *= gain / scale[i]
        written = see("head_out", by_head)
        return self._norm(raw, at + "post_attention_layernorm.weight", scale) + (written - by_head).sum(axis=1)

    def _heads(self, x: Array, name: str, n_heads: int) -> Array:
        return (x @ self.weights[name].T).reshape(len(x), n_heads, self.config.head_dim)

    def _scale(self, x: Array) -> Array:
        return np.array([math.sqrt(np.mean(row**2) + self.config.rms_norm_eps) for row in x])

    def _norm(self, x: Array, name: str, scale: Array) -> Array:
        return np.stack([row / by * (1.0 + self.weights[name]) for row, by in zip(x, scale, strict=True)])

    def _rotated(self, x: Array, layer: int) -> Array:
        """Each pair (i, i + half) turned by position / theta ** (2 i / d_head)."""
        half, (theta, factor) = self.config.head_dim // 2, rope_of(self.config, layer)
        turned = np.zeros_like(x)
        for position in range(len(x)):
            for i in range(half):
                angle = position / factor / theta ** (2 * i / self.config.head_dim)
                a, b = x[position, :, i], x[position, :, i + half]
                turned[position, :, i] = a * math.cos(angle) - b * math.sin(angle)
                turned[position, :, i + half] = b * math.cos(angle) + a * math.sin(angle)
        return turned


def error(ours: ArrayLike, oracle: ArrayLike) -> float:
    """The largest absolute difference as a fraction of the oracle's largest absolute value."""
    ours, oracle = np.asarray(ours, np.float64), np.asarray(oracle, np.float64)
    assert ours.shape == oracle.shape
    return float(np.abs(ours - oracle).max() / np.abs(oracle).max())


def cap(x: Array, at: float | None) -> Array:
    return x if at is None else at * np.tanh(x / at)


def softmax(x: Array) -> Array:
    powers = np.exp(x - x.max())
    return powers / powers.sum()


def gelu(x: Array) -> Array:
    """The tanh form, which Gemma was trained with."""
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
