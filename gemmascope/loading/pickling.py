"""Pickling models, as joblib and multiprocessing do.

A model with a source is pickled as the arguments of gs.load and its fingerprint, and is loaded again, once for each process
that unpickles it. A model that was given in memory is pickled with its weights.
"""

from __future__ import annotations

import copyreg
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from torch import Tensor, nn

from gemmascope.checkpoints.from_transformers import empty_network, set_parameter
from gemmascope.checkpoints.load_arguments import InMemory
from gemmascope.config import GemmaConfig
from gemmascope.errors import CheckpointError
from gemmascope.model.model import Model
from gemmascope.tokens.tokenizer import Tokenizer


@dataclass(frozen=True)
class _FromSource:
    """A model as the arguments that load it. tokenizer: the object, if one was given, since `arguments` only names it."""

    source: str
    name: str
    arguments: Mapping[str, object]
    tokenizer: Tokenizer | None
    fingerprint: str


@dataclass(frozen=True)
class _FromWeights:
    """A model as its weights, on the CPU."""

    config: GemmaConfig
    parameters: Mapping[str, Tensor]
    device: str
    name: str
    arguments: Mapping[str, object]
    tokenizer: Tokenizer | None


# The models that this process has unpickled, so that each is loaded once.
_UNPICKLED: WeakValueDictionary[str, Model] = WeakValueDictionary()


def _reduce(model: Model) -> tuple[Callable[[_FromSource | _FromWeights], Model], tuple[_FromSource | _FromWeights]]:
    tokenizer = model.tokenizer if model.has_tokenizer else None
    if model.source is None:
        model.network.check()
        parameters = {name: parameter.detach().cpu() for name, parameter in model.network.named_parameters()}
        weights = _FromWeights(model.config, parameters, str(model.device), model.name, model.asked, tokenizer)
        return _rebuild, (weights,)
    source = os.path.expanduser(model.source)
    source = os.path.abspath(source) if os.path.isdir(source) else model.source
    arguments = dict(model.asked)
    for name in {"cache", "tokenizer"} & arguments.keys():
        arguments[name] = _absolute(arguments[name])
    given = tokenizer if isinstance(arguments.get("tokenizer"), InMemory) else None
    return _rebuild, (_FromSource(source, model.name, arguments, given, model.fingerprint),)


def _absolute(path: object) -> object:
    """A folder's absolute path, since another process may have another working directory. Anything else as it is."""
    if not isinstance(path, str) or isinstance(path, InMemory):
        return path
    expanded = os.path.expanduser(path)
    return os.path.abspath(expanded) if os.path.isdir(expanded) else path


def _rebuild(pickled: _FromSource | _FromWeights) -> Model:
    return _load_again(pickled) if isinstance(pickled, _FromSource) else _from_weights(pickled)


def _load_again(pickled: _FromSource) -> Model:
    """The pickled model, loaded from its source. Raises CheckpointError if that now gives a different model."""
    from gemmascope.loading.load import load, nano

    is_nano = pickled.source == "nano" and not pickled.arguments
    key = repr((pickled.source, pickled.name, sorted(pickled.arguments.items()), pickled.fingerprint))
    model = nano() if is_nano else _UNPICKLED.get(key)
    if model is None or model.fingerprint != pickled.fingerprint:
        arguments: dict[str, Any] = dict(pickled.arguments)
        if pickled.tokenizer is not None:
            arguments["tokenizer"] = pickled.tokenizer
        model = load(pickled.source, **arguments)
        model.name, model.asked = pickled.name, dict(pickled.arguments)
        _require_same(model, pickled)
        _UNPICKLED[key] = model
    return model


def _require_same(model: Model, pickled: _FromSource) -> None:
    if (fingerprint := model.fingerprint) != pickled.fingerprint:
        raise CheckpointError(
            f"the model {pickled.name!r} was pickled as what loads it, gs.load({pickled.source!r}), and that now gives "
            f"another model (fingerprint {fingerprint}, not {pickled.fingerprint}): its files changed, or its weights had "
            "been edited in memory when it was pickled. Write edited weights to a folder, and pickle what gs.load gives"
        )


def _from_weights(pickled: _FromWeights) -> Model:
    """The pickled model with its own weights. Raises DeviceError if its device is not available here."""
    from gemmascope.checkpoints.device import choose_device

    device, network = choose_device(pickled.device), empty_network(pickled.config)
    network.owned = True
    for name, value in pickled.parameters.items():
        set_parameter(network, name, nn.Parameter(value.to(device), requires_grad=False))
    return Model(network, pickled.tokenizer, pickled.name, pickled.arguments)


copyreg.pickle(Model, _reduce)
