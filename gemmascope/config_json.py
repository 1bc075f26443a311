"""What a config.json says about a Gemma, in the terms of GemmaConfig; and the other way round."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gemmascope.arguments import is_number, is_whole, short_repr
from gemmascope.errors import ConfigError

Kind = Literal["local", "global"]

_KINDS: dict[str, Kind] = {"sliding_attention": "local", "full_attention": "global"}
MOST_LAYERS = 4096

# The names of GemmaConfig's fields in config.json.
JSON_NAMES = {
    "d_model": "hidden_size", "n_heads": "num_attention_heads", "n_kv_heads": "num_key_value_heads", "d_head": "head_dim",
    "d_mlp": "intermediate_size", "vocab_size": "vocab_size", "window": "sliding_window",
    "context": "max_position_embeddings", "query_scalar": "query_pre_attn_scalar", "norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta", "attn_cap": "attn_logit_softcapping", "final_cap": "final_logit_softcapping",
    "bos_id": "bos_token_id", "eos_ids": "eos_token_id",
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """A generation of Gemma.

    name: as people write it. model_type: in config.json. architecture: its class in transformers. gguf: its
    architecture in GGUF files. period: every so many layers the last one is global. defaults: what transformers'
    configuration class assumes for a field that config.json leaves out; rope_theta is that of the global layers, and of
    all layers without rope_local_base_freq.
    """

    name: str
    model_type: str
    architecture: str
    gguf: str
    period: int
    defaults: Mapping[str, Any]


_COMMON: dict[str, Any] = {
    "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 4096, "rms_norm_eps": 1e-6,
    "bos_token_id": 2, "eos_token_id": 1, "hidden_activation": "gelu_pytorch_tanh", "attention_bias": False,
    "tie_word_embeddings": True,
}  # fmt: skip

GEMMA_2 = Family("Gemma 2", "gemma2", "Gemma2ForCausalLM", "gemma2", 2, {
    **_COMMON, "vocab_size": 256000, "max_position_embeddings": 8192, "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0, "rope_theta": 10000.0,
})  # fmt: skip
GEMMA_3 = Family("Gemma 3", "gemma3_text", "Gemma3ForCausalLM", "gemma3", 6, {
    **_COMMON, "vocab_size": 262208, "max_position_embeddings": 131072, "attn_logit_softcapping": None,
    "final_logit_softcapping": None, "rope_theta": 1e6, "rope_local_base_freq": 10000.0,
})  # fmt: skip
FAMILIES = {family.model_type: family for family in (GEMMA_2, GEMMA_3)}
GGUF_FAMILIES = {family.gguf: family for family in FAMILIES.values()}
# The model_type of a Gemma 3 with a vision tower, whose text model is in text_config, and its class in transformers.
MULTIMODAL, MULTIMODAL_ARCHITECTURE = "gemma3", "Gemma3ForConditionalGeneration"

# Relatives of other architectures, by their model_type in config.json.
_RELATIVES = {
    "gemma": "Gemma 1", "gemma3n": "Gemma 3n", "gemma4": "Gemma 4", "gemma4_assistant": "Gemma 4",
    "gemma4_unified": "Gemma 4", "gemma4_unified_assistant": "Gemma 4", "diffusion_gemma": "DiffusionGemma",
    "recurrent_gemma": "RecurrentGemma", "paligemma": "PaliGemma", "shieldgemma2": "ShieldGemma 2", "t5gemma": "T5Gemma",
    "t5_gemma_module": "T5Gemma", "t5gemma2": "T5Gemma 2", "t5gemma2_encoder": "T5Gemma 2",
    "t5gemma2_decoder": "T5Gemma 2", "vaultgemma": "VaultGemma", "embeddinggemma": "EmbeddingGemma",
    "embedding_gemma2": "EmbeddingGemma 2",
}  # fmt: skip
# The same by the names of their repositories.
_RELATIVES_BY_NAME = {
    r"(code)?gemma(-1\.1)?-[27]b": "Gemma 1", r"gemma-?3n": "Gemma 3n", r"diffusion-?gemma": "DiffusionGemma",
    r"recurrentgemma": "RecurrentGemma", r"paligemma2?": "PaliGemma", r"shieldgemma-2-4b": "ShieldGemma 2",
    r"t5gemma2?": "T5Gemma", r"vaultgemma": "VaultGemma", r"embeddinggemma": "EmbeddingGemma",
}  # fmt: skip
# The parts of a relative that have a model_type of their own, behind its name.
_PARTS = ("_text", "_vision", "_audio")


def fields_of(given: Mapping[str, object]) -> dict[str, Any]:
    """The fields of GemmaConfig that the content of a config.json describes.

    Raises:
        ConfigError: It describes another architecture, or a Gemma that this package cannot run.
    """
    given = text_part(given)
    family = _family(given)
    c: dict[str, Any] = {**family.defaults, **given}
    _refuse_variants(c, family)
    values: dict[str, Any] = {name: c.get(json_name) for name, json_name in JSON_NAMES.items()}
    if values["d_head"] is None:
        values["d_head"] = c["hidden_size"] // c["num_attention_heads"]
    if family is GEMMA_3:
        values["qk_norms"] = True
    values |= _ropes(given, family)
    values["bos_id"] = 2 if values["bos_id"] is None else values["bos_id"]
    values["eos_ids"] = as_tuple(values["eos_ids"])
    values["kinds"] = _kinds(c, family)
    return values


def text_part(given: Mapping[str, object]) -> Mapping[str, object]:
    """The configuration of the text model in that of a multimodal Gemma 3; any other configuration as it is.

    Tokens that the whole configuration names, such as those that end a chat, come first.
    """
    inner = given.get("text_config")
    if given.get("model_type") != MULTIMODAL or not isinstance(inner, Mapping):
        return given
    outer = {name: given[name] for name in ("bos_token_id", "eos_token_id") if given.get(name) is not None}
    return {"model_type": GEMMA_3.model_type, **inner, **outer}


def content_of(fields: Mapping[str, Any], kinds: Sequence[Kind]) -> dict[str, object]:
    """The content of a config.json of transformers for the fields of a GemmaConfig."""
    family = GEMMA_3 if fields["qk_norms"] else GEMMA_2
    names = {kind: name for name, kind in _KINDS.items()}
    eos_ids = fields["eos_ids"]
    content = {
        "architectures": [family.architecture], "model_type": family.model_type,
        **{json_name: fields[name] for name, json_name in JSON_NAMES.items()},
        "num_hidden_layers": len(kinds), "layer_types": [names[kind] for kind in kinds],
        "hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "tie_word_embeddings": True,
        "eos_token_id": eos_ids[0] if len(eos_ids) == 1 else list(eos_ids), "pad_token_id": 0,
    }  # fmt: skip
    if family is GEMMA_3:
        local, factor = fields["rope_theta_local"], fields["rope_factor"]
        content["rope_local_base_freq"] = fields["rope_theta"] if local is None else local
        content["rope_scaling"] = None if factor == 1 else {"rope_type": "linear", "factor": factor}
    return content


def _family(given: Mapping[str, object]) -> Family:
    model_type = given.get("model_type")
    if isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    architectures = [str(name)[:80] for name in as_tuple(given.get("architectures"))[:5]]
    names = ", ".join(architectures) or "no architecture named"
    relative = relative_of(model_type, architectures)
    kind = f", which is {relative}" if relative else ""
    raise ConfigError(
        f"this is not a Gemma 2 checkpoint, nor one of Gemma 3: model_type is {short_repr(model_type)}{kind} ({names}), not "
        f"'gemma2' or 'gemma3_text'{_inner(given)}"
    )


def relative_of(model_type: object, architectures: Sequence[str] = ()) -> str | None:
    """The name of a relative of Gemma 2 and 3, such as "Gemma 1", by its model_type or else its classes in transformers."""
    name = model_type if isinstance(model_type, str) else ""
    for part in _PARTS:
        name = name.removesuffix(part)
    if name in _RELATIVES:
        return _RELATIVES[name]
    by_class = {key.replace("_", ""): relative for key, relative in _RELATIVES.items()}
    stems = (re.split("For|Model|Text", each)[0].lower() for each in architectures)
    return next((by_class[stem] for stem in stems if stem in by_class), None)


def relative_named(repo: str) -> str | None:
    """The name of the relative of Gemma 2 and 3 that a repository holds, by the repository's name."""
    name = repo.split("/")[-1].lower()
    return next((relative for pattern, relative in _RELATIVES_BY_NAME.items() if re.match(pattern + r"\b", name)), None)


