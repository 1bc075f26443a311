"""Damaged stores: a manifest that no conversion wrote is an error that names the file."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import checkpoint

import gemmascope as gs
from gemmascope.errors import GemmascopeError


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    checkpoint("lg", hidden_size=128, intermediate_size=128).save_pretrained(folder / "source")
    return gs.quantize(folder / "source", folder / "q")


@pytest.fixture
def copy(store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(store, tmp_path / "q"))


def refused(folder: Path) -> str:
    with pytest.raises(GemmascopeError) as raised:
        gs.load(folder)
    return str(raised.value)


def test_the_store_itself_loads(copy: Path) -> None:
    assert len(gs.trace([3, 5], model=gs.load(copy)).stream) == 3


ODD: dict[str, list[Any]] = {
    "format": [None, 3, "gemmascope.int8.0"],
    "group": [None, 64, "128", 128.0, True],
    "identity": [None, 3, []],
    "source": [None, 3, {}],
    "complete": [None, "yes", False, 1],
    "files": [None, 3, [], {}, "files"],
}
ENTRIES: list[Any] = [None, 3, [], "x", {}, {"bytes": 3}, {"sha256": "0" * 64}]
SIZES: list[Any] = ["3", None, -1, 3.0, True, [3], 10**400]


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in ODD.items() for value in values])
def test_an_odd_manifest_is_refused_by_name(name: str, value: Any, copy: Path) -> None:
    manifest = json.loads((copy / "gemmascope.json").read_text())
    (copy / "gemmascope.json").write_text(json.dumps({**manifest, name: value}))
    assert str(copy) in refused(copy)


@pytest.mark.parametrize("file", ["outer.safetensors", "layer-01.safetensors"])
def test_odd_entries_are_refused_by_name(file: str, copy: Path) -> None:
    whole = json.loads((copy / "gemmascope.json").read_text())
    entry = whole["files"][file]
    changes = [
        *ENTRIES,
        *({**entry, "bytes": size} for size in SIZES),
        *({**entry, "sha256": x} for x in (None, 3, "x", "f" * 64)),
    ]
    for changed in changes:
        (copy / "gemmascope.json").write_text(json.dumps({**whole, "files": {**whole["files"], file: changed}}))
        try:
            model = gs.load(copy)
        except GemmascopeError as error:
            said = str(error)
        else:  # a layer's checksum is compared when it is read
            with pytest.raises(GemmascopeError) as raised:
                gs.trace([3, 5], model=model)
            said = str(raised.value)
        assert str(copy) in said, changed


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "layer-1.safetensors", "other", ""])
def test_names_that_are_no_files_of_a_store_are_refused(name: str, copy: Path) -> None:
    whole = json.loads((copy / "gemmascope.json").read_text())
    about = whole["files"]["outer.safetensors"]
    (copy / "gemmascope.json").write_text(json.dumps({**whole, "files": {**whole["files"], name: about}}))
    assert "gemmascope.json is damaged: it lists" in refused(copy)


@pytest.mark.parametrize("gone", ["outer.safetensors", "layer-00.safetensors"])
def test_a_manifest_that_leaves_a_file_out_is_refused(gone: str, copy: Path) -> None:
    whole = json.loads((copy / "gemmascope.json").read_text())
    del whole["files"][gone]
    (copy / "gemmascope.json").write_text(json.dumps(whole))
    assert gone in refused(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 200_000, "\ufeff{}", '{"a": NaN}'])
def test_a_manifest_that_is_no_object_is_refused(text: str, copy: Path) -> None:
    (copy / "gemmascope.json").write_text(text)
    assert "gemmascope.json" in refused(copy)


def test_no_single_bit_of_a_manifest_changes_the_numbers(copy: Path) -> None:
    data, draw = (copy / "gemmascope.json").read_bytes(), random.Random(0)
    whole = gs.trace([3, 5, 9], model=gs.load(copy)).logits
    n_refused = 0
    for _ in range(150):
        damaged = bytearray(data)
        damaged[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        (copy / "gemmascope.json").write_bytes(damaged)
        try:
            assert torch.equal(gs.trace([3, 5, 9], model=gs.load(copy)).logits, whole)
        except GemmascopeError as error:
            n_refused += 1
            assert str(copy) in str(error)  # noqa: PT017
    assert n_refused > 50
