"""Graphs as Neuronpedia's viewer reads them: nodes and links in JSON, by its schema.

The bias node is not part of the schema, and is left out. A feature's number in a file pairs its layer with its number there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gemmascope.arguments import is_whole, short_repr
from gemmascope.circuits.graph.data import About, GraphData, Scores
from gemmascope.circuits.graph.nodes import BIAS, EMBEDDING, ERROR, FEATURE, NodeKeys, Unit
from gemmascope.circuits.graph.outputs import Logits, Output
from gemmascope.circuits.graph.rows import Rows
from gemmascope.errors import GraphError
from gemmascope.files.json_reader import read_json
from gemmascope.files.paths import user_path

TYPES = ("cross layer transcoder", "mlp reconstruction error", "embedding", "logit")
_NAN = float("nan")

# A JSON object, whose values are checked as they are read.
Json = Mapping[str, Any]


def as_json(graph: GraphData, slug: str | None, scan: str | None, source_set: str | None) -> dict[str, object]:
    """See AttributionGraph.to_neuronpedia."""
    if len(sites := {unit.site for unit in graph.keys.units}) > 1:
        raise GraphError(
            f"Neuronpedia's format numbers features by layer alone, and this graph has features at several sites of a layer "
            f"({', '.join(sorted(sites))}), which would be one there: make a graph of the dictionaries of one site, or keep "
            "this one by graph.save(path)"
        )
    prompt = "".join(graph.about.tokens)
    name = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "graph"
    metadata: dict[str, object] = {
        "slug": slug or name,
        "scan": scan or graph.about.model.removeprefix("google/"),
        "prompt_tokens": list(graph.about.tokens),
        "prompt": prompt,
        "schema_version": 1,
        "info": {"generator": {"name": "gemmascope"}},
    }
    if source_set is not None:
        metadata["feature_details"] = {"neuronpedia_source_set": source_set}
    kind = graph.decoded[0].tolist()
    stays = [one != BIAS for one in kind]
    arrows = graph.arrows
    listed = zip(arrows.source.tolist(), arrows.target.tolist(), arrows.weight.tolist(), strict=True)
    groups = [[label, *ids] for label, ids in graph.supernodes.items()]
    pins = sorted({one for ids in graph.supernodes.values() for one in ids})
    return {
        "metadata": metadata,
        "qParams": {"pinnedIds": pins, "supernodes": groups, "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": [_node(graph, index) for index, keep in enumerate(stays) if keep],
        "links": [{"source": graph.ids[s], "target": graph.ids[t], "weight": weight} for s, t, weight in listed],
    }


def _node(graph: GraphData, index: int) -> dict[str, object]:
    kind, unit, _, feature = (int(part[index]) for part in graph.decoded)
    name, pos = graph.ids[index], graph.positions[index]
    node: dict[str, object] = {
        "node_id": name, "ctx_idx": pos, "jsNodeId": name, "clerp": graph.labels.get(name, ""), "feature_type": TYPES[kind],
        "influence": float(graph.cumulative[index]), "token_prob": 0.0, "is_target_logit": False, "run_idx": 0,
        "reverse_ctx_idx": 0,
    }  # fmt: skip
    if kind in (FEATURE, ERROR):
        layer = graph.keys.units[unit].layer
        number = pair(layer, feature) if kind == FEATURE else -1
        node |= {"layer": str(layer), "feature": number, "jsNodeId": f"{layer}_{feature if kind == FEATURE else pos}-0"}
        return node | ({"activation": float(graph.activation[index])} if kind == FEATURE else {})
    if kind == EMBEDDING:
        return node | {"layer": "E", "feature": pos, "clerp": node["clerp"] or f'Emb: "{graph.about.tokens[pos]}"'}
    output = graph.outputs[feature]
    number = int(name.split("_")[1])
    clerp = node["clerp"] or f'Output "{output.label}" (p={output.weight:.3f})'
    of_output = {"token_prob": output.weight, "is_target_logit": feature == 0, "clerp": clerp}
    return node | of_output | {"layer": str(graph.about.n_layers + 1), "feature": number}


def pair(layer: int, feature: int) -> int:
    """One number for a layer and a feature (Cantor's pairing)."""
    return (layer + feature) * (layer + feature + 1) // 2 + feature


def read_neuronpedia(path: str | os.PathLike[str]) -> GraphData:
    """See gs.open_neuronpedia."""
    path = user_path(path, error=GraphError, what="a graph")
    content = read_json(path, error=GraphError)
    try:
        return _graph_of(content)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise GraphError(
            f"{path} is no graph by Neuronpedia's schema (metadata, qParams, nodes, links): {type(error).__name__}: {error}"
        ) from error


def _graph_of(content: Json) -> GraphData:
    metadata, nodes = content["metadata"], [one for one in content["nodes"] if one["feature_type"] in TYPES]
    tokens = tuple(str(token) for token in metadata["prompt_tokens"])
    of_type = {kind: [one for one in nodes if one["feature_type"] == kind] for kind in TYPES}
    logits = of_type["logit"]
    if not logits or len({one["node_id"] for one in nodes}) < len(nodes):
        raise ValueError("it has no logit, or two nodes of one id")
    n_layers = _whole(logits[0]["layer"]) - 1
    ids = [-1] * len(tokens)
    for one in of_type["embedding"]:
        ids[_whole(one["ctx_idx"])] = _whole(one["node_id"].split("_")[1])
    features = [_feature(one) for one in of_type[TYPES[FEATURE]]]
    width = 1 + max((feature for _, feature, _ in features), default=0)
    units = tuple(Unit("mlp_out", layer, width, str(metadata["scan"])) for layer in range(n_layers))
    outputs = tuple(_output(one, n_layers) for one in logits)
    keys = NodeKeys(units, len(tokens), len(outputs))
    at = _keys(keys, nodes)
    vocab_size = 1 + max([*ids, *(one.token for one in outputs if one.token is not None)])
    pos = _whole(logits[0]["ctx_idx"])
    about = About(str(metadata["scan"]), "", n_layers, vocab_size, tuple(ids), tokens, "transcoder", pos)
    node_keys = torch.tensor(sorted([*at.values(), keys.bias]))
    place = torch.searchsorted(node_keys, torch.tensor([at[one["node_id"]] for one in nodes]))
    activation, shares = torch.full((len(node_keys),), _NAN), torch.ones(len(node_keys), dtype=torch.float64)
    activation[place] = torch.tensor([_NAN if (a := one.get("activation")) is None else float(a) for one in nodes])
    known = all(one.get("influence") is not None for one in of_type[TYPES[FEATURE]])
    shares[place] = torch.tensor([float(one.get("influence") or 1.0) for one in nodes], dtype=torch.float64)
    nothing = Logits(torch.zeros(len(outputs), 0), pos, torch.full((len(outputs),), _NAN))
    rows = _rows(keys, content["links"], at)
    whole = (_shares_apart(shares), shares, Scores(_NAN, _NAN)) if known and features else None
    graph = GraphData(about, keys, outputs, nothing, node_keys, activation, rows, whole=whole)
    names = {one["node_id"]: graph.ids[i] for one, i in zip(nodes, place.tolist(), strict=True)}
    graph.labels = {names[one["node_id"]]: one["clerp"] for one in of_type[TYPES[FEATURE]] if one.get("clerp")}
    for label, *members in content.get("qParams", {}).get("supernodes", []):
        graph.supernodes[str(label)] = [names[one] for one in members if one in names]
    return graph


def _feature(node: Json) -> tuple[int, int, int]:
    """The layer, number and position of a feature."""
    return _whole(node["layer"]), _whole(node["node_id"].split("_")[1]), _whole(node["ctx_idx"])


def _whole(value: object) -> int:
    """A whole number of a file: some writers give layers as texts. ValueError for 2.7 and the like."""
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]+", value):
        return int(value)
    if not is_whole(value):
        raise ValueError(f"a whole number is expected, and it has {short_repr(value)}")
    return int(value)


