"""GemmaConfig: read from configs of transformers 4 and 5; other architectures are refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
from checkpoints import checkpoint, config_of
from transformers import Gemma2Config, Gemma3TextConfig

from gemmascope.config import PRESETS, GemmaConfig
from gemmascope.errors import ConfigError

TINY = GemmaConfig(
    d_model=32, n_heads=4, n_kv_heads=2, d_head=12, d_mlp=48, vocab_size=61, kinds=("local", "global", "global"), window=4,
    context=64, query_scalar=20, norm_eps=1e-5, rope_theta=500.0, eos_ids=(1, 7),
)  # fmt: skip


@pytest.mark.parametrize("config", [TINY, *PRESETS.values()], ids=["tiny", *PRESETS])
def test_a_config_comes_back_from_its_dict_and_through_transformers(config: GemmaConfig) -> None:
    assert GemmaConfig.from_dict(config.to_dict()) == config
    kind = Gemma3TextConfig if config.qk_norms else Gemma2Config
    theirs = kind(**{k: v for k, v in config.to_dict().items() if k not in ("model_type", "architectures")})
    assert GemmaConfig.from_dict(theirs.to_dict()) == config


def test_the_defaults_are_those_of_transformers() -> None:
    assert GemmaConfig.from_dict({"model_type": "gemma2"}) == GemmaConfig.from_dict(Gemma2Config().to_dict())


@pytest.mark.parametrize(("size", "n_params"), [("2b", 2_614_341_888), ("9b", 9_241_705_984), ("27b", 27_227_128_320)])
def test_parameters_of_the_released_sizes(size: str, n_params: int) -> None:
    assert PRESETS[size].n_params == n_params


@pytest.mark.parametrize("kinds", ["l", "lg", "ggl"])
def test_parameters_are_counted_as_transformers_counts_them(kinds: str) -> None:
    source = checkpoint(kinds, num_key_value_heads=1)
    assert config_of(source).n_params == source.num_parameters()


def test_layers_alternate_local_and_global_unless_the_config_lists_them() -> None:
    fields = TINY.to_dict()
    del fields["layer_types"]
    assert GemmaConfig.from_dict(fields).kinds == ("local", "global", "local")
    assert [TINY.window_of(layer) for layer in range(3)] == [4, None, None]
    assert TINY.heads_per_kv == 2


@pytest.mark.parametrize(
    ("fields", "theta"),
    [
        ({"rope_theta": 123.0}, 123.0),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}}, 77.0),
        ({"rope_parameters": {"rope_theta": 77.0}, "rope_theta": 5.0}, 77.0),
        ({"rope_scaling": None, "rope_theta": 9.0}, 9.0),
        ({}, 10000.0),
    ],
)
def test_where_the_base_of_rope_is_read_from(fields: dict[str, Any], theta: float) -> None:
    others = {key: value for key, value in TINY.to_dict().items() if key != "rope_theta"}
    assert GemmaConfig.from_dict({**others, **fields}).rope_theta == theta


def test_a_config_may_leave_out_the_head_size_the_caps_and_the_end_tokens() -> None:
    without_sizes = {**TINY.to_dict(), "head_dim": None, "attn_logit_softcapping": None, "final_logit_softcapping": None}
    config = GemmaConfig.from_dict({**without_sizes, "eos_token_id": None, "bos_token_id": None})
    assert (config.d_head, config.attn_cap, config.final_cap) == (8, None, None)
    assert (config.eos_ids, config.bos_id) == ((), 2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "gemma3n", "architectures": ["Gemma3nModel"]}, r"'gemma3n', which is Gemma 3n \(Gemma3nModel\)"),
        ({"model_type": None, "architectures": None}, r"model_type is None \(no architecture named\), not 'gemma2'"),
        ({"model_type": "llama", "architectures": "Llama"}, r"'llama' \(Llama\)"),
        ({"hidden_activation": "relu"}, "differs from Gemma 2: hidden_activation 'relu'"),
        ({"attention_bias": True}, "attention_bias true"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings false"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "RoPE of type 'yarn'"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "RoPE of type 'linear'"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "RoPE that differs between layers"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "RoPE of a part of each head"),
        ({"rope_parameters": "default"}, "the config holds a value of the wrong type"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"layer_types": ["full_attention"]}, "layer_types lists 1 layers and num_hidden_layers is 3"),
        ({"layer_types": ["full", "full", "full"]}, r"layer_types holds \['full'\]; known are \['full_attention', 'slid"),
        ({"layer_types": 3}, "the config holds a value of the wrong type"),
        ({"layer_types": None, "num_hidden_layers": 0}, "there is at least one"),
        ({"layer_types": None, "num_hidden_layers": "3"}, "the config holds a value of the wrong type"),
        ({"hidden_size": "32"}, "d_model must be a whole number above 0; given '32'"),
        ({"hidden_size": 32.5}, "d_model must be a whole number above 0; given 32.5"),
        ({"vocab_size": True}, "vocab_size must be a whole number above 0; given True"),
        ({"head_dim": 7}, "d_head must be even; given 7"),
        ({"head_dim": None, "num_attention_heads": 0}, "the config holds a value of the wrong type"),
        ({"num_key_value_heads": 3}, "4 query heads cannot be shared out evenly to 3 kv heads"),
        ({"sliding_window": None}, "window must be a whole number above 0; given None"),
        ({"query_pre_attn_scalar": math.nan}, "query_scalar must be a number above 0; given nan"),
        ({"attn_logit_softcapping": 0}, "attn_cap must be a number above 0, or None for no cap; given 0"),
        ({"eos_token_id": [1, "two"]}, "bos_id and eos_ids are token ids; given 'two'"),
        ({"bos_token_id": -1}, "bos_id and eos_ids are token ids; given -1"),
    ],
)
def test_a_config_that_is_not_a_gemma_2_is_refused(fields: dict[str, Any], message: str) -> None:
    others = {key: value for key, value in TINY.to_dict().items() if key not in fields}
    with pytest.raises(ConfigError, match=message):
        GemmaConfig.from_dict({**others, **fields})
