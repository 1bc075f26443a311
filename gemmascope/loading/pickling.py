"""Models in pickles, as joblib and multiprocessing make them, and copies of models.

A model that has a source goes as the arguments of gs.load with its fingerprint, and is loaded again where it arrives: once
for each process. One that was given in memory goes with its numbers.
"""

from __future__ import annotations

import copyreg
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from torch import Tensor, nn

from gemmascope.checkpoints.from_transformers import empty_network, put
from gemmascope.checkpoints.load_arguments import InMemory
from gemmascope.config import GemmaConfig
from gemmascope.errors import CheckpointError
from gemmascope.model.model import Model
from gemmascope.tokens.tokenizer import Tokenizer


@dataclass(frozen=True)
class _Source:
    """A model as what loads it. tokenizer: the object, where one was given; asked names it only."""

    source: str
    name: str
    asked: Mapping[str, Any]
    tokenizer: Tokenizer | None
    fingerprint: str


@dataclass(frozen=True)
class _Numbers:
    """A model as its numbers, on the CPU."""

    config: GemmaConfig
    parameters: Mapping[str, Tensor]
    device: str
    name: str
    asked: Mapping[str, Any]
    tokenizer: Tokenizer | None


# The models that pickles have brought to this process, so that each is loaded once.
_BROUGHT: WeakValueDictionary[str, Model] = WeakValueDictionary()


def _reduced(model: Model) -> tuple[Callable[[Any], Model], tuple[_Source | _Numbers]]:
    words = model.tokenizer if model.has_tokenizer else None
    if model.source is None:
        model.network.check()
        parameters = {name: parameter.detach().cpu() for name, parameter in model.network.named_parameters()}
        return _from_numbers, (_Numbers(model.config, parameters, str(model.device), model.name, model.asked, words),)
    source = os.path.expanduser(model.source)
    source = os.path.abspath(source) if os.path.isdir(source) else model.source
    asked: dict[str, Any] = dict(model.asked)
    for name in {"cache", "tokenizer"} & asked.keys():
        asked[name] = _found_anywhere(asked[name])
    given = words if isinstance(asked.get("tokenizer"), InMemory) else None
    return _from_source, (_Source(source, model.name, asked, given, model.fingerprint),)


def _found_anywhere(path: str) -> str:
    """A folder by its whole path, since the process that loads it may be in another one. Anything else as it is."""
    there = os.path.expanduser(path)
    return path if isinstance(path, InMemory) or not os.path.isdir(there) else os.path.abspath(there)


def _from_source(pickled: _Source) -> Model:
    """The model that was pickled. CheckpointError if loading it now gives another one."""
    from gemmascope.loading.load import load, nano

    plain = pickled.source == "nano" and not pickled.asked
    key = repr((pickled.source, pickled.name, sorted(pickled.asked.items()), pickled.fingerprint))
    found = nano() if plain else _BROUGHT.get(key)
    if found is None or found.fingerprint != pickled.fingerprint:
        given: dict[str, Any] = {} if pickled.tokenizer is None else {"tokenizer": pickled.tokenizer}
        found = load(pickled.source, **{**pickled.asked, **given})
        found.name, found.asked = pickled.name, dict(pickled.asked)
        _require_same(found, pickled)
        _BROUGHT[key] = found
    return found


def _require_same(found: Model, pickled: _Source) -> None:
    if (fingerprint := found.fingerprint) != pickled.fingerprint:
        raise CheckpointError(
            f"the model {pickled.name!r} was pickled as what loads it, gs.load({pickled.source!r}), and that now gives "
            f"another model (fingerprint {fingerprint}, not {pickled.fingerprint}): its files changed, or its weights had "
            "been edited in memory when it was pickled. Write edited weights to a folder, and pickle what gs.load gives"
        )


def _from_numbers(pickled: _Numbers) -> Model:
    """The model that was pickled. DeviceError where its device is not."""
    from gemmascope.checkpoints.device import choose_device

    device, network = choose_device(pickled.device), empty_network(pickled.config)
    network.owned = True
    for name, value in pickled.parameters.items():
        put(network, name, nn.Parameter(value.to(device), requires_grad=False))
    return Model(network, pickled.tokenizer, pickled.name, pickled.asked)


copyreg.pickle(Model, _reduced)
