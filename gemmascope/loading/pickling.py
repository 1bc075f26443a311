"""The arguments that load a model again, and what stands for it in a pickle, such as those of joblib and multiprocessing.

A model with a source is pickled as the arguments of gs.load and its fingerprint, and is loaded again, once for each process
that unpickles it. A model that was given in memory is pickled with its weights.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gemmascope.arguments import equals_text, short_repr
from gemmascope.checkpoints.device import choose_device
from gemmascope.checkpoints.from_transformers import empty_network, set_parameter
from gemmascope.config import GemmaConfig
from gemmascope.errors import CheckpointError, DeviceError
from gemmascope.files.paths import user_path
from gemmascope.legible import prints_legibly
from gemmascope.model.model import Model
from gemmascope.tokens.tokenizer import Tokenizer


class InMemory(str):
    """Stands for an object that no code can name, by its class: <GemmaTokenizer in memory>."""

    __slots__ = ()

    @prints_legibly
    def __repr__(self) -> str:
        return f"<{self!s} in memory>"


def load_arguments(**arguments: object) -> dict[str, object]:
    """The arguments of gs.load that differ from its defaults ("auto" and None), as plain values that load the same model.

    They are kept with the model, so that the code that repeats a run can name them.
    """
    plain = {name: _plain(name, value) for name, value in arguments.items() if value is not None}
    return {name: value for name, value in plain.items() if not equals_text(value, "auto")}


def _plain(name: str, value: object) -> object:
    if name == "cache" and isinstance(value, (str, os.PathLike)):
        return os.fspath(user_path(value, error=CheckpointError, what="a folder"))
    if name == "tokenizer" and not isinstance(value, str):
        return str(Path(value)) if isinstance(value, os.PathLike) else InMemory(type(value).__name__)
    if name == "device" and isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(name, one) for one in value]
    if name in ("device", "dtype"):
        text = str(value) if isinstance(value, (str, torch.device, torch.dtype)) else short_repr(value)  # refused later
        return text.removeprefix("torch.")
    return value


@dataclass(frozen=True)
class FromSource:
    """A model as the arguments that load it. tokenizer: the object, if one was given, since `arguments` only names it."""

    source: str
    name: str
    arguments: Mapping[str, object]
    tokenizer: Tokenizer | None
    fingerprint: str


@dataclass(frozen=True)
class FromWeights:
    """A model as its weights, on the CPU."""

    config: GemmaConfig
    parameters: Mapping[str, Tensor]
    device: str
    name: str
    arguments: Mapping[str, object]
    tokenizer: Tokenizer | None


def as_pickled(model: Model) -> FromSource | FromWeights:
    """What stands for a model in a pickle."""
    if model.network.n_processes > 1:
        raise DeviceError(f"{model.name!r} is divided among processes, and none of them can pickle it")
    tokenizer = model.tokenizer if model.has_tokenizer else None
    if model.source is None:
        model.network.check()
        parameters = {name: parameter.detach().cpu() for name, parameter in model.network.named_parameters()}
        return FromWeights(model.config, parameters, str(model.device), model.name, model.asked, tokenizer)
    source = os.path.expanduser(model.source)
    source = os.path.abspath(source) if os.path.isdir(source) else model.source
    arguments = dict(model.asked)
    for name in {"cache", "tokenizer"} & arguments.keys():
        arguments[name] = _absolute(arguments[name])
    tokenizer_in_memory = tokenizer if isinstance(arguments.get("tokenizer"), InMemory) else None
    return FromSource(source, model.name, arguments, tokenizer_in_memory, model.fingerprint)


def _absolute(path: object) -> object:
    """A folder's absolute path, since another process may have another working directory. Anything else as it is."""
    if not isinstance(path, str) or isinstance(path, InMemory):
        return path
    expanded = os.path.expanduser(path)
    return os.path.abspath(expanded) if os.path.isdir(expanded) else path


def require_same(model: Model, pickled: FromSource) -> None:
    if (fingerprint := model.fingerprint) != pickled.fingerprint:
        raise CheckpointError(
            f"the model {pickled.name!r} was pickled as what loads it, gs.load({pickled.source!r}), and that now gives "
            f"another model (fingerprint {fingerprint}, not {pickled.fingerprint}): its files changed, or its weights had "
            "been edited in memory when it was pickled. Write edited weights to a folder, and pickle what gs.load gives"
        )


def from_weights(pickled: FromWeights) -> Model:
    """The pickled model with its own weights. Raises DeviceError if its device is not available here."""
    device, network = choose_device(pickled.device), empty_network(pickled.config)
    network.owned = True
    for name, value in pickled.parameters.items():
        set_parameter(network, name, nn.Parameter(value.to(device), requires_grad=False))
    return Model(network, pickled.tokenizer, pickled.name, pickled.arguments)
