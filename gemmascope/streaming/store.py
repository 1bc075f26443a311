"""Int8 stores: folders with a safetensors file for each layer and a manifest. convert.py writes them.

The manifest names the checkpoint that the numbers come from and gives a checksum of every file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor

from gemmascope.checkpoints.folder import read_config
from gemmascope.checkpoints.tensor_names import EMBEDDING
from gemmascope.errors import CheckpointError
from gemmascope.files.json_reader import read_json
from gemmascope.streaming.int8 import GROUP
from gemmascope.streaming.packed import (
    NORM,
    NORMS,
    FileRange,
    PackedLayer,
    TensorSlice,
    bytes_of,
    file_stamp,
    int8_layout,
    outer_layout,
    read_header,
)

MANIFEST, OUTER = "gemmascope.json", "outer.safetensors"
FORMAT = "gemmascope.int8.1"


class StoredFile(TypedDict, total=False):
    """A file's entry in the manifest. header: the checksum of its header; manifests of early versions have none."""

    bytes: int
    sha256: str
    header: str


class Manifest(TypedDict, total=False):
    """The content of the manifest. identity: a digest of the checkpoint's numbers; source: the checkpoint's name."""

    format: str
    group: int
    source: str
    identity: str
    files: dict[str, StoredFile]
    complete: bool


def is_store(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def layer_file(index: int) -> str:
    return f"layer-{index:02d}.safetensors"


def is_whole(target: Path, identity: str) -> bool:
    """Whether a folder holds a finished conversion of the checkpoint of this identity, with files of the right size."""
    if not is_store(target):
        return False
    manifest = read_manifest(target)
    if manifest["identity"] != identity or not manifest.get("complete"):
        return False
    return all(_has_size(target / name, entry) for name, entry in manifest["files"].items())


class Store:
    """An open store: its model's shape, and where its tensors lie."""

    def __init__(self, folder: Path, source: Path | None = None) -> None:
        """Raises CheckpointError for a store that is unfinished, damaged, or of another version.

        source: the checkpoint's own folder, from which configuration and tokenizer are then read; None: the store's own.
        """
        self.folder, self.manifest = folder, read_manifest(folder)
        self.companions = folder if source is None else source
        if not self.manifest.get("complete"):
            raise CheckpointError(f"{folder} is a conversion that was not finished: run it again, and it goes on")
        self.config, self.dtype_name = read_config(self.companions)
        for name, entry in self.manifest["files"].items():
            if not _has_size(folder / name, entry):
                raise CheckpointError(
                    f"{folder / name} is damaged: it should have {entry['bytes']:,} bytes; remove it, and quantise again"
                )
        self.outer, self.outer_data = self._outer()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the embedding is stored in."""
        return self.outer[EMBEDDING].dtype

    def layers(self) -> list[PackedLayer]:
        """Every layer's bytes. CheckpointError for a file with other tensors than the shape has."""
        return [self._layer(index) for index in range(self.config.n_layers)]

    def outer_tensor(self, name: str) -> Tensor:
        piece, path = self.outer[name], self.folder / OUTER
        buffer = torch.empty(piece.n_bytes, dtype=torch.uint8)
        FileRange(path, self.outer_data + piece.start, piece.n_bytes, 0, file_stamp(path)).read(bytes_of(buffer))
        return buffer.view(piece.dtype).view(piece.shape)

    def require_outer(self) -> None:
        """Raises CheckpointError unless the embedding's file has the checksum in the manifest."""
        path = self.folder / OUTER
        if data_sum(path, self.outer_data) != self.manifest["files"][OUTER]["sha256"]:
            raise CheckpointError(f"{path} is damaged: its checksum is not the manifest's; remove it, and quantise again")

    def _outer(self) -> tuple[Mapping[str, TensorSlice], int]:
        """The tensors outside the layers, and the offset of their data. Raises CheckpointError for an unexpected layout."""
        path = self.folder / OUTER
        outer, data = read_header(path)
        if outer.keys() != {EMBEDDING, NORM}:
            raise CheckpointError(f"{path} is not of this store: it holds {_listed(outer)}")
        self._require(path, outer, data, outer_layout(self.config, outer[EMBEDDING].dtype, outer[NORM].dtype))
        return outer, data

    def _require(self, path: Path, slices: Mapping[str, TensorSlice], data: int, expected: list[TensorSlice]) -> None:
        """Raises CheckpointError unless a file's header is the one that was written, with these slices in this order."""
        if list(slices.values()) != expected or data + expected[-1].stop != path.stat().st_size:
            raise CheckpointError(
                f"{path} is damaged, or not of this store: its header does not describe the tensors of the config's shape; "
                "remove it, and quantise again"
            )
        checksum = self.manifest["files"][path.name].get("header")
        if checksum is not None and header_sum(path, data) != checksum:
            raise CheckpointError(
                f"{path} is damaged: its header's checksum is not the manifest's; remove it, and quantise again"
            )

    def _layer(self, index: int) -> PackedLayer:
        name = layer_file(index)
        path, entry = self.folder / name, self.manifest["files"].get(name)
        if entry is None:
            raise CheckpointError(f"{self.folder} has no {name}: its manifest lists {len(self.manifest['files'])} files")
        slices, data = read_header(path)
        norms = slices[NORMS[0]].dtype if NORMS[0] in slices else torch.bfloat16
        expected = int8_layout(self.config, norms)
        self._require(path, slices, data, expected)
        n_bytes = expected[-1].stop
        return PackedLayer((FileRange(path, data, n_bytes, 0, file_stamp(path)),), tuple(expected), entry["sha256"])


def read_manifest(folder: Path) -> Manifest:
    """A store's manifest. Raises CheckpointError for one that is damaged or of another version."""
    content = read_json(folder / MANIFEST)
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder / MANIFEST} is of another version ({content.get('format')!r}, not {FORMAT!r}): give another folder, "
            "or remove this one"
        )
    if why := _damage(content):
        raise CheckpointError(
            f"{folder / MANIFEST} is damaged: {why}. Remove the folder, and quantise again; or give another folder"
        )
    manifest: Manifest = content  # type: ignore[assignment]  # _damage has checked its fields
    return manifest


