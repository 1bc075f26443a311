"""What users ask top examples of: "head", ("neuron", 3), a dictionary, a direction - as groups of units."""

from __future__ import annotations

import numpy as np
import torch

from gemmascope.arguments import as_list, as_numbers, is_list, is_whole, short_repr
from gemmascope.errors import ExamplesError, SiteError
from gemmascope.examples.units import DIRECTION, HEAD, NEURON, Directions, Heads, Neurons, SaeFeatures, UnitGroup
from gemmascope.legible import legible_line
from gemmascope.model.model import Model
from gemmascope.sae.weights import DictionaryWeights
from gemmascope.sites import SITES, find, find_layer
from gemmascope.steering.direction import Direction
from gemmascope.stores.reading.store import Store
from gemmascope.stores.spec import ArraySpec, arrays_of
from gemmascope.values import Array, is_array, real_tensor

_FORMS = (
    "'head', 'neuron', ('head', layer), ('neuron', layer, numbers), a dictionary, (dictionary, features), a direction, or "
    "(site, layer, vectors)"
)
_WORDS = {"head": HEAD, "heads": HEAD, "neuron": NEURON, "neurons": NEURON}


class Place:
    """Where rows come from: a model that runs texts, or a store, with its model where that is at hand."""

    def __init__(self, model: Model | None, store: Store | None) -> None:
        self.model, self.store = model, store

    @property
    def n_layers(self) -> int:
        if self.store is not None:
            return self.store.manifest.n_layers
        assert self.model is not None
        return self.model.n_layers

    @property
    def name(self) -> str:
        """The model's name."""
        if self.model is not None:
            return self.model.name
        assert self.store is not None
        return self.store.manifest.model

    @property
    def bos_id(self) -> int | None:
        """The id of `<bos>`, where a store has rows of it. ExamplesError if no model says which that is."""
        if self.store is None or not self.store.manifest.spec.bos:
            return None
        if self.model is None:
            raise ExamplesError(
                f"{self.store.path} has rows of <bos> (bos=True), which top examples leave out: give model=, which says "
                "what token that is"
            )
        return self.model.tokenizer.bos_id if self.model.has_tokenizer else self.model.config.bos_id

    def has(self, site: str, layer: int | None) -> bool:
        """Whether rows of a site are to be had."""
        return self.store is None or (site, layer) in self.store.keys

    def array(self, site: str, layer: int | None) -> ArraySpec:
        """The array of a site. SiteError for one that a store does not hold."""
        if self.store is not None:
            return self.store.array(site, layer)
        assert self.model is not None
        return arrays_of([(site, layer)], None, self.model)[0]


def groups_of_units(units: object, layers: object, place: Place) -> list[UnitGroup]:
    """The groups of units that a user asks for.

    Args:
        units: One of the forms that the error lists, or a list of them.
        layers: For heads and neurons without a layer of their own; None for all.
        place: Where rows come from.

    Raises:
        ExamplesError, SiteError, DictionaryError: Something else, or what the model or the store does not have.
    """
    listed = [units] if not is_list(units) or is_array(units) or _is_tuple_form(units) else as_list(
        units, "units", error=ExamplesError
    )  # fmt: skip
    if not listed:
        raise ExamplesError(f"the list of units is empty: give one or several of {_FORMS}")
    takes_layers = any(isinstance(one, str) for one in listed)
    if layers is not None and not takes_layers:
        raise ExamplesError(f"layers={short_repr(layers)} goes with 'head' or 'neuron', and units names neither without one")
    groups = [group for one in listed for group in _groups(one, layers, place)]
    names = [group.name for group in groups]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        one = ", several of one place as (site, layer, vectors)" if twice[0].startswith(DIRECTION) else ""
        raise ExamplesError(f"units names {legible_line(twice[0])} twice: name each once{one}")
    return groups


def _is_tuple_form(units: object) -> bool:
    """Whether this is one form of units that is written as a tuple, and no list of several."""
    if not isinstance(units, tuple) or len(units) not in (2, 3):
        return False
    if isinstance(units[0], DictionaryWeights):
        return len(units) == 2 and not isinstance(units[1], (DictionaryWeights, Direction, str, tuple))
    return isinstance(units[0], str) and (is_whole(units[1]) or (len(units) == 3 and units[1] is None))


