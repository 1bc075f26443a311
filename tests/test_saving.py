"""Traces in files are read back bit for bit, and other files are refused by name."""

from __future__ import annotations

import errno
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from checkpoints import checkpoint, model_of, prompt
from hypothesis import given, settings
from hypothesis import strategies as st
from pieces import worded

import gemmascope as gs
from gemmascope.edits.edit import Edit
from gemmascope.edits.kinds import Ablate, Add, Custom, Knockout, Patch, Scale
from gemmascope.errors import TraceError
from gemmascope.files import replace
from gemmascope.model.model import Model
from gemmascope.run.save import checksum
from gemmascope.run.trace import Trace
from gemmascope.sites import SITES

MODEL = model_of(checkpoint("lgl"))
OTHER = gs.trace(prompt(9, seed=1), model=MODEL)
EDITS: dict[str, Callable[[], Edit]] = {
    "patch from a trace": lambda: Patch(site="resid_pre", source=OTHER, layer=1, pos=[3, -1]),
    "patch of a head": lambda: Patch(site="z", source=torch.ones(12), layer=0, head=3),
    "patch of edges": lambda: Patch(site="pattern", source=OTHER, layer=1, head=[1, 2], q_pos=8),
    "patch of the embedding": lambda: Patch(site="embed", source=torch.ones(32), pos=2),
    "patch of head_out": lambda: Patch(site="head_out", source=OTHER, layer=2, head=7),
    "patch of the logits": lambda: Patch(site="logits", source=torch.zeros(61), pos=0),
    "a number": lambda: Ablate(site="v", layer=1, head=2, value=0.5),
    "a mean": lambda: Ablate(site="mlp_out", layer=1, pos=4, value="mean", reference=[OTHER]),
    "a mean by position": lambda: Ablate(site="z", layer=1, head=1, value="mean_by_pos", reference=[OTHER]),
    "steering": lambda: Add(site="resid_post", vector=torch.ones(32), layer=0, pos=slice(2, 5), scale=3.0),
    "a factor": lambda: Scale(site="mlp_act", factor=0.5, layer=2),
    "a factor at edges": lambda: Scale(site="scores", factor=0.5, layer=2, head=1, k_pos=2),
    "a knockout": lambda: Knockout(layer=1, head=2, q_pos=-1, k_pos=[3, 4]),
}


def assert_same(a: Trace, b: Trace) -> None:
    assert torch.equal(a.ids, b.ids)
    assert len(a.stream) == len(b.stream)
    for site, info in SITES.items():
        for layer in range(3) if info.in_layer else (None,):
            key = site if layer is None else (site, layer)
            assert torch.equal(a[key], b[key]), key
    assert a.top(5) == b.top(5)


def reopened(t: Trace, folder: Path, model: Model = MODEL) -> Trace:
    t.save(folder / "t.trace")
    return gs.open_trace(folder / "t.trace", model=model)


@pytest.mark.filterwarnings("ignore:.*has no effect.*:gemmascope.GemmascopeWarning")  # edits drawn twice
@settings(deadline=None, max_examples=15, derandomize=True)
@given(length=st.integers(1, 12), edits=st.lists(st.sampled_from(list(EDITS)), max_size=3))
def test_an_opened_trace_equals_the_saved_one(length: int, edits: list[str], tmp_path_factory: Any) -> None:
    length = 9 if edits else length
    t = gs.trace(prompt(length), model=MODEL, edits=[EDITS[name]() for name in edits])
    assert_same(reopened(t, tmp_path_factory.mktemp("traces")), t)


@pytest.mark.parametrize("name", EDITS)
def test_every_kind_of_edit_is_saved(name: str, tmp_path: Path) -> None:
    t = gs.trace(prompt(9), model=MODEL, edits=[EDITS[name]()])
    back = reopened(t, tmp_path)
    assert_same(back, t)
    assert len(back.edits) == 1
    assert back.edits[0].site == t.edits[0].site
    assert_same(reopened(back, tmp_path), t)  # and can be saved again


def test_a_trace_of_a_pass_of_several_is_saved(tmp_path: Path) -> None:
    traces = gs.trace([prompt(5), prompt(9), prompt(5, seed=2)], model=MODEL)
    for t in traces:
        assert_same(reopened(t, tmp_path), t)


def test_a_bfloat16_trace_is_saved(tmp_path: Path) -> None:
    model = model_of(checkpoint("lgl").bfloat16())
    t = gs.trace(prompt(9), model=model, edits=[Scale(site="z", factor=0.5, layer=1)])
    assert t.stream[0].dtype == torch.bfloat16
    assert_same(reopened(t, tmp_path, model), t)


def test_the_tokens_are_saved(tmp_path: Path) -> None:
    t = gs.trace("When Mary and John went\n<img src=x onerror=alert(1)>😀", model=worded())
    back = reopened(t, tmp_path, worded())
    assert back.tokens == t.tokens
    assert repr(back) == repr(t)


