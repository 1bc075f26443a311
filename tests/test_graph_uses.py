"""What is done with attribution graphs: what heads carried, why they attended, labels, and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import checkpoint_3, model, model_of, prompt
from frozen_reference import frozen, logit_direction, relp
from random_dictionaries import dictionary
from torch import Tensor

import gemmascope as gs
from gemmascope.circuits.graph.attribution import attribution_graph
from gemmascope.circuits.graph.nodes import FEATURE
from gemmascope.circuits.graph.result import AttributionGraph
from gemmascope.errors import GraphError, MissingPackageError, SiteError
from gemmascope.model.model import Model
from gemmascope.sae.dictionary import Dictionary

IDS = prompt(11)
D = 32


def transcoders(subject: Model, **more: Any) -> list[Dictionary]:
    return [dictionary(D, "transcoder", layer, D, seed=layer, **more) for layer in range(subject.n_layers)]


def graph_of(subject: Model, **asked: Any) -> AttributionGraph:
    given = {"dictionaries": transcoders(subject), "keep": 10**6, "progress": False, **asked}
    return attribution_graph(IDS, model=subject, **given)


@pytest.mark.parametrize("basis", ["transcoder", "neuron", "skip", "sae"])
def test_heads_and_the_bypass_add_up_to_an_edge(basis: str) -> None:
    """In every layer between, and a head's part is what the edge loses if its output is cut off."""
    subject = model("lgl", 2)
    if basis == "skip":
        skip = torch.randn(D, D, generator=torch.Generator().manual_seed(5)) / D**0.5
        graph = graph_of(subject, dictionaries=transcoders(subject, W_skip=skip))
    elif basis == "sae":
        graph = graph_of(subject, basis="sae", dictionaries=[dictionary(D, "resid_post", 0)])
    else:
        graph = graph_of(subject, basis=basis, max_nodes=30, **({"dictionaries": None} if basis == "neuron" else {}))
    first = graph.index_of(graph.keys.logits[:1]).item()
    kind, unit, pos, _ = (part.tolist() for part in graph.decoded)
    sources = [graph.ids.index(name) for name in graph.edges["source"][graph.edges["target"] == graph.ids[first]][:40]]
    some = [i for i in sources if kind[i] <= 2 and pos[i] < len(IDS) - 1][:6]
    assert len(some) > 3
    matrix = graph.matrix().values
    for source in some:
        found = graph.loadings((graph.ids[first], graph.ids[source]))
        total = found["carried"].sum("head", skipna=False) + found["bypass"]
        above = 0 if kind[source] == 2 else graph.keys.units[unit[source]].layer + 1
        assert total.isel(layer=slice(above, None)).values == pytest.approx(matrix[first, source], abs=1e-4)
        assert bool(total.isel(layer=slice(0, above)).isnull().all())
    assert float(found["carried"].max()) > 1e-3


def test_a_loading_is_what_a_head_carried() -> None:
    subject = model("lgl", 3)
    graph = graph_of(subject, basis="neuron", dictionaries=None, max_nodes=5)
    trace = gs.trace(IDS, model=subject)
    embed = trace.residuals[0].clone().requires_grad_()
    target, source = graph.ids[graph.index_of(graph.keys.logits[:1]).item()], f"E_{IDS[2]}_2"
    token = graph.outputs[0].token
    assert token is not None

    def edge(cut: tuple[int, int] | None) -> float:
        def replace(site: str, layer: int, value: Tensor) -> Tensor:
            if site != "z" or cut is None or layer != cut[0]:
                return value
            kept = value.clone()
            kept[:, cut[1]] = value[:, cut[1]].detach()
            return kept

        stream = frozen(trace, embed, lambda layer, x: relp(trace, layer, x).detach(), replace)
        value = stream.resid_post[-1][-1] @ logit_direction(subject, trace, token, len(IDS) - 1)
        (read,) = torch.autograd.grad(value, embed)
        return float(read[2] @ trace.residuals[0][2])

    found, whole = graph.loadings((target, source)), edge(None)
    for layer in range(3):
        for head in range(8):
            lost = whole - edge((layer, head))
            assert found["carried"].sel(layer=layer, head=head).item() == pytest.approx(lost, abs=2e-5)
    with pytest.raises(GraphError, match="from any node but the bias"):
        graph.loadings((target, "bias"))
    with pytest.raises(GraphError, match="into a feature or an output"):
        graph.loadings((source, target))


