"""gs.open_graph and gs.open_neuronpedia: graphs from files."""

from __future__ import annotations

import os
from contextlib import suppress

import torch

from gemmascope.circuits.graph.attribution import Dictionaries
from gemmascope.circuits.graph.bases.sources import basis_of
from gemmascope.circuits.graph.encoding import freeze
from gemmascope.circuits.graph.files.neuronpedia import read_neuronpedia
from gemmascope.circuits.graph.files.saving import read_data
from gemmascope.circuits.graph.nodes import FEATURE
from gemmascope.circuits.graph.result import AttributionGraph, result_of
from gemmascope.errors import DictionaryError, GraphError
from gemmascope.loading.default import model_or_nano
from gemmascope.model.model import Model
from gemmascope.model.modes import computes
from gemmascope.run.tracing import trace as run_trace

# How far the activations of features may be from those of the file, in units of the largest.
_TOLERANCE = 1e-3


@computes
def open_graph(
    path: str | os.PathLike[str], *, model: Model | None = None, dictionaries: Dictionaries | None = None
) -> AttributionGraph:
    """A graph that graph.save or gs.attribution_graph(out=...) wrote.

    Args:
        path: The file.
        model: The model of the graph, to compute with it: loadings, qk, check and the like. None: numbers alone, to prune,
            show and export.
        dictionaries: With a model, the dictionaries of the graph, as in gs.attribution_graph; none for neurons.

    Returns:
        The graph with its labels and supernodes.

    Raises:
        GraphError: The file is not there or no graph, or the model or the dictionaries are not those of the graph.

    Examples:
        >>> graph = gs.attribution_graph("Mary and John went to the", basis="neuron", max_nodes=20, progress=False)
        >>> graph.save("mary.graph")
        >>> opened = gs.open_graph("mary.graph", model=gs.load())
        >>> opened.ids == graph.ids
        True
    """
    data = read_data(path)
    if model is None:
        if dictionaries is not None:
            raise GraphError("dictionaries= are of a model: give model= as well, or neither")
        return result_of(data)
    model = model_or_nano(model)
    if model.network_fingerprint != data.about.fingerprint:
        raise GraphError(
            f"the graph is of {data.about.model!r} (fingerprint {data.about.fingerprint}), and {model.name!r} was given, "
            f"with {model.network_fingerprint}: its weights or its dtype are others"
        )
    basis = basis_of(data.about.basis, dictionaries, model)
    run = freeze(run_trace(list(data.about.ids), model=model), basis)
    features = data.node_keys[data.decoded[0] == FEATURE]
    there = data.activation[data.decoded[0] == FEATURE]
    found = None
    if [one.n_features for one in basis.units] == [one.n_features for one in data.keys.units]:
        with suppress(DictionaryError):  # a feature of the file that is not active now
            found = basis.activations(data.keys, features)
    if found is None or not torch.allclose(found, there, atol=_TOLERANCE * float(there.abs().max()), rtol=_TOLERANCE):
        raise GraphError(
            f"the features of {path} have other activations in these dictionaries: they are not those of the graph"
        )
    return result_of(data, run, basis)


def open_neuronpedia(path: str | os.PathLike[str]) -> AttributionGraph:
    """A graph in Neuronpedia's JSON, from this package, circuit-tracer or the site.

    Args:
        path: The file.

    Returns:
        The graph: its tables, pruning and exports work. Its edges are those of the file, so rows need not add up, and what
        computes with a model is not there.

    Raises:
        GraphError: The file is not there, or is no such graph.

    Examples:
        >>> graph = gs.attribution_graph("Mary and John went to the", basis="neuron", max_nodes=20, progress=False)
        >>> graph.prune().to_neuronpedia("mary.json")
        >>> gs.open_neuronpedia("mary.json").about.tokens[-1]
        ' the'
    """
    return result_of(read_neuronpedia(path))