def _output(node: Json, n_layers: int) -> Output:
    token = _whole(node["node_id"].split("_")[1])
    found = re.fullmatch(r'Output "(.*)" \(p=[0-9.]+\)', str(node.get("clerp", "")), flags=re.DOTALL)
    return Output(found[1] if found else str(node.get("clerp") or token), token, float(node.get("token_prob") or 0.0))


def _keys(keys: NodeKeys, nodes: Sequence[Json]) -> dict[str, int]:
    """The key of each node by its id in the file."""
    found, n_logits = {}, 0
    for one in nodes:
        kind, pos = TYPES.index(one["feature_type"]), _whole(one["ctx_idx"])
        if not 0 <= pos < keys.n_pos:
            raise ValueError(f"node {one['node_id']} is at position {pos} of {keys.n_pos}")
        if kind == FEATURE:
            layer, feature, _ = _feature(one)
            key = int(keys.features(layer, torch.tensor([pos]), torch.tensor([feature])))
        elif kind == ERROR:
            key = int(keys.errors(_whole(one["layer"]))[pos])
        elif kind == EMBEDDING:
            key = int(keys.embeddings[pos])
        else:
            key, n_logits = int(keys.logits[n_logits]), n_logits + 1
        found[str(one["node_id"])] = key
    return found


def _rows(keys: NodeKeys, links: Sequence[Json], at: Mapping[str, int]) -> Rows:
    known = [one for one in links if one["source"] in at and one["target"] in at]
    targets, target = torch.unique(torch.tensor([at[one["target"]] for one in known]), return_inverse=True)
    targets = torch.unique(torch.cat((targets, keys.logits)))
    target = torch.searchsorted(targets, torch.tensor([at[one["target"]] for one in known]))
    source = torch.tensor([at[one["source"]] for one in known])
    weight = torch.tensor([float(one["weight"]) for one in known])
    order = (target * (1 + len(known)) + weight.abs().argsort(descending=True).argsort()).argsort()
    target, source, weight = target[order], source[order], weight[order]
    nothing = torch.zeros(len(targets))
    total = nothing.index_add(0, target, weight.abs())
    error = nothing.index_add(0, target, weight.abs() * (keys.kinds(source) == ERROR))
    return Rows(targets, torch.full_like(nothing, _NAN), nothing, nothing.clone(), total, error, target, source, weight)


def _shares_apart(cumulative: Tensor) -> Tensor:
    """Each node's own share of the influence, from the shares that it and stronger ones hold."""
    values, order = cumulative.sort()
    own = values.diff(prepend=values.new_zeros(1))
    return torch.empty_like(own).scatter_(0, order, own)
