"""The shape of a Gemma from the metadata of its GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemmascope.arguments import short_repr
from gemmascope.config import GemmaConfig
from gemmascope.config_json import GGUF_FAMILIES, Kind
from gemmascope.errors import CheckpointError, ConfigError
from gemmascope.tokens.gguf import bos_of

_KNOWN = {
    "gemma": "Gemma 1", "gemma3n": "Gemma 3n", "gemma4": "Gemma 4", "gemma-embedding": "EmbeddingGemma",
    "clip": "a vision tower alone",
}  # fmt: skip
# Files seldom say by what attention scores are divided: in the models of 27B, known by their number of layers, the root of
# d_model / n_heads, in the others that of a head's width.
_SCALED_BY_WIDTH = {"gemma2": 46, "gemma3": 62}


def config_of(metadata: Mapping[str, object], vocab_size: int, path: Path) -> GemmaConfig:
    """The config of the model in a GGUF file.

    Args:
        metadata: The file's metadata.
        vocab_size: Rows of its embedding.
        path: The file, for errors.

    Raises:
        ConfigError: It is of another architecture, or a field is missing or cannot be right.
    """
    architecture = metadata.get("general.architecture")
    if architecture not in GGUF_FAMILIES:
        known = f", which is {_KNOWN[architecture]}" if isinstance(architecture, str) and architecture in _KNOWN else ""
        raise ConfigError(
            f"{path} holds a model of the architecture {short_repr(architecture)}{known}; gemmascope runs "
            f"{' and '.join(map(repr, GGUF_FAMILIES))}"
        )
    try:
        return _config(_Fields(metadata, str(architecture), path), vocab_size)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except TypeError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


class _Fields:
    """The metadata of one architecture."""

    def __init__(self, metadata: Mapping[str, object], architecture: str, path: Path) -> None:
        self.metadata, self.architecture, self.path = metadata, architecture, path

    def get(self, name: str, default: Any = None) -> Any:
        return self.metadata.get(f"{self.architecture}.{name}", default)

    def require(self, name: str) -> Any:
        value = self.get(name)
        if value is None:
            raise ConfigError(f"the file says no {self.architecture}.{name}: fetch it again, or convert the model anew")
        return value


def _config(fields: _Fields, vocab_size: int) -> GemmaConfig:
    is_3, n_layers = fields.architecture == "gemma3", fields.require("block_count")
    d_model, n_heads = fields.require("embedding_length"), fields.require("attention.head_count")
    d_head = fields.get("attention.key_length", 256)
    if (values := fields.get("attention.value_length", d_head)) != d_head:
        raise ConfigError(f"keys are {d_head} wide and values {values}; Gemma's are alike")
    ropes: dict[str, Any] = {"rope_theta": fields.get("rope.freq_base", 1e6 if is_3 else 10000.0)}
    if is_3:
        ropes["rope_theta_local"] = fields.get("rope.freq_base_swa", 10000.0)
        ropes["rope_factor"] = _rope_factor(fields)
    return GemmaConfig(
        d_model=d_model, n_heads=n_heads, n_kv_heads=fields.get("attention.head_count_kv", n_heads), d_head=d_head,
        d_mlp=fields.require("feed_forward_length"), vocab_size=vocab_size, kinds=_kinds(fields, n_layers),
        window=fields.get("attention.sliding_window", 4096), context=fields.require("context_length"),
        query_scalar=_query_scalar(fields, n_layers, d_model / n_heads, d_head),
        attn_cap=fields.get("attn_logit_softcapping", None if is_3 else 50.0),
        final_cap=fields.get("final_logit_softcapping", None if is_3 else 30.0),
        norm_eps=_as_written(fields.get("attention.layer_norm_rms_epsilon", 1e-6)), qk_norms=is_3,
        bos_id=bos_of(fields.metadata), eos_ids=_eos_ids(fields.metadata), **ropes,
    )  # fmt: skip


def _as_written(value: float) -> float:
    """A number that the file holds in float32, as people write it: 1e-06, not 9.999999974752427e-07."""
    return float(f"{value:.7g}")


def _query_scalar(fields: _Fields, n_layers: int, by_width: float, d_head: int) -> float:
    scale = fields.get("attention.scale")
    if scale:
        return _as_written(float(scale) ** -2)
    return by_width if n_layers == _SCALED_BY_WIDTH[fields.architecture] else d_head


def _rope_factor(fields: _Fields) -> float:
    kind = fields.get("rope.scaling.type", "none")
    if kind == "none":
        return 1.0
    if kind != "linear":
        raise ConfigError(f"RoPE is scaled in the way {short_repr(kind)} (Gemma 3 has 'linear', or none)")
    return float(fields.get("rope.scaling.factor", 1.0))


def _kinds(fields: _Fields, n_layers: int) -> tuple[Kind, ...]:
    pattern = fields.get("attention.sliding_window_pattern", GGUF_FAMILIES[fields.architecture].period)
    if isinstance(pattern, list):
        if len(pattern) != n_layers:
            raise ConfigError(f"sliding_window_pattern lists {len(pattern)} layers and block_count is {n_layers}")
        return tuple("local" if slides else "global" for slides in pattern)
    return tuple("local" if (layer + 1) % pattern else "global" for layer in range(min(n_layers, 2**13)))


def _eos_ids(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """The tokens that end a text: `<eos>`, and in a chat the end of a turn."""
    ids = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    tokens = metadata.get("tokenizer.ggml.tokens")
    if "tokenizer.chat_template" in metadata and isinstance(tokens, list) and "<end_of_turn>" in tokens:
        ids.append(tokens.index("<end_of_turn>"))
    return tuple(dict.fromkeys(i for i in ids if i is not None)) or (1,)