def _inner(content: Mapping[str, object]) -> str:
    """Advice for a model that contains a Gemma 2, such as PaliGemma 2; empty for any other."""
    inner = content.get("text_config")
    if not isinstance(inner, Mapping) or inner.get("model_type") != "gemma2":
        return ""
    return (
        ". Its text model is a Gemma 2: load it whole with transformers, save that part with "
        "model.language_model.save_pretrained(folder), and load the folder"
    )


def _kinds(c: Mapping[str, object], family: Family) -> tuple[Kind, ...]:
    n_layers, types = c["num_hidden_layers"], c.get("layer_types")
    if not is_whole(n_layers):
        raise ConfigError(f"num_hidden_layers: the config holds a value of the wrong type: {short_repr(n_layers)}")
    n_layers = int(n_layers)
    if n_layers > MOST_LAYERS:
        raise ConfigError(f"num_hidden_layers: a model has at most {MOST_LAYERS} layers; given {short_repr(n_layers)}")
    if types is None:  # configs written before transformers 4.53 do not list them
        period = c.get("sliding_window_pattern") or family.period
        if not is_whole(period) or int(period) < 1:
            raise ConfigError(f"sliding_window_pattern must be a whole number above 0; given {short_repr(period)}")
        types = ["full_attention" if (layer + 1) % int(period) == 0 else "sliding_attention" for layer in range(n_layers)]
    if not isinstance(types, (list, tuple)):
        raise ConfigError(f"layer_types: the config holds a value of the wrong type: {short_repr(types)}")
    if unknown := {str(name) for name in types if not isinstance(name, str) or name not in _KINDS}:
        raise ConfigError(f"layer_types holds {short_repr(sorted(unknown))}; known are {sorted(_KINDS)}")
    if len(types) != n_layers:
        raise ConfigError(f"layer_types lists {len(types)} layers and num_hidden_layers is {n_layers}")
    return tuple(_KINDS[name] for name in types)


