"""Damaged traces: a changed file is an error that names it, or still holds the same run."""

from __future__ import annotations

import json
import random
import struct
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from checkpoints import model

import gemmascope as gs
from gemmascope.errors import TraceError
from gemmascope.run.save import checksum


@cache
def trace() -> gs.Trace:
    edits = [gs.patch("resid_pre", torch.ones(32), layer=1, pos=1), gs.scale("z", 0.5, layer=0, pos=2)]
    return gs.trace([3, 5, 9], model=model("lg"), edits=edits)


@pytest.fixture
def file_content(tmp_path: Path) -> bytes:
    trace().save(tmp_path / "t")
    return (tmp_path / "t").read_bytes()


def is_refused(data: bytes, path: Path) -> bool:
    """Whether a file with this content is refused; if not, it must open as the saved trace."""
    path.write_bytes(data)
    try:
        opened = gs.open_trace(path, model=model("lg"))
    except TraceError as error:
        assert str(path) in str(error)  # noqa: PT017
        return True
    assert torch.equal(opened.ids, trace().ids)
    assert all(torch.equal(a, b) for a, b in zip(opened.stream, trace().stream, strict=True))
    assert [repr(edit) for edit in opened.edits] == [repr(edit) for edit in gs_reopened(path).edits]
    return False


@cache
def gs_reopened(path: Path) -> gs.Trace:
    trace().save(path.with_name("again"))
    return gs.open_trace(path.with_name("again"), model=model("lg"))


def test_a_flipped_bit_anywhere_is_noticed(file_content: bytes, tmp_path: Path) -> None:
    length = struct.unpack("<Q", file_content[:8])[0] + 8
    draw = random.Random(0)
    places = [(at, bit) for at in range(length) for bit in range(8)]
    places = draw.sample(places, 400) + [(draw.randrange(length, len(file_content)), draw.randrange(8)) for _ in range(100)]
    n_refused = 0
    for at, bit in places:
        data = bytearray(file_content)
        data[at] ^= 1 << bit
        n_refused += is_refused(bytes(data), tmp_path / "t")
    assert n_refused > 475  # the rest is padding


def test_a_truncated_or_lengthened_file_is_refused(file_content: bytes, tmp_path: Path) -> None:
    for length in (*range(0, 300, 7), *range(300, len(file_content), 41), len(file_content) - 1):
        assert is_refused(file_content[:length], tmp_path / "t"), length
    assert is_refused(file_content + b"\0", tmp_path / "t")
    assert not is_refused(file_content, tmp_path / "t")


ABOUT: dict[str, Any] = {
    "version": ["2", None, 2.0, True, [], 7],
    "model": [None, 3, [], {}],
    "fingerprint": [None, 3, "", ["x"]],
    "sha256": [None, 3, "", "0" * 64],
    "edits": [None, 3, "edits", {}, [None], [3], [[]], [{}], [{"kind": "Patch"}], [{"kind": []}],
              [{"kind": "Scale", "site": "z", "layer": 0, "factor": "x"}],
              [{"kind": "Scale", "site": "z", "layer": 99, "factor": 0.5}],
              [{"kind": "Scale", "site": "z", "layer": [], "factor": 0.5}],
              [{"kind": "Scale", "site": "zz", "layer": 0, "factor": 0.5}],
              [{"kind": "Scale", "site": "z", "layer": 0, "pos": [99], "factor": 0.5}],
              [{"kind": "Scale", "site": "z", "layer": 0, "pos": {"a": 1}, "factor": 0.5}],
              [{"kind": "Scale", "site": "z", "layer": 0, "factor": 0.5, "more": 1}],
              [{"kind": "Patch", "site": "z", "layer": 0}]],
}  # fmt: skip


def rewritten(path: Path, about: dict[str, Any], tensors: dict[str, Any], *, seals: bool = True) -> None:
    """Rewrites a file with other metadata or tensors, and with the checksum that matches them."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()["gemmascope.trace"]) | about
        content = {name: file.get_tensor(name) for name in file.keys()} | tensors  # noqa: SIM118 (no dict)
    content = {name: tensor for name, tensor in content.items() if tensor is not None}
    if seals and "sha256" not in about:
        metadata["sha256"] = checksum(metadata, content)
    safetensors.torch.save_file(content, path, metadata={"gemmascope.trace": json.dumps(metadata)})


@pytest.mark.parametrize("seals", [True, False])
@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in ABOUT.items() for value in values])
def test_bad_values_are_refused_even_with_a_right_checksum(name: str, value: Any, seals: bool, tmp_path: Path) -> None:
    trace().save(tmp_path / "t")
    rewritten(tmp_path / "t", {name: value}, {}, seals=seals)
    with pytest.raises(TraceError, match=str(tmp_path / "t")):
        gs.open_trace(tmp_path / "t", model=model("lg"))


TENSORS: dict[str, dict[str, Any]] = {
    "ids beyond the vocabulary": {"ids": torch.tensor([3, 61, 9])},
    "negative ids": {"ids": torch.tensor([3, -1, 9])},
    "ids that are no whole numbers": {"ids": torch.tensor([3.0, 5.0, 9.0])},
    "ids in a table": {"ids": torch.tensor([[3, 5, 9]])},
    "no ids": {"ids": torch.tensor([], dtype=torch.int64)},
    "more ids than rows": {"ids": torch.tensor([3, 5, 9, 1])},
    "a stream of another width": {"stream.1": torch.zeros(3, 16)},
    "a stream of other numbers": {"stream.1": torch.zeros(3, 32, dtype=torch.float16)},
    "a stream of whole numbers": {f"stream.{i}": torch.zeros(3, 32, dtype=torch.int64) for i in range(3)},
    "a stream that ends early": {"stream.2": None},
    "an edit without its values": {"edit.0": None},
    "an edit of other values": {"edit.0": torch.ones(7)},
}


@pytest.mark.parametrize("name", TENSORS)
def test_numbers_that_the_model_cannot_have_computed_are_refused(name: str, tmp_path: Path) -> None:
    trace().save(tmp_path / "t")
    rewritten(tmp_path / "t", {}, TENSORS[name])
    with pytest.raises(TraceError, match=f"{tmp_path / 't'} is a damaged trace: "):
        gs.open_trace(tmp_path / "t", model=model("lg"))


def test_opening_a_stream_of_nan_warns(tmp_path: Path) -> None:
    trace().save(tmp_path / "t")
    rewritten(tmp_path / "t", {}, {"stream.1": torch.full((3, 32), float("nan"))})
    with pytest.warns(gs.GemmascopeWarning, match="holds NaN or infinity"):
        gs.open_trace(tmp_path / "t", model=model("lg"))


def test_a_trace_of_the_first_format_is_refused_with_what_to_do(tmp_path: Path) -> None:
    trace().save(tmp_path / "t")
    rewritten(tmp_path / "t", {"version": 1}, {})
    with pytest.raises(TraceError, match=r"a trace of format 1, which gemmascope 0\.1 wrote.*Run the prompt again"):
        gs.open_trace(tmp_path / "t", model=model("lg"))


def test_deep_json_is_refused(tmp_path: Path) -> None:
    deep = "[" * 200_000
    safetensors.torch.save_file({"ids": torch.tensor([1])}, tmp_path / "t", metadata={"gemmascope.trace": deep})
    with pytest.raises(TraceError, match=f"{tmp_path / 't'} "):
        gs.open_trace(tmp_path / "t", model=model("lg"))
