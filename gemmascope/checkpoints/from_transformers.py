"""A Gemma2ForCausalLM of transformers that is in memory already: its tensors, under this package's layers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from gemmascope.checkpoints.device import asked_dtype, choose_device, no_float16
from gemmascope.checkpoints.shared_model import Watch, config_of, refuse_other_forward
from gemmascope.config import GemmaConfig
from gemmascope.errors import CheckpointError, DeviceError
from gemmascope.model.gemma2 import Gemma2, Layer

_CLASS = "Gemma2ForCausalLM"


def is_gemma(source: object) -> bool:
    """Whether this is a transformers Gemma 2 with its head. Told by the name of the class: nothing is imported."""
    return any(kind.__name__ == _CLASS for kind in type(source).__mro__)


def from_transformers(source: Any, device: str | torch.device, dtype: str | torch.dtype) -> Gemma2:
    """A network whose parameters are the very parameters of source: what changes in one changes in the other.

    Raises CheckpointError for parameters that are not there (meta), not Gemma 2's, spread over devices or of several
    dtypes, and for a model that computes more than its parameters say; DeviceError for float16, and for a device or dtype
    other than what source is in.
    """
    theirs: dict[str, nn.Parameter] = dict(source.named_parameters())
    _refuse_unusable(source, theirs)
    network = empty_network(config_of(source))
    ours = dict(network.named_parameters())
    missing = sorted(ours.keys() - theirs.keys())
    if missing or (extra := sorted(theirs.keys() - ours.keys() - {"lm_head.weight"})):
        wrong = f"{missing[0]!r} is missing" if missing else f"{extra[0]!r} is unknown to Gemma 2"
        raise CheckpointError(f"this {_CLASS} has other parameters: {wrong}. If it has adapters, merge them into it first")
    for name, parameter in ours.items():
        if theirs[name].shape != parameter.shape:
            raise CheckpointError(
                f"parameter {name!r} has shape {list(theirs[name].shape)}; its config asks for {list(parameter.shape)}"
            )
    _refuse_other_place(next(iter(theirs.values())), device, dtype)
    refuse_other_forward(source, network.config)
    for name, parameter in theirs.items():
        if name in ours:
            put(network, name, parameter)
    network.check = Watch(source, network, _refuse_unusable)
    return network


def empty_network(config: GemmaConfig) -> Gemma2:
    """A network of this shape on the meta device: it takes no memory."""
    return Gemma2(config).eval()


def parameter_shapes(config: GemmaConfig) -> dict[str, torch.Size]:
    """The shape of every parameter of a network, by its name in a checkpoint."""
    return {name: parameter.shape for name, parameter in empty_network(config).named_parameters()}


def empty_layers(config: GemmaConfig, dtype: torch.dtype, indices: Iterable[int] | None = None) -> list[Layer]:
    """Layers of this shape on the meta device: all, or those of these numbers."""
    chosen = range(config.n_layers) if indices is None else indices
    return [Layer(config, index).to(dtype).eval().requires_grad_(False) for index in chosen]


def put(network: Gemma2, name: str, parameter: nn.Parameter) -> None:
    """Makes this the parameter of that name."""
    path, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(path), leaf, parameter)


def _refuse_unusable(source: Any, parameters: dict[str, nn.Parameter]) -> None:
    if on_meta := [name for name, p in parameters.items() if p.is_meta]:
        raise CheckpointError(
            f"parameter {on_meta[0]!r} (and {len(on_meta) - 1} more) is on the meta device: it has no values. "
            "Load the model whole, without device_map, or give its folder"
        )
    dtypes, devices = {p.dtype for p in parameters.values()}, {str(p.device) for p in parameters.values()}
    if torch.float16 in dtypes:
        raise no_float16()
    if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.bfloat16}:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise CheckpointError(
            f"the model's parameters are {names}; it must be float32 or bfloat16 throughout: model.float()"
        )
    if len(devices) > 1:
        raise CheckpointError(f"the model is spread over {', '.join(sorted(devices))}: move it to one of them first")
    head = source.get_output_embeddings().weight
    embedding = parameters["model.embed_tokens.weight"]
    if head is not embedding and not torch.equal(head, embedding):
        raise CheckpointError("the model's lm_head differs from its embedding; Gemma 2 unembeds with its embedding")


def _refuse_other_place(one: nn.Parameter, device: str | torch.device, dtype: str | torch.dtype) -> None:
    """A shared model stays where it is and what it is: moving it here would be a copy."""
    asked = asked_dtype(dtype)
    if asked not in (None, one.dtype):
        raise DeviceError(f"the model is in {one.dtype} and is shared, not copied: call model.to({asked}) on it first")
    wanted = one.device if device == "auto" else choose_device(device)
    if wanted.type != one.device.type or wanted.index not in (None, one.device.index):
        raise DeviceError(
            f"the model is on {one.device} and is shared, not copied: call model.to({str(wanted)!r}) on it first"
        )
