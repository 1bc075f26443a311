"""GemmaConfig: the shape of a Gemma 2 model, in this package's own terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gemmascope.arguments import is_number, is_whole, short_repr
from gemmascope.errors import ConfigError

Kind = Literal["local", "global"]

_KINDS: dict[str, Kind] = {"sliding_attention": "local", "full_attention": "global"}

# What transformers' Gemma2Config assumes for a field that config.json leaves out.
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256,
    "max_position_embeddings": 8192, "sliding_window": 4096, "rms_norm_eps": 1e-6,
    "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "bos_token_id": 2, "eos_token_id": 1,
    "hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "tie_word_embeddings": True,
}  # fmt: skip


# The names of GemmaConfig's fields in config.json.
_JSON_NAMES = {
    "d_model": "hidden_size", "n_heads": "num_attention_heads", "n_kv_heads": "num_key_value_heads", "d_head": "head_dim",
    "d_mlp": "intermediate_size", "vocab_size": "vocab_size", "window": "sliding_window",
    "context": "max_position_embeddings", "query_scalar": "query_pre_attn_scalar", "norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta", "attn_cap": "attn_logit_softcapping", "final_cap": "final_logit_softcapping",
    "bos_id": "bos_token_id", "eos_ids": "eos_token_id",
}  # fmt: skip

# Far beyond any Gemma. A larger value means a damaged file, and is refused before anything of that size is allocated.
_MOST = {
    "d_model": 2**20, "n_heads": 2**14, "n_kv_heads": 2**14, "d_head": 2**16, "d_mlp": 2**24, "vocab_size": 2**28,
    "window": 2**48, "context": 2**48, "query_scalar": 2.0**24, "attn_cap": 1e9, "final_cap": 1e9, "norm_eps": 1e3,
    "rope_theta": 1e12,
}  # fmt: skip
_LEAST = {"query_scalar": 1e-6, "attn_cap": 1e-6, "final_cap": 1e-6, "rope_theta": 1e-6}
MOST_LAYERS = 4096


@dataclass(frozen=True)
class GemmaConfig:
    """The shape of a Gemma 2 model. `model.config` is one.

    Attributes:
        d_model: Width of the residual stream.
        n_heads: Query heads in a layer.
        n_kv_heads: Key-value heads in a layer; each serves n_heads // n_kv_heads query heads.
        d_head: Width of a head.
        d_mlp: Neurons in a layer's MLP.
        vocab_size: Tokens in the vocabulary.
        kinds: "local" or "global" for each layer. A query of a local layer sees the latest `window` keys, its own included.
        window: The width of local attention, in positions.
        context: The longest prompt, in positions.
        query_scalar: Attention scores are divided by its square root.
        attn_cap: The soft cap on attention scores; None for no cap.
        final_cap: The soft cap on logits; None for no cap.
        norm_eps: What an RMSNorm adds to the mean square.
        rope_theta: The base of RoPE's frequencies.
        bos_id: The id of the token that begins every prompt.
        eos_ids: The ids of the tokens that end a generated text.

    Raises:
        ConfigError: A field is not a positive number of a plausible size, or the fields do not fit together.

    References:
        Gemma Team (2024), "Gemma 2: Improving Open Language Models at a Practical Size", arXiv:2408.00118.

    Examples:
        >>> config = gs.load("nano").config
        >>> config.n_layers, config.d_model, config.n_heads, config.n_kv_heads
        (6, 128, 4, 2)
        >>> config.kinds[:2]
        ('local', 'global')
    """

    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_mlp: int
    vocab_size: int
    kinds: tuple[Kind, ...]
    window: int
    context: int
    query_scalar: float
    attn_cap: float | None = 50.0
    final_cap: float | None = 30.0
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    bos_id: int = 2
    eos_ids: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        for name in ("d_model", "n_heads", "n_kv_heads", "d_head", "d_mlp", "vocab_size", "window", "context"):
            _require(name, getattr(self, name), int, "a whole number above 0")
        for name in ("query_scalar", "norm_eps", "rope_theta"):
            _require(name, getattr(self, name), (int, float), "a number above 0")
        for name in ("attn_cap", "final_cap"):
            if getattr(self, name) is not None:
                _require(name, getattr(self, name), (int, float), "a number above 0, or None for no cap")
        for token_id in (self.bos_id, *self.eos_ids):
            if isinstance(token_id, bool) or not isinstance(token_id, int) or token_id < 0:
                raise ConfigError(f"bos_id and eos_ids are token ids; given {short_repr(token_id)}")
            if token_id > _MOST["vocab_size"]:
                raise ConfigError(f"bos_id and eos_ids are token ids of a vocabulary; given {short_repr(token_id)}")
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(f"{self.n_heads} query heads cannot be shared out evenly to {self.n_kv_heads} kv heads")
        if self.d_head % 2:
            raise ConfigError(f"RoPE rotates pairs, so d_head must be even; given {self.d_head}")
        if not self.kinds or set(self.kinds) - {"local", "global"}:
            raise ConfigError(
                f"every layer is 'local' or 'global', and there is at least one; given {short_repr(self.kinds)}"
            )
        if len(self.kinds) > MOST_LAYERS:
            raise ConfigError(f"a model has at most {MOST_LAYERS} layers; given {len(self.kinds):,}")

    @property
    def n_layers(self) -> int:
        """How many layers the model has."""
        return len(self.kinds)

    @property
    def heads_per_kv(self) -> int:
        """How many query heads share a key-value head."""
        return self.n_heads // self.n_kv_heads

    @property
    def n_params(self) -> int:
        """Number of parameters. The embedding, which is also the unembedding, counts once."""
        attention = self.d_model * self.d_head * (2 * self.n_heads + 2 * self.n_kv_heads)
        layer = attention + 3 * self.d_model * self.d_mlp + 4 * self.d_model
        return self.vocab_size * self.d_model + self.n_layers * layer + self.d_model

    def size_of(self, axis: str, n_pos: int) -> int:
        """Length of a site's axis.

        Args:
            axis: The axis's name, such as "head" or "d_model".
            n_pos: Positions of the run.
        """
        sizes = {"pos": n_pos, "q_pos": n_pos, "k_pos": n_pos, "head": self.n_heads, "kv_head": self.n_kv_heads,
                 "d_head": self.d_head, "d_model": self.d_model, "d_mlp": self.d_mlp, "vocab": self.vocab_size}  # fmt: skip
        return sizes[axis]

    def window_of(self, layer: int) -> int | None:
        """How many keys a query of a layer sees, its own included; None for a global layer, where it sees all.

        Args:
            layer: The layer's number, counted from 0.
        """
        return self.window if self.kinds[layer] == "local" else None

    @classmethod
    def from_dict(cls, given: Mapping[str, object]) -> GemmaConfig:
        """A config from the content of a config.json, as transformers 4 or 5 writes it.

        Args:
            given: The JSON object. Fields it leaves out take transformers' defaults for Gemma 2.

        Raises:
            ConfigError: The file describes another architecture, or a Gemma 2 that this package cannot run.
        """
        model_type = given.get("model_type")
        if model_type != "gemma2":
            architectures = [str(name)[:80] for name in _as_tuple(given.get("architectures"))[:5]]
            names = ", ".join(architectures) or "no architecture named"
            raise ConfigError(
                f"this is not a Gemma 2 checkpoint: model_type is {short_repr(model_type)} ({names}), not "
                f"'gemma2'{_inner(given)}"
            )
        c: dict[str, Any] = {**_DEFAULTS, **given}
        try:
            _refuse_variants(c)
            values: dict[str, Any] = {name: c.get(json_name) for name, json_name in _JSON_NAMES.items()}
            if values["d_head"] is None:
                values["d_head"] = c["hidden_size"] // c["num_attention_heads"]
            values["rope_theta"] = _rope_theta(c)
            values["bos_id"] = 2 if values["bos_id"] is None else values["bos_id"]
            values["eos_ids"] = _as_tuple(values["eos_ids"])
            return cls(**values, kinds=_kinds(c))
        except ConfigError as error:
            raise ConfigError(_with_json_name(str(error))) from None
        except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise ConfigError(f"the config holds a value of the wrong type: {error}") from error

    def to_dict(self) -> dict[str, object]:
        """The content of a config.json of transformers for this shape."""
        names = {kind: name for name, kind in _KINDS.items()}
        return {
            "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2",
            **{json_name: getattr(self, name) for name, json_name in _JSON_NAMES.items()},
            "num_hidden_layers": self.n_layers, "layer_types": [names[kind] for kind in self.kinds],
            "hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "tie_word_embeddings": True,
            "eos_token_id": self.eos_ids[0] if len(self.eos_ids) == 1 else list(self.eos_ids), "pad_token_id": 0,
        }  # fmt: skip


def _require(name: str, value: object, kind: type[int | float] | tuple[type[int | float], ...], what: str) -> None:
    amount = value if isinstance(value, kind) and not isinstance(value, bool) else 0
    if not amount > 0:
        raise ConfigError(f"{name} must be {what}; given {short_repr(value)}")
    if amount < _LEAST.get(name, 0):
        raise ConfigError(f"{name} must be at least {_LEAST[name]}; given {short_repr(value)}")
    if amount > _MOST[name]:
        raise ConfigError(f"{name} must be at most {_MOST[name]:,}; given {short_repr(value)}")


def _with_json_name(message: str) -> str:
    """An error message that begins with a field's name, with the field's name in config.json in front."""
    name = message.split(" ", 1)[0]
    json_name = "bos_token_id or eos_token_id" if name == "bos_id" else _JSON_NAMES.get(name, name)
    return message if json_name == name else f"{json_name}: {message}"


def _kinds(c: Mapping[str, object]) -> tuple[Kind, ...]:
    n_layers, types = c["num_hidden_layers"], c.get("layer_types")
    if not is_whole(n_layers):
        raise ConfigError(f"num_hidden_layers: the config holds a value of the wrong type: {short_repr(n_layers)}")
    n_layers = int(n_layers)
    if n_layers > MOST_LAYERS:
        raise ConfigError(f"num_hidden_layers: a model has at most {MOST_LAYERS} layers; given {short_repr(n_layers)}")
    if types is None:  # configs written before transformers 4.53 do not list them: even layers slide
        types = ["sliding_attention" if layer % 2 == 0 else "full_attention" for layer in range(n_layers)]
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


def _rope_theta(c: Mapping[str, object]) -> float:
    candidates = (_rope(c).get("rope_theta"), c.get("rope_theta"), 10000.0)
    value = next(theta for theta in candidates if theta is not None)
    if not is_number(value):
        raise ConfigError(f"rope_theta must be a number above 0; given {short_repr(value)}")
    return float(value)


def _refuse_variants(c: Mapping[str, object]) -> None:
    rope_type = _rope(c).get("rope_type", _rope(c).get("type", "default"))
    activation = c["hidden_activation"] or c.get("hidden_act")
    checks = {
        f"hidden_activation {short_repr(activation)} (Gemma 2 has 'gelu_pytorch_tanh')": activation == "gelu_pytorch_tanh",
        "attention_bias true (Gemma 2 has none)": not c["attention_bias"],
        "tie_word_embeddings false (Gemma 2 unembeds with its embedding)": c["tie_word_embeddings"] is True,
        f"RoPE of type {short_repr(rope_type)} (Gemma 2 has 'default')": rope_type == "default",
        "RoPE that differs between layers (Gemma 2 has one)": not any(isinstance(v, Mapping) for v in _rope(c).values()),
        "RoPE of a part of each head (Gemma 2 turns all of it)": _rope(c).get("partial_rotary_factor", 1) == 1,
        "use_bidirectional_attention (Gemma 2 is causal)": not c.get("use_bidirectional_attention"),
    }
    if wrong := [name for name, fine in checks.items() if not fine]:
        raise ConfigError(f"this model is of type 'gemma2' but differs from Gemma 2: {'; '.join(wrong)}")


def _inner(content: Mapping[str, object]) -> str:
    """Advice for a model that contains a Gemma 2, such as PaliGemma 2; empty for any other."""
    inner = content.get("text_config")
    if not isinstance(inner, Mapping) or inner.get("model_type") != "gemma2":
        return ""
    return (
        ". Its text model is a Gemma 2: load it whole with transformers, save that part with "
        "model.language_model.save_pretrained(folder), and load the folder"
    )


def _as_tuple(value: object) -> tuple[object, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _preset(n_layers: int, d_model: int, heads: tuple[int, int], d_head: int, d_mlp: int, query_scalar: int) -> GemmaConfig:
    kinds: tuple[Kind, ...] = tuple("local" if layer % 2 == 0 else "global" for layer in range(n_layers))
    return GemmaConfig(d_model, *heads, d_head, d_mlp, 256000, kinds, window=4096, context=8192, query_scalar=query_scalar)


PRESETS: dict[str, GemmaConfig] = {
    "2b": _preset(26, 2304, (8, 4), 256, 9216, 256),
    "9b": _preset(42, 3584, (16, 8), 256, 14336, 256),
    "27b": _preset(46, 4608, (32, 16), 128, 36864, 144),
}
