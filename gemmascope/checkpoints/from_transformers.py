"""A network that shares the tensors of a transformers Gemma2ForCausalLM or Gemma3ForCausalLM in memory."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import nn

from gemmascope.checkpoints.device import choose_device, float16_error, parse_dtype
from gemmascope.checkpoints.shared_model import SharedModelCheck, config_of, refuse_other_forward
from gemmascope.checkpoints.wrappers import CAUSAL, TransformersGemma2
from gemmascope.config import GemmaConfig
from gemmascope.errors import CheckpointError, DeviceError
from gemmascope.model.gemma2 import Gemma2, Layer


def is_gemma(source: object) -> TypeGuard[TransformersGemma2]:
    """Whether this is a transformers Gemma 2 or 3 with its head. Compares class names: transformers is not imported."""
    return any(kind.__name__ in CAUSAL for kind in type(source).__mro__)


def from_transformers(source: TransformersGemma2, device: str | torch.device, dtype: str | torch.dtype) -> Gemma2:
    """A network that has the very parameters of a transformers model: a change in one is a change in the other.

    Raises:
        CheckpointError: Parameters have no values (meta), are not Gemma 2's, are on several devices or of several dtypes;
            or the model computes something other than its parameters and configuration say.
        DeviceError: The model is in float16, or not on the device or in the dtype given.
    """
    theirs: dict[str, nn.Parameter] = dict(source.named_parameters())
    _refuse_unusable(source, theirs)
    network = empty_network(config_of(source))
    ours = dict(network.named_parameters())
    missing = sorted(ours.keys() - theirs.keys())
    if missing or (extra := sorted(theirs.keys() - ours.keys() - {"lm_head.weight"})):
        problem = f"{missing[0]!r} is missing" if missing else f"{extra[0]!r} is unknown to {network.config.family}"
        raise CheckpointError(
            f"this {type(source).__name__} has other parameters: {problem}. If it has adapters, merge them into it first"
        )
    for name, parameter in ours.items():
        if theirs[name].shape != parameter.shape:
            raise CheckpointError(
                f"parameter {name!r} has shape {list(theirs[name].shape)}; its config asks for {list(parameter.shape)}"
            )
    _refuse_other_place(next(iter(theirs.values())), device, dtype)
    refuse_other_forward(source, network.config)
    for name, parameter in theirs.items():
        if name in ours:
            set_parameter(network, name, parameter)
    network.check = SharedModelCheck(source, network, _refuse_unusable)
    return network


def empty_network(config: GemmaConfig) -> Gemma2:
    """A network of this shape on the meta device, which takes no memory."""
    return Gemma2(config).eval()


def parameter_shapes(config: GemmaConfig) -> dict[str, torch.Size]:
    """The shape of every parameter of a network, by its name in a checkpoint."""
    return {name: parameter.shape for name, parameter in empty_network(config).named_parameters()}


def empty_layers(config: GemmaConfig, dtype: torch.dtype) -> list[Layer]:
    """The layers of this shape on the meta device."""
    return [Layer(config, index).to(dtype).eval().requires_grad_(False) for index in range(config.n_layers)]


def set_parameter(network: Gemma2, name: str, parameter: nn.Parameter) -> None:
    """Set the network's parameter of that name."""
    path, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(path), leaf, parameter)


def _refuse_unusable(source: TransformersGemma2, parameters: dict[str, nn.Parameter]) -> None:
    if on_meta := [name for name, p in parameters.items() if p.is_meta]:
        raise CheckpointError(
            f"parameter {on_meta[0]!r} (and {len(on_meta) - 1} more) is on the meta device: it has no values. "
            "Load the model whole, without device_map, or give its folder"
        )
    dtypes, devices = {p.dtype for p in parameters.values()}, {str(p.device) for p in parameters.values()}
    if torch.float16 in dtypes:
        raise float16_error()
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
        raise CheckpointError("the model's lm_head differs from its embedding; Gemma unembeds with its embedding")


def _refuse_other_place(parameter: nn.Parameter, device: str | torch.device, dtype: str | torch.dtype) -> None:
    """Refuses a device or dtype that the shared model is not in: to move or cast it would copy it."""
    requested = parse_dtype(dtype)
    if requested not in (None, parameter.dtype):
        raise DeviceError(
            f"the model is in {parameter.dtype} and is shared, not copied: call model.to({requested}) on it first"
        )
    target = parameter.device if device == "auto" else choose_device(device)
    if target.type != parameter.device.type or target.index not in (None, parameter.device.index):
        raise DeviceError(
            f"the model is on {parameter.device} and is shared, not copied: call model.to({str(target)!r}) on it first"
        )
