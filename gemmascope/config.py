"""GemmaConfig: the shape of a Gemma 2 or Gemma 3 model, in this package's own terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from gemmascope.arguments import short_repr
from gemmascope.config_json import JSON_NAMES, MOST_LAYERS, Kind, content_of, fields_of
from gemmascope.errors import ConfigError

# Far beyond any Gemma. A larger value means a damaged file, and is refused before anything of that size is allocated.
_MOST = {
    "d_model": 2**20, "n_heads": 2**14, "n_kv_heads": 2**14, "d_head": 2**16, "d_mlp": 2**24, "vocab_size": 2**28,
    "window": 2**48, "context": 2**48, "query_scalar": 2.0**24, "attn_cap": 1e9, "final_cap": 1e9, "norm_eps": 1e3,
    "rope_theta": 1e12, "rope_theta_local": 1e12, "rope_factor": 1e6,
}  # fmt: skip
_LEAST = {
    "query_scalar": 1e-6,
    "attn_cap": 1e-6,
    "final_cap": 1e-6,
    "rope_theta": 1e-6,
    "rope_theta_local": 1e-6,
    "rope_factor": 1e-6,
}


# Fields that a Gemma 2 does not need. A config's text, of which fingerprints are made, has them only where they are set.
_OF_GEMMA_3 = ("qk_norms", "rope_theta_local", "rope_factor")


@dataclass(frozen=True, repr=False)
class GemmaConfig:
    """The shape of a Gemma 2 model, or of the text model of a Gemma 3. `model.config` is one.

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
        rope_theta: The base of RoPE's frequencies; with rope_theta_local, that of global layers.
        bos_id: The id of the token that begins every prompt.
        eos_ids: The ids of the tokens that end a generated text.
        qk_norms: Whether queries and keys are normed before RoPE, each head by itself: Gemma 3's are.
        rope_theta_local: The base of RoPE's frequencies in local layers; None for rope_theta.
        rope_factor: RoPE divides positions by it in global layers.

    Raises:
        ConfigError: A field is not a positive number of a plausible size, or the fields do not fit together.

    References:
        Gemma Team (2024), "Gemma 2: Improving Open Language Models at a Practical Size", arXiv:2408.00118;
        Gemma Team (2025), "Gemma 3 Technical Report", arXiv:2503.19786.

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
    qk_norms: bool = False
    rope_theta_local: float | None = None
    rope_factor: float = 1.0

    def __post_init__(self) -> None:
        for name in ("d_model", "n_heads", "n_kv_heads", "d_head", "d_mlp", "vocab_size", "window", "context"):
            _require(name, getattr(self, name), int, "a whole number above 0")
        for name in ("query_scalar", "norm_eps", "rope_theta", "rope_factor"):
            _require(name, getattr(self, name), (int, float), "a number above 0")
        if self.rope_theta_local is not None:
            _require("rope_theta_local", self.rope_theta_local, (int, float), "a number above 0, or None for rope_theta")
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

    def __repr__(self) -> str:
        shown = [f for f in fields(self) if f.name not in _OF_GEMMA_3 or getattr(self, f.name) != f.default]
        return f"GemmaConfig({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in shown)})"

    @property
    def family(self) -> str:
        """The generation of Gemma that has this shape: "Gemma 2" or "Gemma 3", which norms queries and keys."""
        return "Gemma 3" if self.qk_norms else "Gemma 2"

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
        norms = 4 * self.d_model + (2 * self.d_head if self.qk_norms else 0)
        layer = attention + 3 * self.d_model * self.d_mlp + norms
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

    def rope_of(self, layer: int) -> tuple[float, float]:
        """The base of RoPE's frequencies in a layer, and the factor by which it divides positions.

        Args:
            layer: The layer's number, counted from 0.
        """
        if self.kinds[layer] == "global":
            return self.rope_theta, self.rope_factor
        return (self.rope_theta if self.rope_theta_local is None else self.rope_theta_local), 1.0

    @classmethod
    def from_dict(cls, given: Mapping[str, object]) -> GemmaConfig:
        """A config from the content of a config.json, as transformers 4 or 5 writes it.

        Args:
            given: The JSON object. Fields it leaves out take transformers' defaults for Gemma 2 or Gemma 3. Of a
                multimodal Gemma 3, the text model is taken.

        Raises:
            ConfigError: The file describes another architecture, or a Gemma that this package cannot run.
        """
        try:
            return cls(**fields_of(given))
        except ConfigError as error:
            raise ConfigError(_with_json_name(str(error))) from None
        except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise ConfigError(f"the config holds a value of the wrong type: {error}") from error

    def to_dict(self) -> dict[str, object]:
        """The content of a config.json of transformers for this shape."""
        return content_of(vars(self), self.kinds)


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
    json_name = "bos_token_id or eos_token_id" if name == "bos_id" else JSON_NAMES.get(name, name)
    return message if json_name == name else f"{json_name}: {message}"


def _preset(n_layers: int, d_model: int, heads: tuple[int, int], d_head: int, d_mlp: int, query_scalar: int) -> GemmaConfig:
    kinds: tuple[Kind, ...] = tuple("local" if layer % 2 == 0 else "global" for layer in range(n_layers))
    return GemmaConfig(d_model, *heads, d_head, d_mlp, 256000, kinds, window=4096, context=8192, query_scalar=query_scalar)


def _gemma_3(
    n_layers: int,
    d_model: int,
    heads: tuple[int, int],
    d_mlp: int,
    *,
    d_head: int = 256,
    query_scalar: int = 256,
    window: int = 1024,
    context: int = 131072,
    vocab_size: int = 262208,
    rope_factor: float = 8.0,
) -> GemmaConfig:
    kinds: tuple[Kind, ...] = tuple("global" if layer % 6 == 5 else "local" for layer in range(n_layers))
    return GemmaConfig(
        d_model, *heads, d_head, d_mlp, vocab_size, kinds, window, context, query_scalar, attn_cap=None, final_cap=None,
        rope_theta=1e6, eos_ids=(1, 106), qk_norms=True, rope_theta_local=10000.0, rope_factor=rope_factor,
    )  # fmt: skip


PRESETS: dict[str, GemmaConfig] = {
    "2b": _preset(26, 2304, (8, 4), 256, 9216, 256),
    "9b": _preset(42, 3584, (16, 8), 256, 14336, 256),
    "27b": _preset(46, 4608, (32, 16), 128, 36864, 144),
    "3-270m": _gemma_3(18, 640, (4, 1), 2048, window=512, context=32768, vocab_size=262144, rope_factor=1.0),
    "3-1b": _gemma_3(26, 1152, (4, 1), 6912, window=512, context=32768, vocab_size=262144, rope_factor=1.0),
    "3-4b": _gemma_3(34, 2560, (8, 4), 10240),
    "3-12b": _gemma_3(48, 3840, (16, 8), 15360),
    "3-27b": _gemma_3(62, 5376, (32, 16), 21504, d_head=128, query_scalar=168),
}