@pytest.mark.parametrize("basis", ["transcoder", "neuron", "sae", "gemma 3"])
def test_qk_adds_up_to_the_score(basis: str) -> None:
    subject = model_of(checkpoint_3("lgl", 2)) if basis == "gemma 3" else model("lgl", 2)
    more: dict[str, Any] = {}
    if basis == "neuron":
        more = {"basis": "neuron", "dictionaries": None, "max_nodes": 30}
    elif basis == "sae":
        more = {"basis": "sae", "dictionaries": [dictionary(D, "resid_mid", 1), dictionary(D, "mlp_out", 1)]}
    graph = graph_of(subject, **more)
    scores = gs.trace(IDS, model=subject)["scores", 2]
    for head, q, k in ((0, 9, 7), (5, 10, 10), (3, 8, 0)):
        table = graph.qk((2, head), q, k)
        off = abs(float(table.sum()) - float(scores[head, q, k]))
        assert off <= 1e-5 * float(abs(table).sum())
        names = set(table["query_part"].values)
        assert len(names) == table.sizes["query_part"] > 4
    pruned = graph.prune(0.5)
    assert float(pruned.qk((2, 0), 9, 7).sum()) == pytest.approx(float(scores[0, 9, 7]), rel=1e-3)
    with pytest.raises(GraphError, match="comes after it"):
        graph.qk((2, 0), 3, 5)
    with pytest.raises(GraphError, match="a head is a whole number"):
        graph.qk((2, 8), 5, 3)
    with pytest.raises(SiteError, match="no layer"):
        graph.qk((7, 0), 5, 3)


def test_labels_and_supernodes() -> None:
    graph = graph_of(model("lgl", 1))
    one, two = graph.ids[:2]
    graph.label(one, "a name")
    assert graph.nodes.set_index("id").loc[one, "label"] == "a name"
    graph.group("both", ["a name", two])
    assert graph.supernodes == {"both": [one, two]}
    assert graph.indices("both") == [0, 1]
    few = graph.nodes.head(2)["id"]
    for several in (few, few.to_numpy(), (one, two), (name for name in (one, two))):
        assert graph.indices(several) == [0, 1]
    graph.group("of a table", few)
    assert graph.supernodes.pop("of a table") == [one, two]
    graph.label("a name", "")
    assert graph.labels == {}
    graph.group("both", [])
    assert graph.supernodes == {}
    for wrong, match in (([3], "given 3"), (["9_9_9"], "no node '9_9_9'")):
        with pytest.raises(GraphError, match=match):
            graph.group("other", wrong)  # type: ignore[arg-type]
    with pytest.raises(GraphError, match="no node's id"):
        graph.group(one, [two])


def test_save_and_open(tmp_path: Path) -> None:
    subject = model("lgl", 1)
    graph = graph_of(subject)
    graph.label(graph.ids[0], "first")
    graph.group("pair", graph.ids[:2])
    for one in (graph, graph.prune()):
        one.save(tmp_path / "a.graph")
        read = gs.open_graph(tmp_path / "a.graph")
        assert read.nodes.equals(one.nodes)
        assert read.edges.equals(one.edges)
        assert read.sums.equals(one.sums)
        assert (read.labels, read.supernodes, read.scores) == (one.labels, one.supernodes, one.scores)
    assert len(read.ids) < len(graph.ids)
    edge = tuple(graph.edges.iloc[100][["target", "source"]])
    with pytest.raises(GraphError, match="without its model"):
        read.loadings(edge)
    graph.save(tmp_path / "a.graph")
    live = gs.open_graph(tmp_path / "a.graph", model=subject, dictionaries=transcoders(subject))
    assert live.loadings(edge).equals(graph.loadings(edge))
    with pytest.raises(GraphError, match="its weights or its dtype are others"):
        gs.open_graph(tmp_path / "a.graph", model=model("lgl", 2), dictionaries=transcoders(subject))
    others = [dictionary(D, "transcoder", layer, D, seed=9 + layer) for layer in range(3)]
    with pytest.raises(GraphError, match="not those of the graph"):
        gs.open_graph(tmp_path / "a.graph", model=subject, dictionaries=others)
    with pytest.raises(GraphError, match="there is no file"):
        gs.open_graph(tmp_path / "b.graph")
    content = (tmp_path / "a.graph").read_bytes()
    (tmp_path / "cut.graph").write_bytes(content[:-100])
    with pytest.raises(GraphError, match="cannot be read as a graph"):
        gs.open_graph(tmp_path / "cut.graph")