def _groups(one: object, layers: object, place: Place) -> list[UnitGroup]:
    if isinstance(one, DictionaryWeights):
        return [_features(one, None, place)]
    if isinstance(one, Direction):
        return [_direction(one, place)]
    if isinstance(one, str):
        if one not in _WORDS:
            raise ExamplesError(f"units are {_FORMS}; given {short_repr(one)}")
        return [_layer_units(_WORDS[one], layer, None, place) for layer in _layers(_WORDS[one], layers, place)]
    if not isinstance(one, tuple) or not _is_tuple_form(one):
        raise ExamplesError(f"units are {_FORMS}, or a list of these; given {short_repr(one)}")
    if isinstance(one[0], DictionaryWeights):
        return [_features(one[0], one[1], place)]
    if one[0] in _WORDS:
        layer = find_layer(one[1], place.n_layers)
        return [_layer_units(_WORDS[one[0]], layer, one[2] if len(one) == 3 else None, place)]
    if len(one) != 3:
        raise ExamplesError(f"units are {_FORMS}; given {short_repr(one)}")
    return [_vectors(one[0], one[1], one[2], place)]


def _layers(kind: str, layers: object, place: Place) -> list[int]:
    if layers is not None:
        numbers = as_numbers(layers)
        if not numbers:
            raise ExamplesError(f"layers is a number or a list of them, or None for all; given {short_repr(layers)}")
        return [find_layer(number, place.n_layers) for number in numbers]
    sites = ("head_out", "z") if kind == HEAD else ("mlp_act",)
    found = [layer for layer in range(place.n_layers) if any(place.has(site, layer) for site in sites)]
    if not found:
        assert place.store is not None
        raise SiteError(
            f"{place.store.path} holds no layer of {' or '.join(sites)}, from which {kind}s are read; it holds "
            f"{place.store.manifest.spec.arrays_text}. Harvest that too, or give texts instead of the store"
        )
    return found


def _layer_units(kind: str, layer: int, numbers: object, place: Place) -> UnitGroup:
    name = f"{kind}s of layer {layer}"
    if kind == NEURON:
        array = place.array("mlp_act", layer)
        return Neurons(_numbers(numbers, array.width, name), array.site, layer, name)
    site = "head_out" if place.has("head_out", layer) else "z"
    array = place.array(site, layer)
    if site == "z" and place.model is None:
        raise ExamplesError(
            f"{name} are read from z, which this store holds, with the weights of {legible_line(place.name)}: give model=, "
            "or harvest head_out"
        )
    return Heads(_numbers(numbers, array.shape[0], name), site, layer, name, model=place.model)


def _features(sae: DictionaryWeights, features: object, place: Place) -> UnitGroup:
    if place.model is not None:
        sae.require_fit(place.model)
    name = f"features of {sae.call}"
    array = place.array(sae.read_from, sae.layer)
    if array.width != sae.d_in:
        raise ExamplesError(
            f"the dictionary {sae.call} reads {sae.d_in} numbers, and {array.name} of {legible_line(place.name)} has "
            f"{array.width}"
        )
    return SaeFeatures(_numbers(features, sae.n_features, name), array.site, array.layer, name, sae=sae)


def _direction(direction: Direction, place: Place) -> UnitGroup:
    array = place.array(direction.site, direction.layer)
    of_head = "" if direction.head is None else f", head {direction.head}"
    name = f"direction at {array.name}{of_head}"
    return _directions(direction.unit[None], array, direction.head, name)


def _vectors(site: str, layer: object, vectors: object, place: Place) -> UnitGroup:
    address = find(site, place.n_layers, layer)  # type: ignore[arg-type]
    if SITES[address.site.name].is_edges:
        raise SiteError(f"'{address.site.name}' has a value for each pair of positions, and directions are of rows")
    array = place.array(*address.key)
    rows = real_tensor(vectors, "the vectors", ExamplesError)
    rows = rows[None] if rows.dim() == 1 else rows
    if rows.dim() != 2 or not rows.shape[0] or not bool(torch.isfinite(rows).all()):
        raise ExamplesError(f"vectors are finite numbers [d] or [vector, d]; given shape {tuple(rows.shape)}")
    return _directions(rows.detach().float(), array, None, f"directions at {array.name}")


def _directions(vectors: torch.Tensor, array: ArraySpec, head: int | None, name: str) -> UnitGroup:
    width = array.width if head is None else array.shape[-1]
    if vectors.shape[1] != width:
        raise ExamplesError(f"{name}: rows have {width} numbers, and the vectors {vectors.shape[1]}")
    return Directions(np.arange(len(vectors)), array.site, array.layer, name, vectors=vectors, head=head)


def _numbers(numbers: object, n: int, name: str) -> Array:
    if numbers is None:
        return np.arange(n)
    found = as_numbers(numbers)
    if not found or not all(is_whole(one) and 0 <= int(one) < n for one in found):
        raise ExamplesError(f"{name} go from 0 to {n - 1}; given {short_repr(numbers)}")
    return np.unique([int(one) for one in found if is_whole(one)])
