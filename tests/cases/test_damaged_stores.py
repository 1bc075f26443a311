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
from gemmascope.checkpoints.source import NANO
from gemmascope.errors import CheckpointError, GemmascopeError
from gemmascope.streaming.store import Store


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
def test_a_bad_manifest_is_refused_with_the_stores_name(name: str, value: Any, copy: Path) -> None:
    manifest = json.loads((copy / "gemmascope.json").read_text())
    (copy / "gemmascope.json").write_text(json.dumps({**manifest, name: value}))
    assert str(copy) in refused(copy)


@pytest.mark.parametrize("file", ["outer.safetensors", "layer-01.safetensors"])
def test_bad_entries_of_a_manifest_are_refused_with_the_stores_name(file: str, copy: Path) -> None:
    manifest = json.loads((copy / "gemmascope.json").read_text())
    entry = manifest["files"][file]
    changes = [
        *ENTRIES,
        *({**entry, "bytes": size} for size in SIZES),
        *({**entry, "sha256": x} for x in (None, 3, "x", "f" * 64)),
    ]
    for changed in changes:
        (copy / "gemmascope.json").write_text(json.dumps({**manifest, "files": {**manifest["files"], file: changed}}))
        try:
            model = gs.load(copy)
        except GemmascopeError as error:
            message = str(error)
        else:  # a layer's checksum is compared when it is read
            with pytest.raises(GemmascopeError) as raised:
                gs.trace([3, 5], model=model)
            message = str(raised.value)
        assert str(copy) in message, changed


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "layer-1.safetensors", "other", ""])
def test_names_that_are_no_files_of_a_store_are_refused(name: str, copy: Path) -> None:
    manifest = json.loads((copy / "gemmascope.json").read_text())
    about = manifest["files"]["outer.safetensors"]
    (copy / "gemmascope.json").write_text(json.dumps({**manifest, "files": {**manifest["files"], name: about}}))
    assert "gemmascope.json is damaged: it lists" in refused(copy)


@pytest.mark.parametrize("file", ["outer.safetensors", "layer-00.safetensors"])
def test_a_manifest_that_leaves_a_file_out_is_refused(file: str, copy: Path) -> None:
    manifest = json.loads((copy / "gemmascope.json").read_text())
    del manifest["files"][file]
    (copy / "gemmascope.json").write_text(json.dumps(manifest))
    assert file in refused(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 200_000, "\ufeff{}", '{"a": NaN}'])
def test_a_manifest_that_is_no_object_is_refused(text: str, copy: Path) -> None:
    (copy / "gemmascope.json").write_text(text)
    assert "gemmascope.json" in refused(copy)


def test_no_single_bit_of_a_manifest_changes_the_numbers(copy: Path) -> None:
    data, draw = (copy / "gemmascope.json").read_bytes(), random.Random(0)
    expected = gs.trace([3, 5, 9], model=gs.load(copy)).logits
    n_refused = 0
    for _ in range(150):
        damaged = bytearray(data)
        damaged[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        (copy / "gemmascope.json").write_bytes(damaged)
        try:
            assert torch.equal(gs.trace([3, 5, 9], model=gs.load(copy)).logits, expected)
        except GemmascopeError as error:
            n_refused += 1
            assert str(copy) in str(error)  # noqa: PT017
    assert n_refused > 50


def bits_of_a_header(path: Path) -> range:
    """The bits of a file's header, and of the first blanks that pad it."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return range(8 * (8 + len(data[8 : 8 + length].rstrip(b" ")) + 3))


def flip(path: Path, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(bit // 8)
        (byte,) = file.read(1)
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def without_sums_of_headers(folder: Path) -> None:
    """Rewrites the manifest as an earlier version wrote it, without checksums of headers."""
    manifest = json.loads((folder / "gemmascope.json").read_text())
    for about in manifest["files"].values():
        del about["header"]
    (folder / "gemmascope.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("sums", [True, False])
def test_no_single_bit_of_the_embeddings_header_changes_the_numbers(sums: bool, copy: Path) -> None:
    """Also where the manifest has no checksums of headers: the layout is what the configuration says."""
    if not sums:
        without_sums_of_headers(copy)
    path, opened = copy / "outer.safetensors", Store(copy)
    before, bits = (dict(opened.outer), opened.outer_data), bits_of_a_header(path)
    n_refused = 0
    for bit in bits:
        flip(path, bit)
        try:
            assert opened._outer() == before  # what does not matter, such as a word about the file
            assert not sums
        except CheckpointError as error:
            n_refused += 1
            assert str(path) in str(error)  # noqa: PT017
        flip(path, bit)
    assert len(bits) > 2000
    assert n_refused == len(bits) if sums else n_refused > len(bits) // 2


@pytest.mark.parametrize("sums", [True, False])
@pytest.mark.parametrize("file", ["outer.safetensors", "layer-01.safetensors"])
def test_a_store_with_a_bit_of_a_header_flipped_is_refused_or_gives_the_same_numbers(
    file: str, sums: bool, copy: Path
) -> None:
    if not sums:
        without_sums_of_headers(copy)
    path, draw = copy / file, random.Random(0)
    expected, n_refused = gs.trace([3, 5, 9], model=gs.load(copy)).logits, 0
    for bit in draw.sample(bits_of_a_header(path), 60):
        flip(path, bit)
        try:
            assert torch.equal(gs.trace([3, 5, 9], model=gs.load(copy)).logits, expected)
        except CheckpointError as error:
            n_refused += 1
            assert str(path) in str(error)  # noqa: PT017
        flip(path, bit)
    assert n_refused == 60 if sums else n_refused > 15


@pytest.mark.nano
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"data_offsets": [0, ', b'"data_offsets": [8, '),
        (b'"BF16"', b'"F16" '),
        (b'"F32"', b'"I32"'),
        (b"128]", b"64] "),
        (b"model.norm.weight", b"model.norn.weight"),
    ],
)
def test_an_embedding_with_a_changed_header_is_refused(old: bytes, new: bytes, tmp_path: Path) -> None:
    gs.quantize(NANO, tmp_path / "q")
    path = tmp_path / "q" / "outer.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:4096].replace(old, new, 1) + data[4096:])
    if path.read_bytes() != data:
        assert str(path) in refused(tmp_path / "q")
    else:
        assert old in (b'"BF16"', b'"F32"')


def test_no_single_bit_of_a_header_changes_the_numbers(copy: Path) -> None:
    draw = random.Random(1)
    n_refused = 0
    for name in ("outer.safetensors", "layer-00.safetensors"):
        data = (copy / name).read_bytes()
        length = len(data[: data.index(b"}}") + 2])
        for _ in range(60):
            damaged = bytearray(data)
            damaged[draw.randrange(length)] ^= 1 << draw.randrange(8)
            (copy / name).write_bytes(damaged)
            assert name in refused(copy)
            n_refused += 1
        (copy / name).write_bytes(data)
    assert n_refused == 120
