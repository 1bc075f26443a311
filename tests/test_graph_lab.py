"""The graph lab without a front end: its numbers are those of the graph and of edited runs; settings can be undone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import checkpoint_3, model, model_of, prompt
from random_dictionaries import dictionary

import gemmascope as gs
from gemmascope.circuits.graph import build, memory
from gemmascope.errors import GraphError, LabError, PromptError
from gemmascope.labs.graphs import building
from gemmascope.labs.graphs.lab import GraphLab
from gemmascope.views.graphs.details import raised_tokens
from gemmascope.views.graphs.shown import shown_part

IDS, OTHER = prompt(9), prompt(8)
NEURONS: dict[str, Any] = {"basis": "neuron", "max_nodes": 30, "keep": 10**6, "max_new_tokens": 2, "targets": 5}


@pytest.fixture
def lab() -> Iterator[GraphLab]:
    with gs.graph_lab(IDS, model=model("lgl", 2), **NEURONS) as opened:
        yield opened.wait()


def features(lab: GraphLab, n: int) -> list[str]:
    return list(lab.graph.nodes.query("kind == 'feature'").nlargest(n, "influence")["id"])


def test_a_lab_of_a_graph_shows_its_prompt_as_text_where_that_reads_as_the_same_ids() -> None:
    text = "The boxes on the table"
    graph = gs.attribution_graph(text, max_nodes=8, progress=False)
    ids = graph.about.ids
    for given, shown in ((graph, text), (gs.attribution_graph(ids[1:], max_nodes=8, progress=False), list(ids[1:]))):
        with gs.graph_lab(graph=given, max_new_tokens=1) as opened:
            assert opened.prompt == shown


def test_the_graph_and_its_changes_are_those_of_python(lab: GraphLab) -> None:
    named = {name: value for name, value in NEURONS.items() if name != "max_new_tokens"}
    alone = gs.attribution_graph(IDS, model=lab.model, progress=False, **named)
    assert lab.graph.edges.equals(alone.edges)
    few = features(lab, 4)
    lab.group("few", few[:2])
    lab.scale("few", 0.0)
    lab.scale(few[3], 2.0)
    alone.group("few", few[:2])
    expected = alone.intervene({"few": 0.0, few[3]: 2.0})
    assert lab.result is not None
    assert lab.result.nodes.equals(expected.nodes)
    shown = lab._state()["result"]
    assert isinstance(shown, dict)
    output = shown["outputs"][0]
    assert output["true"] - output["before"] == pytest.approx(expected.to_dataframe()["true"][0], abs=1e-3)
    assert output["predicted"] - output["before"] == pytest.approx(expected.to_dataframe()["predicted"][0], abs=1e-4)
    nodes = expected.nodes.query("kind == 'feature'").set_index("node")
    assert len(shown["nodes"]) > 5
    for node, predicted, true in shown["nodes"]:
        assert (predicted, true) == pytest.approx((nodes.loc[node, "predicted"], nodes.loc[node, "true"]), abs=1e-6)
    assert torch.equal(lab.trace.logits, gs.trace(IDS, model=lab.model, edits=lab.edits).logits)
    assert "few x 0" in repr(lab)


def test_gemma_3() -> None:
    with gs.graph_lab(IDS, model=model_of(checkpoint_3("lgl", 2)), **NEURONS) as opened:
        test_the_graph_and_its_changes_are_those_of_python(opened.wait())


@pytest.mark.parametrize("hold", ["patterns", "everything"])
def test_what_is_held(lab: GraphLab, hold: str) -> None:
    node = features(lab, 1)[0]
    lab.scale(node, 2.0)
    lab.set(hold=hold)
    lab.wait()
    shown = lab._state()["result"]
    assert isinstance(shown, dict)
    check = lab.graph.intervene({node: 2.0}, hold="nothing" if hold == "everything" else hold).nodes.set_index("node")
    columns = ("edges", "held") if hold == "everything" else ("predicted", "true")
    assert shown["nodes"]
    for name, predicted, true in shown["nodes"]:
        assert (predicted, true) == pytest.approx(tuple(check.loc[name, one] for one in columns), abs=1e-5)
        if hold == "everything":
            assert predicted == pytest.approx(true, abs=1e-4)


def test_settings_are_undone_and_graphs_reopened(lab: GraphLab) -> None:
    few = features(lab, 2)
    lab.group("few", few)
    lab.scale("few", 0.5)
    first = lab.graph
    lab.set(prompt=OTHER)
    assert lab.wait().graph.about.ids == tuple(OTHER)
    assert lab.changes == {}
    assert lab.graph.supernodes == {}
    lab.undo()
    assert lab.graph is first
    assert lab.changes == {"few": 0.5}
    assert lab.graph.supernodes == {"few": few}
    lab.undo()
    assert lab.wait().changes == {}
    lab.redo()
    assert lab.wait().changes == {"few": 0.5}
    assert [one.prompt for one in lab.runs()] == [IDS, OTHER]
    lab.reopen(1)
    assert lab.wait().graph.about.ids == tuple(OTHER)
    lab.reopen(0)
    assert lab.wait().changes == {"few": 0.5}
    lab.group("few", [])
    assert lab.wait().changes == {}
    lab.label(few[0], "one")
    lab.scale("one", 0.0)
    assert lab.wait().changes == {few[0]: 0.0}
    lab.reset()
    assert lab.wait().changes == {}
    assert lab.result is None


def test_bad_settings_change_nothing(lab: GraphLab) -> None:
    few = features(lab, 2)
    before = lab._now
    for error, change in (
        (PromptError, lambda: lab.set(prompt=[])),
        (PromptError, lambda: lab.set(answer=10**6)),
        (GraphError, lambda: lab.set(hold="all")),
        (GraphError, lambda: lab.set(colour="red")),
        (GraphError, lambda: lab.set(answer=5, targets=6)),
        (GraphError, lambda: lab.scale("nobody", 0.0)),
        (GraphError, lambda: lab.scale("bias", 0.0)),
        (GraphError, lambda: lab.scale(few[0], float("nan"))),
        (GraphError, lambda: lab.group(few[0], few)),
        (GraphError, lambda: lab.group("tokens", ["bias"])),
        (GraphError, lambda: lab.reopen(7)),
        (LabError, lambda: lab.redo()),
    ):
        with pytest.raises(error):
            change()
        assert lab._now is before
    lab.group("two", few)
    lab.scale("two", 0.0)
    with pytest.raises(GraphError, match="named twice"):
        lab.scale(few[0], 2.0)
    assert lab.changes == {"two": 0.0}


def test_what_is_typed_is_read_or_its_error_stands_in_the_lab(lab: GraphLab) -> None:
    send = lab._handlers()
    send["set"]({"name": "prompt", "text": "no ids"})
    assert lab.error is not None
    assert "write token ids" in lab.error
    send["set"]({"name": "answer", "text": "7"})
    send["set"]({"name": "against", "text": "5"})
    assert lab.wait().targets == gs.logit_diff(7, 5)
    assert lab.graph.outputs[0].token is None
    send["set"]({"name": "answer", "text": ""})
    assert lab.error is not None
    assert "give the answer, too" in lab.error
    few = features(lab, 2)
    send["names"]({"groups": {"a": few[:1], "b": few[1:]}, "labels": {few[0]: "x"}, "factors": {"b": 0.5}})
    lab.wait()
    assert (lab.graph.supernodes, lab.graph.labels, lab.changes) == ({"a": few[:1], "b": few[1:]}, {few[0]: "x"}, {"b": 0.5})


def test_building_is_stopped_with_the_rows_that_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second chunk is stopped in its first layer: the graph has the rows of the first."""
    built = building.Builder.run_chunk
    opened: list[GraphLab] = []
    is_open = threading.Event()

    def run_chunk(self: Any, targets: Any, tell: Any) -> None:
        if self.parts:
            assert is_open.wait(60)
            opened[0].stop()
        built(self, targets, tell)

    monkeypatch.setattr(building.Builder, "run_chunk", run_chunk)
    opened.append(gs.graph_lab(IDS, model=model("lgl", 2), **NEURONS))
    is_open.set()
    lab = opened[0]
    graph = lab.graph
    assert not graph.about.is_finished
    assert len(graph.rows.targets) == len(graph.outputs)
    assert not lab.is_whole
    assert "stopped before all of its rows" in lab.code()
    assert lab.is_stopped
    assert lab._state()["stopped"]
    few = list(graph.nodes.query("kind == 'feature'")["id"][:2])
    lab.group("few", few)
    lab.scale("few", 0.0)
    lab.set(hold="patterns")  # other settings do not go on with it
    assert len(lab.graph.rows.targets) == len(graph.outputs)
    monkeypatch.setattr(building.Builder, "run_chunk", built)
    lab._handlers()["resume"]({})
    assert_is_whole(lab)
    assert (lab.graph.supernodes, lab.changes) == ({"few": few}, {"few": 0.0})
    assert lab.result is not None
    with pytest.raises(LabError, match="building was not stopped: the graph is whole, or under way"):
        lab.resume()
    lab.close()
    with pytest.raises(LabError):
        lab.set(prompt=IDS)
    with pytest.raises(LabError):
        lab.resume()


