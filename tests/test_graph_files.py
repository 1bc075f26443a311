"""Graphs that are written as they are built: after a kill anywhere they go on to the same bits; other files are refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import model, prompt
from random_dictionaries import dictionary

import gemmascope as gs
from gemmascope.circuits.graph import build
from gemmascope.circuits.graph.attribution import attribution_graph
from gemmascope.circuits.graph.files.journal import GraphJournal
from gemmascope.circuits.graph.result import AttributionGraph
from gemmascope.circuits.graph.rows import Rows
from gemmascope.errors import GraphError
from gemmascope.model.model import Model

IDS = prompt(11)
D = 32
# All features, some of them by influence, and neurons, each in several passes.
ASKED: dict[str, dict[str, Any]] = {
    "all": {"memory": "700 KB"},
    "some": {"memory": "700 KB", "max_nodes": 60},
    "neurons": {"memory": "1500 KB", "max_nodes": 40, "basis": "neuron"},
}


@cache
def subject() -> Model:
    return model("lgl", 1)


def graph_of(kind: str = "some", **more: Any) -> AttributionGraph:
    asked = {**ASKED[kind], **more}
    if asked.get("basis") != "neuron":
        asked.setdefault("dictionaries", [dictionary(D, "transcoder", i, D, seed=i) for i in range(3)])
    return attribution_graph(asked.pop("prompt", IDS), model=asked.pop("model", subject()), progress=False, **asked)


def require_same(found: AttributionGraph, whole: AttributionGraph) -> None:
    """Every number of two graphs is the same, bit for bit."""
    assert torch.equal(found.node_keys, whole.node_keys)
    for one in fields(Rows):
        assert torch.equal(getattr(found.rows, one.name), getattr(whole.rows, one.name)), one.name
    assert torch.equal(found.activation.nan_to_num(-1), whole.activation.nan_to_num(-1))
    assert torch.equal(found.influence, whole.influence)
    assert found.about == whole.about


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets the pass of this number, from now on, end as a kill would end it: nothing of it is written."""
    descend, left = build.descend, [10**9]

    def mortal(*args: Any) -> Rows:
        left[0] -= 1
        if left[0] == 0:
            raise RuntimeError("killed")
        return descend(*args)

    monkeypatch.setattr(build, "descend", mortal)
    return lambda n: left.__setitem__(0, n)


@pytest.mark.parametrize("kind", ASKED)
def test_a_graph_goes_on_after_kills(kind: str, tmp_path: Path, killed: Callable[[int], None]) -> None:
    """Killed within a pass, or with the file cut at any byte, a graph ends with the numbers of one that ran through."""
    whole, draw, path = graph_of(kind), random.Random(kind), tmp_path / "g.rows"
    for n_kills in range(5):
        killed(draw.randint(2, 4))
        with suppress(RuntimeError):
            graph_of(kind, out=path)
        content = path.read_bytes()
        path.write_bytes(content[: draw.randint(0, len(content)) if n_kills % 2 == 0 else len(content)])
    killed(10**9)
    require_same(graph_of(kind, out=path), whole)
    opened = gs.open_graph(path)
    require_same(opened, whole)
    assert opened.outputs == whole.outputs
    again = path.read_bytes()
    killed(1)  # nothing is left to compute
    require_same(graph_of(kind, out=path), whole)
    assert path.read_bytes() == again


def test_chunks_stay_unless_another_memory_is_given(tmp_path: Path, killed: Callable[[int], None]) -> None:
    whole, path = graph_of("all"), tmp_path / "g.rows"
    killed(3)
    with suppress(RuntimeError):
        graph_of("all", out=path)
    killed(10**9)
    begun = path.read_bytes()
    require_same(graph_of("all", out=path, memory=None), whole)
    path.write_bytes(begun)
    other = graph_of("all", out=path, memory="1 MB")
    assert torch.allclose(other.rows.total, whole.rows.total, rtol=1e-5)
    assert len(path.read_bytes().splitlines()) > 5


def test_a_graph_that_is_not_finished_is_not_opened(tmp_path: Path, killed: Callable[[int], None]) -> None:
    path = tmp_path / "g.rows"
    killed(3)
    with suppress(RuntimeError):
        graph_of(out=path)
    with pytest.raises(GraphError, match=r"holds \d+ rows of a graph that is not finished: gs.attribution_graph"):
        gs.open_graph(path)


def test_an_interrupt_keeps_the_finished_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: Callable[[int], None]
) -> None:
    whole, path, descend = graph_of(), tmp_path / "g.rows", build.descend
    calls: list[int] = []

    def interrupted(*args: Any) -> Rows:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return descend(*args)

    monkeypatch.setattr(build, "descend", interrupted)
    with pytest.warns(gs.GemmascopeWarning, match=r"interrupted: \d+ of up to"):
        part = graph_of(out=path)
    assert not part.about.is_finished
    assert 0 < len(part.rows.targets) < len(whole.rows.targets)
    require_same(graph_of(out=path), whole)


def test_a_full_disk_ends_a_graph_with_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, path, append = graph_of(), tmp_path / "g.rows", GraphJournal._append

    def full(journal: GraphJournal, line: bytes) -> None:
        if len(journal.path.read_bytes()) > 20_000:  # type: ignore[union-attr]
            raise OSError(28, "No space left on device")
        append(journal, line)

    with monkeypatch.context() as patch:
        patch.setattr(GraphJournal, "_append", full)
        with pytest.warns(gs.GemmascopeWarning, match="takes no more rows: the disk is full.*A second call"):
            part = graph_of(out=path)
    assert not part.about.is_finished
    require_same(graph_of(out=path), whole)


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.rows"
    graph_of(out=path)
    before = path.read_bytes()
    others = [dictionary(D, "transcoder", i, D, seed=9 + i) for i in range(3)]
    for match, asked in {
        "keep differ": {"keep": 7},
        "max_nodes differ": {"max_nodes": 61},
        "ids, tokens": {"prompt": prompt(11, seed=4)},
        "outputs": {"targets": 5},
        "pos": {"pos": 6},
        "features differ": {"dictionaries": others},
        "fingerprint": {"model": model("lgl", 2)},
        "basis": {"basis": "neuron"},
    }.items():
        with pytest.raises(GraphError, match=f"holds another graph .*{match}.*give another file, or remove this one"):
            graph_of(out=path, **asked)
    assert path.read_bytes() == before
    for content, match in {
        b"some text": "is no file that out= of gs.attribution_graph wrote",
        before.replace(b'"keep": 2048', b'"keep": 2049'): "line 1 of .* is damaged",
        before.replace(b"\n", b"\n{}\n", 1): "line 2 of .* is damaged",
        before.splitlines(True)[0] + before.splitlines(True)[2]: "line 2 of .* is damaged",
    }.items():
        path.write_bytes(content)
        with pytest.raises(GraphError, match=match):
            graph_of(out=path)
        assert path.read_bytes() == content
    with pytest.raises(GraphError, match="it is a folder; name a file in it"):
        graph_of(out=tmp_path)
    path.unlink()
    journal = GraphJournal()
    journal.start(path)
    with pytest.raises(GraphError, match="another graph is writing to"):
        graph_of(out=path)
    journal.close()


def test_a_direction_of_another_vector_is_another_graph(tmp_path: Path) -> None:
    path = tmp_path / "g.rows"
    graph_of(out=path, targets=("mine", torch.arange(1.0, D + 1)))
    with pytest.raises(GraphError, match=r"another graph \(targets differ\)"):
        graph_of(out=path, targets=("mine", torch.arange(D, 0.0, -1.0)))
