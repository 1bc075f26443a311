"""What a graph says beside what the model does: with all held the edges are exact, and edits are the true effect."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from checkpoints import checkpoint_3, model, model_of, prompt
from random_dictionaries import dictionary

import gemmascope as gs
from gemmascope.circuits.frozen import FrozenRun
from gemmascope.circuits.graph.attribution import attribution_graph
from gemmascope.circuits.graph.bases.basis import Basis
from gemmascope.circuits.graph.data import GraphData
from gemmascope.circuits.graph.nodes import FEATURE
from gemmascope.circuits.graph.result import AttributionGraph
from gemmascope.circuits.graph.truth import effects
from gemmascope.circuits.graph.truth.effects import total_effects
from gemmascope.circuits.graph.truth.held import Change, held_effects
from gemmascope.circuits.graph.truth.opened import predicted_moves
from gemmascope.errors import EditError, GraphError
from gemmascope.model.attention import _WholePattern
from gemmascope.model.model import Model
from gemmascope.sae.normalization import LAYER_NORM, Normalization
from gemmascope.sweeps.variants import final_residuals

IDS = prompt(9)
D = 32
RAW = "mlp_raw"


@cache
def dictionaries_of(basis: str) -> list[gs.Dictionary]:
    skip = torch.randn(D, D, generator=torch.Generator().manual_seed(5)) / D**0.5
    scaled = Normalization(LAYER_NORM)
    made: dict[str, list[gs.Dictionary]] = {
        "transcoder": [dictionary(D, "transcoder", i, D, seed=i) for i in range(3)],
        "skip": [dictionary(D, "transcoder", i, D, i, W_skip=skip, output_site="mlp_raw") for i in range(3)],
        "mlp_in": [dictionary(D, "transcoder", i, D, i, input_site="mlp_in") for i in range(3)],
        "resid_post": [dictionary(D, "resid_post", i, seed=i) for i in range(2)],
        "scaled": [dictionary(D, "resid_post", i, seed=i, normalization=scaled) for i in range(2)],
        "mlp_out": [dictionary(D, "mlp_out", i, seed=i) for i in range(2)],
        "z": [dictionary(96, "z", i, seed=i) for i in range(2)],
    }
    return made[basis]


@cache
def graph_of(subject: Model, basis: str) -> AttributionGraph:
    given: dict[str, Any] = {"model": subject, "keep": 10**6, "progress": False}
    if basis == "neuron":
        return attribution_graph(IDS, basis="neuron", max_nodes=40, **given)
    of_mlps = basis in ("transcoder", "skip", "mlp_in")
    return attribution_graph(IDS, basis="transcoder" if of_mlps else "sae", dictionaries=dictionaries_of(basis), **given)


@pytest.mark.parametrize("basis", ["transcoder", "skip", "neuron", "resid_post", "mlp_out", "z", "gemma 3"])
def test_with_all_held_the_edges_are_exact(basis: str) -> None:
    """A doubled feature moves what every node reads by the graph's column, in the model itself."""
    subject = model_of(checkpoint_3("lgl", 2)) if basis == "gemma 3" else model("lgl", 2)
    graph = graph_of(subject, "transcoder" if basis == "gemma 3" else basis)
    check = graph.check(8)
    assert check.held_error < 1e-4
    moves = check.effects.held.abs() > 1e-3
    assert int(moves.sum()) >= 8
    assert len(check.to_dataframe()) == 8 * len(graph.outputs)


def test_a_graph_of_too_few_edges_is_not_called_exact() -> None:
    subject = model("lgl", 2)
    dictionaries = [dictionary(D, "transcoder", i, D, seed=i) for i in range(3)]
    check = attribution_graph(IDS, model=subject, dictionaries=dictionaries, keep=1, progress=False).check(5)
    assert not check.effects.is_whole.any()
    assert math.isnan(check.held_error)