def assert_is_whole(lab: GraphLab) -> None:
    """The graph of a lab has every row that one has that was built without a pause, bit for bit."""
    graph = lab.graph  # which waits for it
    whole = gs.attribution_graph(IDS, model=lab.model, basis="neuron", max_nodes=30, keep=10**6, targets=5, progress=False)
    assert lab.is_whole
    assert not lab.is_stopped
    assert not lab._state()["stopped"]
    assert "stopped" not in lab.code()
    assert graph.ids == whole.ids
    assert torch.equal(graph.rows.weight, whole.rows.weight)
    assert lab._pictures()["spec"]["nodes"]  # type: ignore[index]


def test_other_settings_go_on_with_a_graph_that_is_being_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """They come within the fourth chunk, whose rows are built again; what is held says nothing of the graph."""
    monkeypatch.setattr(memory, "RESIDENT_ROWS", 36)  # small chunks, several of which are chosen at a time
    monkeypatch.setattr(build, "LEAST_CHOSEN", 12)
    built = building.Builder.run_chunk
    opened: list[GraphLab] = []
    is_open, chunks = threading.Event(), []

    def run_chunk(self: Any, targets: Any, tell: Any) -> None:
        chunks.append(len(self.parts))
        if len(chunks) == 4:
            assert is_open.wait(60)
            opened[0].set(hold="patterns")
        built(self, targets, tell)

    monkeypatch.setattr(building.Builder, "run_chunk", run_chunk)
    opened.append(gs.graph_lab(IDS, model=model("lgl", 2), **NEURONS))
    is_open.set()
    assert_is_whole(opened[0])
    assert chunks[:6] == [0, 1, 2, 3, 3, 4]  # the first ones are not built again
    assert opened[0].hold == "patterns"
    opened[0].close()