def test_the_file_holds_the_stream_and_little_else(tmp_path: Path) -> None:
    t = gs.trace(prompt(60), model=MODEL)
    t["pattern", 1]
    t.save(tmp_path / "t.trace")
    stream = 4 * 60 * 32 * 4  # four entries of the stream, 60 positions, d_model 32, float32
    assert stream < (tmp_path / "t.trace").stat().st_size < stream + 60 * 8 + 2000


# -- what is refused --


def test_another_model_is_refused_and_both_are_named(tmp_path: Path) -> None:
    t = gs.trace(prompt(9), model=MODEL)
    t.save(tmp_path / "t.trace")
    for another in (
        model_of(checkpoint("lgl", seed=1)),
        model_of(checkpoint("llg")),
        model_of(checkpoint("lgl").bfloat16()),
    ):
        another.name = "the other one"
        message = f"written by the model 'random' .{MODEL.fingerprint}.*opened with 'the other one' .{another.fingerprint}"
        with pytest.raises(TraceError, match=message):
            gs.open_trace(tmp_path / "t.trace", model=another)


def test_an_edit_by_a_function_is_not_saved(tmp_path: Path) -> None:
    t = gs.trace(prompt(9), model=MODEL, edits=[Custom(site="z", fn=torch.tanh, layer=1)])
    with pytest.raises(TraceError, match=r"with an edit by a function cannot be saved: gs.edit\('z', tanh, layer=1\)"):
        t.save(tmp_path / "t.trace")
    assert list(tmp_path.iterdir()) == []


def write(path: Path, **about: Any) -> None:
    """A file as Trace.save writes it, with other metadata."""
    gs.trace([1, 2], model=MODEL).save(path)
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()["gemmascope.trace"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    dropped = about.pop("without", "")
    tensors.pop(dropped, None)
    metadata = {key: value for key, value in {**metadata, **about}.items() if key != dropped}
    metadata = {**metadata, "sha256": checksum(metadata, tensors)}
    safetensors.torch.save_file(tensors, path, metadata={"gemmascope.trace": json.dumps(metadata)})


def truncate(path: Path) -> None:
    gs.trace([1, 2], model=MODEL).save(path)
    path.write_bytes(path.read_bytes()[:-10])


NOT_TRACES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "absent": (lambda path: None, "there is no file .*t.trace"),
    "a folder": (lambda path: path.mkdir(), "t.trace is a folder"),
    "empty": (lambda path: path.write_bytes(b""), "t.trace is not a trace, or a part of one"),
    "text": (lambda path: path.write_text("When Mary and John"), "t.trace is not a trace"),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps({"ids": [1]})), "t.trace is not a trace"),
    "truncated": (truncate, "t.trace is not a trace, or a part of one"),
    "weights": (
        lambda path: safetensors.torch.save_file({"w": torch.ones(2)}, path, metadata={"format": "pt"}),
        "t.trace is a safetensors file, but no trace: it was not written by Trace.save",
    ),
    "from the future": (lambda path: write(path, version=3), "trace of format 3; this version of gemmascope reads format 2"),
    "no version": (lambda path: write(path, without="version"), "t.trace is a damaged trace: it has no 'version'"),
    "no layer": (lambda path: write(path, without="stream.2"), "t.trace is a damaged trace: it has no 'stream.2'"),
    "no ids": (lambda path: write(path, without="ids"), "t.trace is a damaged trace: it has no 'ids'"),
    "an unknown edit": (
        lambda path: write(path, edits=[{"kind": "Eval", "site": "z", "layer": 1}]),
        "t.trace is a damaged trace: it has no 'Eval'",
    ),
}


@pytest.mark.parametrize("name", NOT_TRACES)
def test_a_file_that_is_no_trace_is_refused(name: str, tmp_path: Path) -> None:
    make, message = NOT_TRACES[name]
    make(tmp_path / "t.trace")
    with pytest.raises(TraceError, match=message):
        gs.open_trace(tmp_path / "t.trace", model=MODEL)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"cannot write .*no_folder.t\.trace: .*there is no folder .*no_folder"):
        gs.trace([1, 2], model=MODEL).save(tmp_path / "no_folder" / "t.trace")


@pytest.mark.parametrize("kind", [KeyboardInterrupt, OSError])
def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    kind: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.trace"
    old = gs.trace(prompt(9), model=MODEL)
    old.save(path)

    def broken(file: Any) -> None:
        raise kind(errno.ENOSPC, "the disk is full")

    monkeypatch.setattr(replace, "sync", broken)
    with pytest.raises(TraceError if kind is OSError else kind, match="the disk is full"):
        gs.trace(prompt(5), model=MODEL).save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["t.trace"]
    assert_same(gs.open_trace(path, model=MODEL), old)


def test_saving_over_a_file_replaces_it(tmp_path: Path) -> None:
    gs.trace(prompt(9), model=MODEL).save(str(tmp_path / "t.trace"))
    t = gs.trace(prompt(5), model=MODEL)
    assert_same(reopened(t, tmp_path), t)
    assert [p.name for p in tmp_path.iterdir()] == ["t.trace"]