def _damage(manifest: Mapping[str, object]) -> str | None:
    """What is wrong with a manifest; None if a conversion can have written it."""
    files, complete = manifest.get("files"), manifest.get("complete", False)
    for name in ("identity", "source"):
        if not isinstance(manifest.get(name), str):
            return f"it has no {name}"
    if manifest.get("group") != GROUP or type(manifest.get("group")) is not int:
        return f"its groups are of {manifest.get('group')!r:.40}, and this version reads groups of {GROUP}"
    if not isinstance(files, dict) or not isinstance(complete, bool):
        return "it does not list its files"
    for name, about in files.items():
        if not (name == OUTER or re.fullmatch(r"layer-\d{2,}\.safetensors", name)):
            return f"it lists {name[:80]!r}, which is no file of a store"
        if not isinstance(about, dict) or type(about.get("bytes")) is not int or about["bytes"] < 0:
            return f"it does not say how many bytes {name} has"
        if not isinstance(about.get("sha256"), str) or not re.fullmatch(r"[0-9a-f]{64}", about["sha256"]):
            return f"it has no checksum of {name}"
        if not isinstance(about.get("header", ""), str):
            return f"it has no checksum of the header of {name}"
    if complete and OUTER not in files:
        return f"it does not list {OUTER}"
    return None


def _listed(slices: Mapping[str, TensorSlice]) -> str:
    return ", ".join(name[:80] for name in list(slices)[:4]) or "nothing"


def _has_size(path: Path, entry: StoredFile) -> bool:
    return path.is_file() and path.stat().st_size == entry["bytes"]


def is_undamaged(path: Path, entry: StoredFile) -> bool:
    """Whether a file has the size and the checksums of its entry in the manifest."""
    if not _has_size(path, entry):
        return False
    try:
        data = read_header(path)[1]
    except CheckpointError:  # a damaged header
        return False
    return entry.get("header") in (None, header_sum(path, data)) and data_sum(path, data) == entry["sha256"]


def header_sum(path: Path, data: int) -> str:
    """The checksum of a file's header."""
    with path.open("rb") as file:
        return hashlib.sha256(file.read(data)).hexdigest()


def data_sum(path: Path, data: int) -> str:
    """The checksum of a file's data."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(data)
        while chunk := file.read(2**24):
            digest.update(chunk)
    return digest.hexdigest()