def test_an_open_effect_is_that_of_the_edit() -> None:
    """Against a splice of the feature in a run of its own; and the prediction adds up all paths."""
    subject = model("lgl", 2)
    graph = graph_of(subject, "transcoder")
    check = graph.check(5)
    trace, weight = gs.trace(IDS, model=subject), subject.network.model.embed_tokens.weight.float()
    directions = weight[[one.token for one in graph.outputs]] - weight.mean(0)
    for name, true in zip(check.changed, check.effects.true, strict=True):
        layer, feature, pos = map(int, name.split("_"))
        activation = float(graph.activation[graph.index(name)])
        splice = gs.splice(dictionary(D, "transcoder", layer, D, seed=layer), {feature: 2 * activation}, pos=pos)
        changed = gs.trace(IDS, model=subject, edits=[splice])
        assert torch.allclose(directions @ (changed["final"][-1] - trace["final"][-1]), true.float(), atol=1e-3)
        direct = gs.trace(IDS, model=subject, edits=graph.edits(name, scale=2.0))
        assert torch.allclose(direct.next_logits, changed.next_logits, atol=1e-3)
    assert check.effects.true.abs().max() > 0.01
    matrix = torch.tensor(graph.matrix().values).double()
    size = torch.where(graph.decoded[0] == FEATURE, graph.activation.double(), torch.inf)
    step = matrix / size[:, None]
    expected, power = matrix.clone(), matrix.clone()
    for _ in range(4):
        power = power @ step
        expected += power
    outputs = graph.index_of(graph.keys.logits)
    assert torch.allclose(total_effects(graph)[:, :-1], expected[outputs][:, :-1], atol=1e-6)
    assert -1 <= check.correlation <= 1
    assert check.plot().data
    assert "correlation" in repr(check)


ALL = ["transcoder", "skip", "mlp_in", "neuron", "resid_post", "scaled", "mlp_out", "z"]


@pytest.mark.parametrize("basis", ALL)
def test_what_every_node_reads_in_a_changed_run_is_what_an_edited_trace_says(basis: str) -> None:
    """Against the dictionary's own encoding, or the neurons, of traces with graph.edits, one run at a time."""
    subject = model("lgl", 2)
    graph = graph_of(subject, basis)
    before, compared = read_in(gs.trace(IDS, model=subject), basis), 0
    for name in strongest(graph, 3, layer=0):
        check = graph.intervene(name, scale=2.0)
        found = check.nodes
        after = read_in(gs.trace(IDS, model=subject, edits=graph.edits(name, scale=2.0)), basis)
        features, outputs = (found[found["kind"] == kind] for kind in ("feature", "logit"))
        for node, true in zip(features["node"], features["true"], strict=True):
            key = node.split(".")[-1]
            if key in before and key in after:  # of a feature that is off a dictionary says no input
                assert true == pytest.approx(after[key] - before[key], abs=2e-4)
                compared += 1
        expected = check.to_dataframe()
        assert outputs["true"].tolist() == pytest.approx(expected["true"].tolist(), abs=1e-4)
        assert outputs["predicted"].tolist() == pytest.approx(expected["predicted"].tolist(), abs=1e-6)
        assert features["true"].abs().max() > 1e-3
    assert compared > 10


def strongest(graph: AttributionGraph, n: int, layer: int) -> list[str]:
    """The features of a layer with the most influence, at positions before the last."""
    table = graph.nodes.query("kind == 'feature' and layer == @layer and pos < @graph.about.pos")
    return list(table.nlargest(n, "influence")["id"])


def read_in(trace: gs.Trace, basis: str) -> dict[str, float]:
    """The input of every neuron in a run, or of every feature that is on, by the end of its node's id."""
    layers = range(trace.model.n_layers)
    if basis == "neuron":
        acts = [trace["mlp_act", layer] for layer in layers]
        return {
            f"{i}_{n}_{p}": float(act[p, n]) for i, act in enumerate(acts) for p in range(9) for n in range(act.shape[1])
        }
    found: dict[str, float] = {}
    for one in dictionaries_of(basis):
        features = one.encode(trace)
        active = zip(features.feature.tolist(), features.pos.tolist(), features.value.tolist(), strict=True)
        found |= {f"{one.layer}_{feature}_{pos}": value for feature, pos, value in active}
    return found


