"""Small random Gemma 2 and 3 checkpoints, made by transformers, with weights large enough for both soft caps to matter."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig

from gemmascope.config import GemmaConfig
from gemmascope.model.gemma2 import Gemma2
from gemmascope.model.model import Model
from gemmascope.model.tap import TapFn

T = TypeVar("T", Gemma2ForCausalLM, Gemma3ForCausalLM)

KINDS = {"l": "sliding_attention", "g": "full_attention"}

SHAPE: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 8, "num_key_value_heads": 4,
    "head_dim": 12, "query_pre_attn_scalar": 20, "sliding_window": 4, "max_position_embeddings": 64,
}  # fmt: skip


# Where transformers 5 and transformers 4 keep the base of RoPE.
IN_PARAMETERS = hasattr(Gemma2Config(), "rope_parameters")


def checkpoint(kinds: str = "lg", seed: int = 0, theta: float = 10000.0, **shape: Any) -> Gemma2ForCausalLM:
    """A random checkpoint in float32.

    kinds: a letter for each layer, l(ocal) or g(lobal). theta: the base of RoPE. shape: other fields of its config.
    """
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": theta}} if IN_PARAMETERS else {"rope_theta": theta}
    config = Gemma2Config(
        **{**SHAPE, **rope, **shape}, num_hidden_layers=len(kinds), layer_types=[KINDS[kind] for kind in kinds],
        attn_implementation="eager",
    )  # fmt: skip
    return _random(Gemma2ForCausalLM, config, seed)


def checkpoint_3(kinds: str = "lg", seed: int = 0, factor: float = 1.0, **shape: Any) -> Gemma3ForCausalLM:
    """A random Gemma 3 in float32. factor: what RoPE divides positions by in global layers."""
    scaled = {"rope_type": "linear", "factor": factor} if factor != 1 else {"rope_type": "default"}
    rope: dict[str, Any] = {"rope_theta": 50000.0, "rope_local_base_freq": 300.0, "rope_scaling": scaled}
    if IN_PARAMETERS:
        rope = {"rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
            "full_attention": {**scaled, "rope_theta": 50000.0},
        }}  # fmt: skip
    config = Gemma3TextConfig(
        **{**SHAPE, **rope, **shape}, num_hidden_layers=len(kinds), layer_types=[KINDS[kind] for kind in kinds],
        attn_implementation="eager",
    )  # fmt: skip
    return _random(Gemma3ForCausalLM, config, seed)


def _random(kind: type[T], config: Gemma2Config | Gemma3TextConfig, seed: int) -> T:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: T = kind(config).eval()
        _enlarge(model)
    return model


@torch.no_grad()
def _enlarge(model: Gemma2ForCausalLM | Gemma3ForCausalLM) -> None:
    c = model.config
    # Standard deviations of about 10 for scores and 12 for logits, with tails beyond their caps of 50 and 30. Larger
    # scores would make a float32 model chaotic: an oracle of the same precision would then differ as much from itself.
    size = (10 * (c.query_pre_attn_scalar / c.head_dim) ** 0.5) ** 0.5
    for name, p in model.named_parameters():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            p.normal_(std=size / c.hidden_size**0.5)
        elif name.endswith("embed_tokens.weight"):
            p.normal_(std=12 / c.hidden_size**0.5)
        elif p.dim() == 2:
            p.normal_(std=p.shape[1] ** -0.5)
        elif "post_" in name:  # a post-norm's gain decides how much a sublayer weighs in the stream
            p.uniform_(1, 4)
        else:
            p.uniform_(-0.4, 0.4)


def config_of(source: Gemma2ForCausalLM | Gemma3ForCausalLM) -> GemmaConfig:
    return GemmaConfig.from_dict(source.config.to_dict())


def model_of(source: Gemma2ForCausalLM | Gemma3ForCausalLM) -> Model:
    """Our model over the checkpoint's own tensors, without the loader: what the loader does has its own tests."""
    network = Gemma2(config_of(source))
    weights = {name: tensor for name, tensor in source.state_dict().items() if name != "lm_head.weight"}
    network.load_state_dict(weights, strict=True, assign=True)
    return Model(network.eval(), None, "random")


@cache
def model(kinds: str = "lgl", seed: int = 0, **shape: Any) -> Model:
    """A random model of these layers (l local, g global), without a tokenizer. Shared by the tests: do not change it."""
    return model_of(checkpoint(kinds, seed, **shape))


def every_site(model: Model, ids: Sequence[int], change: TapFn | None = None) -> dict[tuple[str, int | None], Tensor]:
    """All values that a user's tap gets, by (site, layer). change: what the tap returns for a value; default: the value."""
    values: dict[tuple[str, int | None], Tensor] = {}

    def tap(site: str, layer: int | None, value: Tensor) -> Tensor:
        assert (site, layer) not in values, f"{site} of layer {layer} was visited twice"
        value = value if change is None else change(site, layer, value)
        values[site, layer] = value.clone()
        return value

    model.run(ids, tap=tap)
    return values


def prompt(length: int, vocab_size: int = SHAPE["vocab_size"], seed: int = 0) -> list[int]:
    """Random token ids."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (length,), generator=draw).tolist()