def _rope(c: Mapping[str, object]) -> Mapping[str, object]:
    """RoPE's own fields: transformers 5 writes rope_parameters, transformers 4 rope_theta and rope_scaling."""
    fields = c.get("rope_parameters") or c.get("rope_scaling") or {}
    if not isinstance(fields, Mapping):
        raise ConfigError(f"rope_parameters: the config holds a value of the wrong type: {short_repr(fields)}")
    return fields


def _rope_of_kind(given: Mapping[str, object], family: Family, layer_type: str) -> dict[str, object]:
    """RoPE's fields for one kind of layer. Raises ConfigError for a field that the family does not have."""
    nested = any(name in _rope(given) for name in _KINDS)
    fields = _rope(given).get(layer_type) or {} if nested else _rope(given)
    if not isinstance(fields, Mapping):
        raise ConfigError(f"rope_parameters: the config holds a value of the wrong type: {short_repr(fields)}")
    if family is GEMMA_3 and layer_type == "sliding_attention":
        theta = given.get("rope_local_base_freq", family.defaults["rope_local_base_freq"])
        return {"rope_theta": theta, **(fields if nested else {})}
    theta = given.get("rope_theta")
    stated = {name: value for name, value in fields.items() if value is not None}
    return {"rope_theta": family.defaults["rope_theta"] if theta is None else theta, **stated}


def _ropes(given: Mapping[str, object], family: Family) -> dict[str, float]:
    """rope_theta, and for Gemma 3 rope_theta_local and rope_factor."""
    fields = _rope_of_kind(given, family, "full_attention")
    ropes = {"rope_theta": _number(fields["rope_theta"], "rope_theta")}
    if family is GEMMA_3:
        local = _rope_of_kind(given, family, "sliding_attention")
        ropes["rope_theta_local"] = _number(local["rope_theta"], "rope_local_base_freq")
        ropes["rope_factor"] = _number(fields.get("factor", 1.0), "factor")
    return ropes


def _number(value: object, name: str) -> float:
    if not is_number(value):
        raise ConfigError(f"{name} must be a number above 0; given {short_repr(value)}")
    return float(value)


def _refuse_variants(c: Mapping[str, Any], family: Family) -> None:
    activation, has = c["hidden_activation"] or c.get("hidden_act"), f"({family.name} has"
    checks = {
        f"hidden_activation {short_repr(activation)} {has} 'gelu_pytorch_tanh')": activation == "gelu_pytorch_tanh",
        f"attention_bias true {has} none)": not c["attention_bias"],
        f"tie_word_embeddings false ({family.name} unembeds with its embedding)": c["tie_word_embeddings"] is True,
        **_rope_checks(c, family),
        f"use_bidirectional_attention ({family.name} is causal; EmbeddingGemma is not)": (
            not c.get("use_bidirectional_attention")
        ),
    }
    if family is GEMMA_2:
        checks |= {
            f"{name} (Gemma 2 has no norms of queries and keys)": not c.get(name) for name in ("use_qk_norm", "qk_norm")
        }
    if wrong := [name for name, fine in checks.items() if not fine]:
        raise ConfigError(f"this model is of type {family.model_type!r} but differs from {family.name}: {'; '.join(wrong)}")


def _rope_checks(c: Mapping[str, Any], family: Family) -> dict[str, bool]:
    """For each way in which RoPE may differ from the family's: whether it does not."""
    part = f"RoPE of a part of each head ({family.name} turns all of it)"
    if family is GEMMA_2:
        rope_type = _rope(c).get("rope_type", _rope(c).get("type", "default"))
        return {
            f"RoPE of type {short_repr(rope_type)} (Gemma 2 has 'default')": rope_type == "default",
            "RoPE that differs between layers (Gemma 2 has one)": not any(isinstance(v, Mapping) for v in _rope(c).values()),
            part: _rope(c).get("partial_rotary_factor", 1) == 1,
        }
    checks = {}
    for layer_type, known in (("sliding_attention", ("default",)), ("full_attention", ("default", "linear"))):
        fields = _rope_of_kind(c, family, layer_type)
        rope_type = fields.get("rope_type", fields.get("type", "default"))
        text = " or ".join(map(repr, known))
        checks[f"RoPE of type {short_repr(rope_type)} in {layer_type} (Gemma 3 has {text})"] = rope_type in known
        checks[part] = checks.get(part, True) and fields.get("partial_rotary_factor", 1) == 1
    return checks


def as_tuple(value: object) -> tuple[object, ...]:
    """A value of a config.json that may be one or a list."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)