def test_predictions_are_the_sums_over_all_paths() -> None:
    """Against powers of the matrix of edges, for several changes at once."""
    graph = graph_of(model("lgl", 2), "transcoder")
    few = [i for i in graph.influence.topk(40).indices.tolist() if graph.decoded[0][i] == FEATURE][:3]
    change = {few[0]: 1.0, few[1]: -0.5, few[2]: 2.0}
    matrix = torch.tensor(graph.matrix().values).double()
    amounts = torch.zeros(len(graph), dtype=torch.float64)
    amounts[list(change)] = torch.tensor(list(change.values()), dtype=torch.float64)
    size = torch.where(graph.decoded[0] == FEATURE, graph.activation.double(), torch.inf)
    expected, current = torch.zeros_like(amounts), amounts
    for _ in range(5):
        moves = matrix @ current
        expected, current = expected + moves, moves / size
    found = predicted_moves(graph, [change])[0]
    assert torch.allclose(found, expected, atol=1e-6)
    assert int((found.abs() > 1e-3).sum()) > 5


def test_with_patterns_held_only_mlps_bend() -> None:
    """A run whose patterns and scales are patched with the graph's own gives the same, and no MLP means no error."""
    subject = model("lgl", 2)
    graph = graph_of(subject, "resid_post")
    last = list(graph.nodes.query("kind == 'feature' and layer == 1").nlargest(3, "influence")["id"])
    held = graph.intervene(last, hold="patterns")
    base = gs.trace(IDS, model=subject)
    frozen = [gs.patch(site, base, layer=2) for site in ("pattern", *("attn_out_scale", "mlp_in_scale", "mlp_out_scale"))]
    frozen.append(gs.patch("attn_in_scale", base, layer=2))
    changed = gs.trace(IDS, model=subject, edits=[*graph.edits(last), *frozen])
    vectors = graph.logits.vectors
    expected = vectors @ (changed["resid_post", -1][-1] - base["resid_post", -1][-1])
    assert held.to_dataframe()["true"].tolist() == pytest.approx(expected.tolist(), abs=1e-3)
    open_run = graph.intervene(last)
    assert open_run.to_dataframe()["true"].tolist() != pytest.approx(expected.tolist(), abs=1e-3)
    assert "patterns and scales held" in repr(held)
    with pytest.raises(GraphError, match="hold is one of"):
        graph.intervene(last, hold="all")


def test_one_change_of_one_output_says_both_moves_and_no_correlation() -> None:
    graph = attribution_graph(IDS, model=model("lgl", 2), basis="neuron", targets=[3], max_nodes=20, progress=False)
    check = graph.intervene(strongest(graph, 1, layer=0)[0])
    (row,) = check.to_dataframe().to_dict("records")
    says = f"with nothing held predicted {row['predicted']:+.4g} and true {row['true']:+.4g}, and a correlation of"
    assert repr(check).startswith("GraphCheck of 1 change: held")
    assert says in repr(check)


def test_several_groups_each_with_its_factor() -> None:
    graph = graph_of(model("lgl", 2), "transcoder")
    few = [graph.ids[i] for i in graph.influence.topk(200).indices.tolist() if graph.decoded[0][i] == FEATURE][:4]
    graph.group("one", few[:2])
    both = graph.intervene({"one": 0.0, few[2]: 2.0})
    apart = graph.intervene("one").effects.direct + graph.intervene(few[2], scale=2.0).effects.direct
    assert torch.allclose(both.effects.direct, apart)
    assert both.changed == (f"one x 0, {few[2]} x 2",)
    edits = [*graph.edits("one"), *graph.edits(few[2], scale=2.0)]
    subject = model("lgl", 2)
    each = [gs.trace(IDS, model=subject, edits=one).logits for one in (edits, graph.edits({"one": 0.0, few[2]: 2.0}))]
    assert torch.equal(*each)
    with pytest.raises(GraphError, match="named twice, with two factors"):
        graph.intervene({"one": 0.0, few[0]: 2.0})
    with pytest.raises(GraphError, match="leave scale and value out"):
        graph.intervene({"one": 0.0}, scale=1.0)
    with pytest.raises(GraphError, match="an empty mapping"):
        graph.edits({})


