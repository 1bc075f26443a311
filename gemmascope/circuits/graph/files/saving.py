"""Graphs in files: safetensors with metadata in JSON, as traces are; no pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gemmascope.circuits.graph.data import About, GraphData, Scores
from gemmascope.circuits.graph.files.journal import GraphJournal, read_journal
from gemmascope.circuits.graph.nodes import NodeKeys, Unit
from gemmascope.circuits.graph.outputs import Logits, Output
from gemmascope.circuits.graph.rows import Rows
from gemmascope.errors import GraphError
from gemmascope.files.json_reader import parse_json
from gemmascope.files.paths import user_path
from gemmascope.files.writing import write_file

VERSION = 1
_KEY = "gemmascope.graph"
_ROWS = "rows."

# A JSON object, whose values are checked as they are read.
Json = Mapping[str, Any]


def save_data(graph: GraphData, path: str | os.PathLike[str]) -> None:
    """Write a graph's numbers, labels and supernodes, whole or not at all. GraphError if the place cannot be written."""
    from safetensors.torch import save

    tensors = {"nodes": graph.node_keys, "activation": graph.activation, "logits.vectors": graph.logits.vectors.cpu()}
    tensors["logits.inputs"] = graph.logits.inputs.cpu()
    tensors |= {f"{_ROWS}{one.name}": getattr(graph.rows, one.name) for one in fields(Rows)}
    metadata: dict[str, object] = {
        "version": VERSION,
        "about": asdict(graph.about),
        "units": [asdict(unit) for unit in graph.keys.units],
        "outputs": [asdict(output) for output in graph.outputs],
        "labels": graph.labels,
        "supernodes": graph.supernodes,
    }
    if graph.whole is not None:
        tensors |= {"whole.influence": graph.whole[0], "whole.cumulative": graph.whole[1]}
        metadata["scores"] = asdict(graph.whole[2])
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_file(path, save(contiguous, {_KEY: json.dumps(metadata)}), error=GraphError)


def read_data(path: str | os.PathLike[str]) -> GraphData:
    """A graph's numbers. GraphError for a file that is not there, is no graph, or is damaged."""
    path = user_path(path, error=GraphError, what="a graph")
    if path.is_file() and GraphJournal.is_of(path):
        return read_journal(path)
    metadata, tensors = _read(path)
    try:
        return _rebuilt(metadata, tensors)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise GraphError(f"{path} is a damaged graph: {type(error).__name__}: {error}") from error


def _read(path: Path) -> tuple[Json, dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise GraphError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise GraphError(f"{path} cannot be read as a graph: {error}") from error
    if text is None:
        raise GraphError(
            f"{path} is no graph: graph.save(path) writes one, and gs.open_neuronpedia reads Neuronpedia's files"
        )
    metadata = parse_json(text, path, error=GraphError, finite=False)
    if metadata.get("version") != VERSION:
        raise GraphError(
            f"{path} has version {metadata.get('version')!r} of the format, and this gemmascope reads {VERSION}"
        )
    return metadata, tensors


def _rebuilt(metadata: Json, tensors: Mapping[str, Tensor]) -> GraphData:
    about = metadata["about"]
    made = About(**{**about, "ids": tuple(about["ids"]), "tokens": tuple(about["tokens"])})
    outputs = tuple(Output(**one) for one in metadata["outputs"])
    keys = NodeKeys(tuple(Unit(**unit) for unit in metadata["units"]), len(made.ids), len(outputs))
    rows = Rows(**{one.name: tensors[f"{_ROWS}{one.name}"] for one in fields(Rows)})
    logits = Logits(tensors["logits.vectors"], made.pos, tensors["logits.inputs"])
    whole = None
    if "scores" in metadata:
        whole = (tensors["whole.influence"], tensors["whole.cumulative"], Scores(**metadata["scores"]))
    nodes = tensors["nodes"]
    if nodes.dim() != 1 or not bool((nodes[1:] > nodes[:-1]).all()) or not bool(torch.isin(rows.source, nodes).all()):
        raise ValueError("its nodes are not in order, or an edge comes from none of them")
    if not bool(torch.isin(keys.logits, nodes).all()) or len(rows.target) != len(rows.weight):
        raise ValueError("it lacks an output, or an edge its weight")
    return GraphData(
        made, keys, outputs, logits, nodes, tensors["activation"], rows, dict(metadata["labels"]),
        {name: list(ids) for name, ids in metadata["supernodes"].items()}, whole,
    )  # fmt: skip