def test_a_graph_that_was_stopped_at_once_is_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    built = building.Builder.run_chunk
    opened: list[GraphLab] = []
    is_open = threading.Event()

    def run_chunk(self: Any, targets: Any, tell: Any) -> None:
        if is_open.wait(60) and not opened[0].error:
            opened[0].stop()
        built(self, targets, tell)

    with monkeypatch.context() as patch:
        patch.setattr(building.Builder, "run_chunk", run_chunk)
        opened.append(gs.graph_lab(IDS, model=model("lgl", 2), **NEURONS))
        is_open.set()
        with pytest.raises(GraphError, match="stopped before a row was finished: resume it"):
            opened[0].wait()
    opened[0].resume()
    assert_is_whole(opened[0])
    opened[0].close()


def test_a_node_that_is_looked_at_has_its_heads_and_tokens(lab: GraphLab) -> None:
    node = next(one for one in features(lab, 20) if lab.graph.index(one) in lab.graph.arrows.target.tolist())
    lab.look(node)
    lab.wait()
    detail: Any = lab._state()["detail"]
    shown = shown_part(lab.graph, 300)
    ids = [lab.graph.ids[i] for i in shown.nodes.tolist()]
    assert detail["node"] == node
    assert detail["raises"] == {str(ids.index(node)): raised_tokens(lab.graph, shown)[str(ids.index(node))]}
    edges = lab.graph.edges.query("target == @node and source != 'bias'")
    strongest = edges.loc[edges["weight"].abs().nlargest(len(detail["carried"])).index, "source"]
    assert len(strongest) > 3
    for edge, heads in detail["carried"].items():
        target, source = ids[shown.target[int(edge)]], ids[shown.source[int(edge)]]
        assert (target, source in set(strongest)) == (node, True)
        carried = lab.graph.loadings((target, source))["carried"].values
        assert [value for *_, value in heads] == pytest.approx([carried[layer, head] for layer, head, _ in heads], abs=1e-5)


