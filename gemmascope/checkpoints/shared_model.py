"""Checks that a transformers model whose tensors are shared computes what its parameters and configuration say.

The model's owner may convert it, train it, edit its configuration, or add hooks and adapters. Whatever would make its
results differ from ours is an error: when the model is loaded, or later at the next run.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gemmascope.checkpoints.folder import with_end_tokens
from gemmascope.checkpoints.wrappers import TransformersBody, TransformersGemma2
from gemmascope.config import GemmaConfig
from gemmascope.errors import CheckpointError, warn
from gemmascope.model.gemma2 import Gemma2

Parameters = dict[str, nn.Parameter]

# The packages whose code runs in a transformers Gemma. Their hooks record outputs or move tensors; they change no value.
_LIBRARIES = ("torch", "transformers", "accelerate")
_CLASSES = ("Linear", "Embedding", "ModuleList", "GELUTanh", "PytorchGELUTanh")
# The relative error that bfloat16 may leave in a number that the model computes with.
ROUNDING = 1e-2
_AS_EDIT = "and write what it does as an edit (gs.edit)"


def config_of(source: TransformersGemma2) -> GemmaConfig:
    """A transformers model's current configuration, with the end tokens of its generation config."""
    eos_ids = getattr(getattr(source, "generation_config", None), "eos_token_id", None)
    return with_end_tokens(GemmaConfig.from_dict(source.config.to_dict()), eos_ids)


def refuse_other_forward(source: TransformersGemma2, config: GemmaConfig) -> None:
    """Refuses a transformers model that computes something other than its parameters and configuration say."""
    for name, module in source.named_modules():
        if _users_hooks(module):
            raise CheckpointError(
                f"{_named(name)} has a forward hook, which transformers runs and gemmascope would not: remove it "
                f"(handle.remove()), {_AS_EDIT}"
            )
        _refuse_other_module(name, module)
    _refuse_other_body(source.model, config)


class SharedModelCheck:
    """Checks, before each run, that a model that shares its tensors with a network still computes what the network does."""

    def __init__(
        self, source: TransformersGemma2, network: Gemma2, refuse_unusable: Callable[[TransformersGemma2, Parameters], None]
    ) -> None:
        # Weak: a model that its owner has dropped cannot change any more.
        self._source, self._network, self._refuse_unusable = weakref.ref(source), network, refuse_unusable
        self._warned: frozenset[str] = frozenset()

    def __call__(self) -> None:
        """Raises CheckpointError or DeviceError if the model changed so that it must be loaded again; warns of new hooks."""
        source = self._source()
        if source is None:
            return
        for name, module in source.named_modules():
            _refuse_other_module(name, module)
        theirs: Parameters = dict(source.named_parameters())
        for name, ours in self._network.named_parameters():
            if theirs.get(name) is not ours:
                what = "is gone from" if name not in theirs else "is another tensor now in"
                raise CheckpointError(
                    f"parameter {name!r} {what} the transformers model that was shared: load it again with gs.load"
                )
        self._refuse_unusable(source, theirs)
        self._refuse_other_config(source)
        _refuse_other_body(source.model, self._network.config)
        self._warn_of_hooks(source)

    def _refuse_other_config(self, source: TransformersGemma2) -> None:
        ours, theirs = self._network.config, config_of(source)
        if theirs != ours:
            name = next(name for name, value in vars(ours).items() if getattr(theirs, name) != value)
            raise CheckpointError(
                f"the configuration of the transformers model was edited after gs.load: {name} was {getattr(ours, name)!r} "
                f"and is {getattr(theirs, name)!r}. Load it again with gs.load"
            )

    def _warn_of_hooks(self, source: TransformersGemma2) -> None:
        """Warns once for each set of hooks. Most hooks only observe, so they are not an error."""
        hooked = frozenset(name for name, module in source.named_modules() if _users_hooks(module))
        if hooked - self._warned:
            warn(
                f"{_named(min(hooked - self._warned))} of the transformers model that is shared has a forward hook, which "
                f"gemmascope does not run: if it changes a value, its numbers are not these; remove it, {_AS_EDIT}"
            )
        self._warned = hooked


def _named(name: str) -> str:
    return f"module {name!r}" if name else "the model"


def _users_hooks(module: nn.Module) -> bool:
    """Whether a module has forward hooks other than the libraries' own."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return any(_root(hook) not in _LIBRARIES for hook in hooks)


def _root(fn: object) -> str:
    """The package that a function comes from."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    return str(getattr(fn, "__module__", None) or type(fn).__module__).split(".")[0]