def test_neuronpedia(tmp_path: Path) -> None:
    """By the schema of its viewer; read again, the graph has the same nodes, edges, shares and groups."""
    graph = graph_of(model("lgl", 1)).prune(0.99, 0.99)
    feature = next(i for i, kind in enumerate(graph.decoded[0].tolist()) if kind == FEATURE)
    graph.label(graph.ids[feature], "a name")
    graph.group("few", [graph.ids[feature]])
    path = tmp_path / "g.json"
    graph.to_neuronpedia(path, scan="gemma-2-2b", source_set="gemmascope-transcoder-16k")
    content = json.loads(path.read_text())
    assert set(content) == {"metadata", "qParams", "nodes", "links"}
    assert content["metadata"]["scan"] == "gemma-2-2b"
    assert content["metadata"]["prompt_tokens"] == list(graph.about.tokens)
    assert content["qParams"]["supernodes"] == [["few", graph.ids[feature]]]
    ids = {node["node_id"] for node in content["nodes"]}
    assert len(ids) == len(content["nodes"]) == len(graph) - 1
    assert {end for link in content["links"] for end in (link["source"], link["target"])} <= ids
    by_id = {node["node_id"]: node for node in content["nodes"]}
    layer, number, pos = map(int, graph.ids[feature].split("_"))
    node = by_id[graph.ids[feature]]
    assert node["feature"] == (layer + number) * (layer + number + 1) // 2 + number
    assert (node["layer"], node["ctx_idx"], node["clerp"]) == (str(layer), pos, "a name")
    assert node["feature_type"] == "cross layer transcoder"
    assert {one["feature_type"] for one in content["nodes"]} == {
        "cross layer transcoder",
        "mlp reconstruction error",
        "embedding",
        "logit",
    }
    logits = [one for one in content["nodes"] if one["feature_type"] == "logit"]
    assert logits[0]["is_target_logit"]
    assert logits[0]["layer"] == "4"
    read = gs.open_neuronpedia(path)
    assert read.ids == graph.ids
    assert read.labels == graph.labels
    assert read.supernodes == graph.supernodes
    listed = graph.edges[graph.edges["source"] != "bias"].sort_values(["target", "source"])
    again = read.edges[read.edges["source"] != "bias"].sort_values(["target", "source"])
    assert listed["weight"].tolist() == pytest.approx(again["weight"].tolist())
    assert torch.allclose(read.cumulative[:-1], graph.cumulative[:-1])
    assert "its scores are not known" in repr(read)
    assert "nan" not in repr(read)
    content["nodes"][0]["ctx_idx"] = 2.7
    for wrong in ("{}", json.dumps(content)):
        path.write_text(wrong)
        with pytest.raises(GraphError, match="no graph by Neuronpedia's schema"):
            gs.open_neuronpedia(path)


def test_neuronpedia_takes_features_of_one_site(tmp_path: Path) -> None:
    """Its format numbers features by layer: those of two sites of a layer would be one."""
    subject = model("lgl", 1)
    by_site = {site: [dictionary(D, site, layer, seed=layer) for layer in (0, 2)] for site in ("mlp_out", "resid_post")}
    several = graph_of(subject, basis="sae", dictionaries=[*by_site["mlp_out"], *by_site["resid_post"]])
    with pytest.raises(GraphError, match=r"several sites of a layer \(mlp_out, resid_post\).* graph.save"):
        several.to_neuronpedia(tmp_path / "g.json")
    for site, dictionaries in by_site.items():
        graph = graph_of(subject, basis="sae", dictionaries=dictionaries).prune()
        graph.to_neuronpedia(tmp_path / f"{site}.json")
        assert gs.open_neuronpedia(tmp_path / f"{site}.json").ids == graph.ids


def test_networkx(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graph_of(model("lgl", 1)).prune()
    made = graph.to_networkx()
    assert set(made) == set(graph.ids)
    assert made.number_of_edges() == len(graph.edges)
    row = graph.edges.iloc[0]
    assert made.edges[row["source"], row["target"]]["weight"] == row["weight"]
    assert made.nodes["bias"]["kind"] == "bias"
    monkeypatch.setitem(__import__("sys").modules, "networkx", None)
    with pytest.raises(MissingPackageError, match="networkx"):
        graph.to_networkx()
