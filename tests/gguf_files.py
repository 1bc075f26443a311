"""GGUF files of small checkpoints, written with the gguf package as llama.cpp's conversion writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from transformers import Gemma2ForCausalLM, Gemma3ForCausalLM

_INNER = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip
_OUTER = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}

Vocabulary = tuple[Sequence[str], Sequence[float], Sequence[int]]


def gguf_name(name: str) -> str:
    """A tensor's name in GGUF files."""
    if name in _OUTER:
        return _OUTER[name]
    _, _, layer, inner = name.split(".", 3)
    return f"blk.{layer}.{_INNER[inner.removesuffix('.weight')]}.weight"


def write_gguf(
    path: Path,
    source: Gemma2ForCausalLM | Gemma3ForCausalLM,
    kind: str = "F32",
    *,
    vocabulary: Vocabulary | None = None,
    extra: Mapping[str, str] | None = None,
    tensors: Mapping[str, np.ndarray[Any, Any]] | None = None,
    architecture: str | None = None,
    split: int = 0,
) -> Path:
    """Write a checkpoint; its matrices in that type, its norms in float32. tensors: more of them. split: most in a part."""
    c = source.config
    name = architecture or ("gemma2" if c.model_type == "gemma2" else "gemma3")
    writer = gguf.GGUFWriter(path, name, split_max_tensors=split)
    writer.add_vocab_size(c.vocab_size)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_sliding_window(c.sliding_window)
    if c.model_type == "gemma2":
        writer.add_attn_logit_softcapping(c.attn_logit_softcapping)
        writer.add_final_logit_softcapping(c.final_logit_softcapping)
    else:
        writer.add_rope_freq_base(c.rope_parameters["full_attention"]["rope_theta"])
        factor = c.rope_parameters["full_attention"].get("factor")
        if factor:
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(factor)
    if vocabulary is not None:
        _add_vocabulary(writer, vocabulary)
    for key, value in (extra or {}).items():
        writer.add_string(key, value)
    weights = {gguf_name(n): t.detach().numpy() for n, t in source.state_dict().items() if n != "lm_head.weight"}
    for each, value in {**weights, **(tensors or {})}.items():
        if value.ndim == 1:
            writer.add_tensor(each, value.astype(np.float32) + 1)
        else:
            quantised = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(each, gguf.quants.quantize(value.astype(np.float32), quantised), raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    tokens, scores, types = vocabulary
    writer.add_tokenizer_model("llama")
    writer.add_token_list(list(tokens))
    writer.add_token_scores(list(scores))
    writer.add_token_types(list(types))
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_add_bos_token(True)