def test_files_and_code(lab: GraphLab, tmp_path: Path) -> None:
    few = features(lab, 2)
    lab.group("few", few)
    lab.scale("few", 0.0)
    lab.save(tmp_path / "a.graph")
    lab.save(tmp_path / "a.html")
    lab.save(tmp_path / "a.py")
    opened = gs.open_graph(tmp_path / "a.graph", model=model("lgl", 2))
    assert opened.supernodes == {"few": few}
    assert "What later nodes read" in (tmp_path / "a.html").read_text(encoding="utf-8")
    found: dict[str, Any] = {"model": model("lgl", 2)}
    exec((tmp_path / "a.py").read_text(encoding="utf-8"), found)
    assert lab.result is not None
    assert found["check"].nodes.equals(lab.result.nodes)
    assert torch.equal(found["trace"].logits, lab.trace.logits)
    with pytest.raises(GraphError, match="saved as one of"):
        lab.save(tmp_path / "a.txt")
    with gs.graph_lab(graph=opened, **{name: NEURONS[name] for name in ("max_nodes", "keep", "max_new_tokens")}) as again:
        assert again.graph.supernodes == {"few": few}
        again.set(prompt=OTHER)
        assert [one.token for one in again.graph.outputs] == [5]


def test_what_a_lab_cannot_begin_with() -> None:
    graph = gs.attribution_graph(IDS, model=model("lgl", 2), basis="neuron", max_nodes=5, progress=False)
    for given in (
        {},
        {"prompt": IDS, "graph": graph},
        {"graph": 3},
        {"prompt": IDS, "basis": "cells"},
        {"prompt": IDS, "most": 0},
    ):
        with pytest.raises(GraphError):
            gs.graph_lab(**given)
    with pytest.raises(GraphError, match="another model"):
        gs.graph_lab(graph=graph, model=model("gl", 4))
    lab = gs.graph_lab(IDS, model=model("lgl", 2))
    with pytest.raises(GraphError, match="needs dictionaries="):
        lab.wait()
    lab.close()


def test_another_model_has_neurons_where_it_has_no_dictionaries() -> None:
    own = [dictionary(32, "transcoder", i, 32, seed=i) for i in range(3)]
    with gs.graph_lab(IDS, model=model("lgl", 2), dictionaries=own, targets=5, max_new_tokens=2) as lab:
        lab.wait()
        with pytest.warns(UserWarning, match="nodes are neurons now"):
            lab.choose_model(model("lgl", 4))
        assert lab.graph.about.basis == "neuron"
        assert len(lab.runs()) == 1
