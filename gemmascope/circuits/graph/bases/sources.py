"""From what a user gives as basis= and dictionaries= to the basis of a graph."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from gemmascope.arguments import as_list, one_of, short_repr
from gemmascope.circuits.graph.bases.basis import SITES, Basis
from gemmascope.circuits.graph.bases.dictionaries import DictionaryBasis, LayerDictionaries
from gemmascope.circuits.graph.bases.neurons import NeuronBasis
from gemmascope.errors import DictionaryError, GraphError
from gemmascope.model.model import Model
from gemmascope.sae.cross_layer import CrossLayerTranscoder, load_cross_layer
from gemmascope.sae.dictionary import Dictionary
from gemmascope.sae.load import load_sae
from gemmascope.sites import layers_text

BASES = ("transcoder", "neuron", "sae")
# The source of nano's own transcoders, which are inside the package.
NANO_TRANSCODERS = "nano-transcoders"

# What a transcoder may read and write.
_OF_TRANSCODERS = ("resid_mid", "mlp_in", "mlp_out", "mlp_raw")


def basis_of(basis: object, dictionaries: object, model: Model) -> Basis:
    """The empty basis of a graph.

    Args:
        basis: One of BASES.
        dictionaries: As in gs.attribution_graph; None takes nano's own, which are in the package, if the model is nano.
        model: The model of the graph.

    Raises:
        GraphError: For another basis, dictionaries that are not needed or not given, or a layer without a transcoder.
        DictionaryError: For a source that is not there, or dictionaries of another model.
    """
    basis = one_of(basis, "basis", BASES, error=GraphError)
    if basis == "neuron":
        if dictionaries is not None:
            raise GraphError("neurons need no dictionaries: leave dictionaries= out, or say basis='transcoder' or 'sae'")
        return NeuronBasis(model.config)
    if dictionaries is None and has_own_dictionaries(model):
        dictionaries = NANO_TRANSCODERS if basis == "transcoder" else load_sae("nano", model=model)
    if dictionaries is None:
        raise GraphError(
            f"basis={basis!r} needs dictionaries=: a folder or hub id, a list of what gs.load_sae returns, or what "
            f"gs.load_cross_layer returns; only nano has its own in the package, and this is {model.name!r}. basis='neuron' "
            "needs none"
        )
    return _transcoders(dictionaries, model) if basis == "transcoder" else _autoencoders(dictionaries, model)


def has_own_dictionaries(model: Model) -> bool:
    """Whether the transcoders and the autoencoder inside the package were trained on this model, in this dtype: nano."""
    return model.network_fingerprint == load_sae(NANO_TRANSCODERS, layer=0).trained_for.fingerprint


def _transcoders(given: object, model: Model) -> DictionaryBasis:
    n_layers = model.n_layers
    if isinstance(given, (str, os.PathLike)):
        given = _of_source(given, model)
    if isinstance(given, CrossLayerTranscoder):
        given.require_fit(model)
        whole = given
        return DictionaryBasis(lambda layer: [whole], [_OF_TRANSCODERS] * n_layers, passes_mlp=False)
    if callable(given):
        return DictionaryBasis(_checked(given, model), [_OF_TRANSCODERS] * n_layers, passes_mlp=False)
    listed = _listed(given)
    by_layer = {one.layer: one for one in listed}
    if wrong := [one for one in listed if not one.is_transcoder]:
        raise GraphError(f"basis='transcoder' takes transcoders, which read the MLP's input; given {wrong[0]!r}")
    if len(by_layer) < len(listed):
        raise GraphError(f"two transcoders are of the same layer: {[one.layer for one in listed]}; give one a layer")
    _require_layers([layer for layer in range(n_layers) if layer not in by_layer], model)
    for one in listed:
        one.require_fit(model)
    return DictionaryBasis(lambda layer: [by_layer[layer]], [_OF_TRANSCODERS] * n_layers, passes_mlp=False)


def _autoencoders(given: object, model: Model) -> DictionaryBasis:
    listed = _listed(given)
    places: dict[int, list[Dictionary]] = {}
    for one in listed:
        if one.is_transcoder or one.site not in SITES or one.layer is None:
            raise GraphError(f"basis='sae' takes autoencoders of {', '.join(map(repr, SITES))} of a layer; given {one!r}")
        one.require_fit(model)
        places.setdefault(one.layer, []).append(one)
    for layer, of_layer in places.items():
        sites = [one.site for one in of_layer]
        if len(set(sites)) < len(sites) or {"z", "attn_out"} <= set(sites):
            raise GraphError(f"two dictionaries of layer {layer} stand for the same: {', '.join(sites)}; give one of them")
        of_layer.sort(key=lambda one: SITES[::-1].index(one.site))
    read = [sorted({one.site for one in places.get(layer, [])}) for layer in range(model.n_layers)]
    return DictionaryBasis(lambda layer: places.get(layer, []), [[*one, "resid_mid"] for one in read], passes_mlp=True)


def _listed(given: object) -> list[Dictionary]:
    listed = [given] if isinstance(given, Dictionary) else as_list(given, "dictionaries", error=GraphError)
    dictionaries = [one for one in listed if isinstance(one, Dictionary)]
    if not listed or len(dictionaries) < len(listed):
        wrong = next((one for one in listed if not isinstance(one, Dictionary)), "an empty list")
        raise GraphError(f"dictionaries are what gs.load_sae returns; given {short_repr(wrong)}")
    return dictionaries


def _of_source(source: str | os.PathLike[str], model: Model) -> CrossLayerTranscoder | Callable[[int], Dictionary]:
    """What a folder or hub id holds: a cross-layer transcoder, or one a layer, each loaded when it is asked for."""
    try:
        return load_cross_layer(source, model=model)
    except DictionaryError as no_cross_layer:
        try:
            _of_layer(source, 0, model)
        except DictionaryError as error:
            raise error from no_cross_layer
    return lambda layer: _of_layer(source, layer, model)


def _of_layer(source: str | os.PathLike[str], layer: int, model: Model) -> Dictionary:
    """The transcoder of a layer. Of several, the one that is called canonical: its average L0 is the nearest to 100."""
    try:
        return load_sae(source, layer=layer, model=model)
    except DictionaryError as first:
        try:
            return load_sae(source, layer=layer, l0="canonical", model=model)
        except DictionaryError:
            raise first from None


def _checked(load: Callable[[int], object], model: Model) -> LayerDictionaries:
    """A user's function of the layer, whose results are checked when they are used."""

    def of_layer(layer: int) -> Sequence[Dictionary]:
        one = load(layer)
        if not isinstance(one, Dictionary) or not one.is_transcoder or one.layer != layer:
            _require_layers([layer] if one is None else [], model)
            raise GraphError(f"the transcoder of layer {layer} was asked for; given {one!r}")
        one.require_fit(model)
        return [one]

    return of_layer


def _require_layers(missing: Sequence[int], model: Model) -> None:
    if missing:
        raise GraphError(
            f"there is no transcoder for {', '.join(layers_text([layer]) for layer in missing)} of {model.name!r}: a graph "
            f"needs one for each of its {model.n_layers} layers. basis='neuron' needs none, and basis='sae' passes MLPs"
        )
