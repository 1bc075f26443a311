"""A transformers model whose tensors are shared: that it computes what its parameters and configuration say, and still does.

Its owner goes on with it: converts it, trains it, edits its configuration, puts hooks and adapters on it. What makes its
numbers other than ours is an error when it is given; later, at the next run.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gemmascope.checkpoints.folder import with_ends
from gemmascope.config import GemmaConfig
from gemmascope.errors import CheckpointError, warn
from gemmascope.model.gemma2 import Gemma2

Parameters = dict[str, nn.Parameter]

# Whose code runs in a Gemma 2 of transformers. Hooks of theirs (recording outputs, moving tensors) change no number.
_OWN = ("torch", "transformers", "accelerate")
_CLASSES = ("Linear", "Embedding", "ModuleList", "GELUTanh", "PytorchGELUTanh")
# What bfloat16 may round off a number that the model computes with.
ROUNDING = 1e-2
_AS_EDIT = "and write what it does as an edit (gs.edit)"


def config_of(source: Any) -> GemmaConfig:
    """The configuration of a transformers model as it stands, with the end tokens of its generation config."""
    ends = getattr(getattr(source, "generation_config", None), "eos_token_id", None)
    return with_ends(GemmaConfig.from_dict(source.config.to_dict()), ends)


def refuse_other_forward(source: Any, config: GemmaConfig) -> None:
    """CheckpointError for a transformers model that computes something else than its parameters and configuration say."""
    for name, module in source.named_modules():
        if _users_hooks(module):
            raise CheckpointError(
                f"{_named(name)} has a forward hook, which transformers runs and gemmascope would not: remove it "
                f"(handle.remove()), {_AS_EDIT}"
            )
        _refuse_other_module(name, module)
    _refuse_other_body(source.model, config)
    for index, layer in enumerate(source.model.layers):
        _refuse_other_numbers(f"model.layers.{index}", layer, index, config)


class Watch:
    """Looks, at each run, whether a model that shares its tensors with a network still computes what the network does."""

    def __init__(self, source: Any, network: Gemma2, refuse_unusable: Callable[[Any, Parameters], None]) -> None:
        # Weak: a model that its owner has dropped changes no more.
        self._source, self._network, self._refuse_unusable = weakref.ref(source), network, refuse_unusable
        self._warned: frozenset[str] = frozenset()

    def __call__(self) -> None:
        """Raises CheckpointError or DeviceError for a model that changed so that it must be loaded again; warns of hooks."""
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
        for index, layer in enumerate(source.model.layers):
            _refuse_other_numbers(f"model.layers.{index}", layer, index, self._network.config)
        self._warn_of_hooks(source)

    def _refuse_other_config(self, source: Any) -> None:
        ours, theirs = self._network.config, config_of(source)
        if theirs != ours:
            name = next(name for name, value in vars(ours).items() if getattr(theirs, name) != value)
            raise CheckpointError(
                f"the configuration of the transformers model was edited after gs.load: {name} was {getattr(ours, name)!r} "
                f"and is {getattr(theirs, name)!r}. Load it again with gs.load"
            )

    def _warn_of_hooks(self, source: Any) -> None:
        """Once for each set of them: a hook that only looks on is harmless, and most do."""
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
    """Whether a module has forward hooks that are not the libraries' own."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return any(_root(hook) not in _OWN for hook in hooks)


def _root(fn: Any) -> str:
    """The package of a function."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    return str(getattr(fn, "__module__", None) or type(fn).__module__).split(".")[0]


def _refuse_other_module(name: str, module: nn.Module) -> None:
    replaced = "forward" in vars(module) and not hasattr(module, "_hf_hook")  # accelerate's moves tensors, and no more
    if replaced or _root(type(module).forward) not in _OWN:
        what = "a forward of its own" if replaced else f"the forward of {type(module).__module__}.{type(module).__name__}"
        raise CheckpointError(
            f"{_named(name)} has {what}, not that of transformers' Gemma 2, and gemmascope would not run it. If it is an "
            f"adapter, merge it into the model (merge_and_unload()); else restore the module, {_AS_EDIT}"
        )
    kinds = {kind.__name__ for kind in type(module).__mro__}
    known = any(kind.startswith("Gemma2") or kind in _CLASSES for kind in kinds)
    if not known and not (isinstance(module, nn.GELU) and module.approximate == "tanh"):
        raise CheckpointError(f"{_named(name)} is a {type(module).__name__}, which no Gemma 2 has there")


def _refuse_other_body(body: Any, config: GemmaConfig) -> None:
    """CheckpointError for a last norm, RoPE or scale of the embedding with other numbers than the configuration's."""
    _require_number("model.norm.eps", getattr(body.norm, "eps", config.norm_eps), config.norm_eps)
    rope = getattr(body, "rotary_emb", None)
    for name in ("inv_freq", "attention_scaling"):
        there = getattr(rope, name, None)
        wanted = rope_frequencies(config) if name == "inv_freq" else torch.ones(())
        if there is None or (isinstance(there, Tensor) and there.is_meta):
            continue
        there = torch.as_tensor(there).detach().float().cpu()
        if there.shape != wanted.shape or not torch.allclose(there, wanted, rtol=ROUNDING, atol=0):
            raise CheckpointError(
                f"model.rotary_emb.{name} of the transformers model is not what its configuration makes it: set it back, or "
                "save the model and load the folder"
            )
    scale = getattr(body.embed_tokens, "embed_scale", None)  # since transformers 5
    if isinstance(scale, Tensor) and not scale.is_meta:
        wanted_scale = config.d_model**0.5
        if abs(float(scale) - wanted_scale) > ROUNDING * wanted_scale:
            _require_number("model.embed_tokens.embed_scale", float(scale), wanted_scale)


def _require_number(name: str, there: Any, wanted: Any) -> None:
    if there != wanted:
        raise CheckpointError(
            f"{name} of the transformers model is {there!r}, and its configuration makes it {wanted!r}: set it back, or "
            "save the model and load the folder"
        )


def rope_frequencies(config: GemmaConfig) -> Tensor:
    """The frequencies of RoPE that a configuration asks for."""
    return config.rope_theta ** -(torch.arange(0, config.d_head, 2, dtype=torch.float32) / config.d_head)


def _refuse_other_numbers(name: str, layer: Any, index: int, config: GemmaConfig) -> None:
    """CheckpointError for a layer that holds other numbers than its configuration: it was moved here, or written to."""
    window = config.window_of(index)
    expected = {
        "self_attn.scaling": config.query_scalar**-0.5,
        "self_attn.attn_logit_softcapping": config.attn_cap,
        "self_attn.sliding_window": window,
        "self_attn.layer_type": "full_attention" if window is None else "sliding_attention",
        "attention_type": "full_attention" if window is None else "sliding_attention",
        **{f"{norm}_layernorm.eps": config.norm_eps for norm in _NORMS},
    }
    for path, wanted in expected.items():
        owner = layer
        for part in path.split(".")[:-1]:
            owner = getattr(owner, part, None)
        there = getattr(owner, path.rpartition(".")[2], wanted)  # not every version of transformers has all of them
        if there != wanted:
            raise CheckpointError(
                f"{name}.{path} of the transformers model is {there!r}, and its configuration makes it {wanted!r}: if its "
                "layers were moved or its numbers edited in memory, set it back, or save the model and load the folder"
            )


_NORMS = ("input", "post_attention", "pre_feedforward", "post_feedforward")