def _refuse_other_module(name: str, module: nn.Module) -> None:
    replaced = "forward" in vars(module) and not hasattr(module, "_hf_hook")  # accelerate's forward only moves tensors
    if replaced or _root(type(module).forward) not in _LIBRARIES:
        what = "a forward of its own" if replaced else f"the forward of {type(module).__module__}.{type(module).__name__}"
        raise CheckpointError(
            f"{_named(name)} has {what}, not that of transformers' Gemma, and gemmascope would not run it. If it is an "
            f"adapter, merge it into the model (merge_and_unload()); else restore the module, {_AS_EDIT}"
        )
    kinds = {kind.__name__ for kind in type(module).__mro__}
    known = any(kind.startswith(("Gemma2", "Gemma3")) or kind in _CLASSES for kind in kinds)
    if not known and not (isinstance(module, nn.GELU) and module.approximate == "tanh"):
        raise CheckpointError(f"{_named(name)} is a {type(module).__name__}, which no Gemma has there")


def _refuse_other_body(body: TransformersBody, config: GemmaConfig) -> None:
    """Refuses a last norm, RoPE, embedding scale or layer whose numbers are not the configuration's."""
    _require_number("model.norm.eps", getattr(body.norm, "eps", config.norm_eps), config.norm_eps)
    rope = getattr(body, "rotary_emb", None)
    for name, expected in _rope_numbers(config).items():
        value = getattr(rope, name, None)
        if value is None or (isinstance(value, Tensor) and value.is_meta):
            continue
        actual = torch.as_tensor(value).detach().float().cpu()
        if actual.shape != expected.shape or not torch.allclose(actual, expected, rtol=ROUNDING, atol=0):
            raise CheckpointError(
                f"model.rotary_emb.{name} of the transformers model is not what its configuration makes it: set it back, or "
                "save the model and load the folder"
            )
    scale = getattr(body.embed_tokens, "embed_scale", None)  # since transformers 5
    if isinstance(scale, Tensor) and not scale.is_meta:
        expected_scale = config.d_model**0.5
        if abs(float(scale) - expected_scale) > ROUNDING * expected_scale:
            _require_number("model.embed_tokens.embed_scale", float(scale), expected_scale)
    for index, layer in enumerate(body.layers):
        _refuse_other_numbers(f"model.layers.{index}", layer, index, config)


def _require_number(name: str, actual: float, expected: float) -> None:
    if actual != expected:
        raise CheckpointError(
            f"{name} of the transformers model is {actual!r}, and its configuration makes it {expected!r}: set it back, or "
            "save the model and load the folder"
        )


def _rope_numbers(config: GemmaConfig) -> dict[str, Tensor]:
    """What a configuration makes of RoPE's frequencies and scalings, by their names in transformers' rotary embedding."""
    if not config.qk_norms:
        return {"inv_freq": rope_frequencies(config), "attention_scaling": torch.ones(())}
    numbers = {}
    for kind, name in (("local", "sliding_attention"), ("global", "full_attention")):
        if kind in config.kinds:
            numbers[f"{name}_inv_freq"] = rope_frequencies(config, config.kinds.index(kind))
            numbers[f"{name}_attention_scaling"] = torch.ones(())
    return numbers


def rope_frequencies(config: GemmaConfig, layer: int = 0) -> Tensor:
    """The frequencies of RoPE under a configuration, in a layer: [d_head / 2], float32."""
    theta, factor = config.rope_of(layer)
    return theta ** -(torch.arange(0, config.d_head, 2, dtype=torch.float32) / config.d_head) / factor


def _refuse_other_numbers(name: str, layer: nn.Module, index: int, config: GemmaConfig) -> None:
    """Refuses a layer whose numbers are not its configuration's: it was moved to this place, or edited."""
    window = config.window_of(index)
    expected = {
        "self_attn.scaling": config.query_scalar**-0.5,
        "self_attn.attn_logit_softcapping": config.attn_cap,
        "self_attn.sliding_window": window,
        "self_attn.layer_type": "full_attention" if window is None else "sliding_attention",
        "attention_type": "full_attention" if window is None else "sliding_attention",
        **{f"{norm}.eps": config.norm_eps for norm in _NORMS},
    }
    for path, number in expected.items():
        owner: object = layer
        for part in path.split(".")[:-1]:
            owner = getattr(owner, part, None)
        actual = getattr(owner, path.rpartition(".")[2], number)  # not every version of transformers has all of them
        if actual != number:
            raise CheckpointError(
                f"{name}.{path} of the transformers model is {actual!r}, and its configuration makes it {number!r}: if its "
                "layers were moved or its numbers edited in memory, set it back, or save the model and load the folder"
            )


_NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm",
          "self_attn.q_norm", "self_attn.k_norm")  # fmt: skip