def test_a_change_without_end_is_an_error() -> None:
    graph = graph_of(model("lgl", 2), "transcoder")
    name = graph.check(1).changed[0]
    with pytest.raises(EditError, match=r"infin|NaN"):
        graph.intervene(name, scale=1e38)


def test_the_picture_has_a_point_for_every_node_and_output() -> None:
    graph = graph_of(model("lgl", 2), "transcoder")
    check = graph.check(4)
    figure = check.plot()
    points = [one for one in figure.data if one.mode == "markers"]
    nodes = check.nodes.query("kind == 'feature'")
    assert [len(one.x) for one in points] == [len(nodes), 4 * len(graph.outputs)]
    assert list(points[0].y) == pytest.approx(nodes["true"].tolist())
    assert f"{check.node_correlation:.2f}" in figure.layout.annotations[0].text


def test_interventions() -> None:
    """A group is changed together; off, scaled or set; the edits do the same in a trace, and in generation."""
    subject = model("lgl", 2)
    graph = graph_of(subject, "transcoder")
    few = [graph.ids[i] for i in graph.influence.topk(200).indices.tolist() if graph.decoded[0][i] == FEATURE][:3]
    graph.group("few", few)
    off = graph.intervene("few")
    assert off.changed == ("few",)
    assert off.held_error < 1e-4
    one_by_one = sum(graph.intervene(name).effects.held for name in few)
    assert torch.allclose(off.effects.held, one_by_one, atol=1e-4)
    doubled = graph.intervene("few", scale=2.0)
    assert torch.allclose(off.effects.direct, -doubled.effects.direct)
    activation = float(graph.activation[graph.index(few[0])])
    as_value = graph.intervene(few[0], value=3 * activation)
    assert torch.allclose(as_value.effects.true, graph.intervene([few[0]], scale=3.0).effects.true, atol=1e-4)
    edited = gs.trace(IDS, model=subject, edits=graph.edits("few"))
    assert not torch.allclose(edited.next_logits, gs.trace(IDS, model=subject).next_logits)
    text = gs.generate(IDS, model=subject, edits=graph.edits("few"), max_new_tokens=3)
    again = gs.trace(text.ids, model=subject, edits=graph.edits("few"))
    assert again.logits[len(IDS) - 1 : -1].argmax(-1).tolist() == text.ids[len(IDS) :].tolist()
    with pytest.raises(GraphError, match="give one of them"):
        graph.edits("few", scale=1.0, value=2.0)
    with pytest.raises(GraphError, match="only features and neurons"):
        graph.intervene("bias")


@pytest.mark.parametrize("basis", ["transcoder", "neuron", "z"])
def test_changes_in_parts_are_those_together(monkeypatch: pytest.MonkeyPatch, basis: str) -> None:
    """Changes go through the layers as many at a time as the memory takes, and no whole pattern is made."""
    graph = graph_of(model("lgl", 2), basis)
    whole = graph.check(7).effects
    n_runs: list[int] = []
    rows_at_once: list[int] = []

    def held(graph: GraphData, run: FrozenRun, basis: Basis, changes: Sequence[Change]) -> torch.Tensor:
        n_runs.append(len(changes))
        return held_effects(graph, run, basis, changes)

    def final(model: Model, bases: Any, variants: Sequence[Any]) -> Any:
        rows_at_once.append(len(variants))
        return final_residuals(model, bases, variants)

    monkeypatch.setattr(effects, "held_effects", held)
    monkeypatch.setattr(effects, "final_residuals", final)
    monkeypatch.setattr(effects, "RUN_ROWS", 4 * len(IDS))
    monkeypatch.setattr(effects, "rows_within", lambda memory, model: 2 * len(IDS))
    monkeypatch.setattr(effects, "layer_bytes", lambda config, dtype: 0)
    monkeypatch.setattr(_WholePattern, "add", lambda *_: pytest.fail("a whole pattern was made"))
    parts = graph.check(7).effects
    assert n_runs == [3, 3, 1]
    assert rows_at_once == [2, 2, 2, 1]
    assert whole.true.abs().max() > 1e-2
    for name, value in vars(whole).items():
        assert torch.allclose(value.double(), getattr(parts, name).double(), atol=1e-5), name
