"""What a graph says beside what the model does: with all held the edges are exact, and edits are the true effect."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
from gemmascope.errors import GraphError
from gemmascope.model.attention import _WholePattern
from gemmascope.model.model import Model
from gemmascope.sweeps.variants import final_residuals

IDS = prompt(9)
D = 32
RAW = "mlp_raw"


def graph_of(subject: Model, basis: str) -> AttributionGraph:
    skip = torch.randn(D, D, generator=torch.Generator().manual_seed(5)) / D**0.5
    made: dict[str, dict[str, Any]] = {
        "transcoder": {"dictionaries": [dictionary(D, "transcoder", i, D, seed=i) for i in range(3)]},
        "skip": {
            "dictionaries": [dictionary(D, "transcoder", i, D, i, W_skip=skip, output_site="mlp_raw") for i in range(3)]
        },
        "neuron": {"basis": "neuron", "max_nodes": 40},
        "resid_post": {"basis": "sae", "dictionaries": [dictionary(D, "resid_post", i, seed=i) for i in range(2)]},
        "mlp_out": {"basis": "sae", "dictionaries": [dictionary(D, "mlp_out", i, seed=i) for i in range(2)]},
        "z": {"basis": "sae", "dictionaries": [dictionary(96, "z", i, seed=i) for i in range(2)]},
    }
    return attribution_graph(IDS, model=subject, keep=10**6, progress=False, **made[basis])


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
