"""Stores: a checkpoint in int8 in a folder, a safetensors file for each layer, with a manifest.

The manifest says which checkpoint the numbers come from and the checksum of every file. convert.py writes them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    int8_layout,
    outer_layout,
    pieces_in,
    stamp_of,
)

MANIFEST, OUTER = "gemmascope.json", "outer.safetensors"
FORMAT = "gemmascope.int8.1"


def is_store(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def layer_file(index: int) -> str:
    return f"layer-{index:02d}.safetensors"


def is_whole(target: Path, identity: str) -> bool:
    """Whether a folder holds the finished conversion of the checkpoint of this identity, its files of the right size."""
    if not is_store(target):
        return False
    there = read_manifest(target)
    files = there["files"].items()
    return there["identity"] == identity and bool(there.get("complete")) and all(_sized(target / n, a) for n, a in files)


class Store:
    """An open store: the shape of its model, and where its tensors lie."""

    def __init__(self, folder: Path, source: Path | None = None) -> None:
        """Raises CheckpointError for a folder that is unfinished, damaged, or of another version.

        source: the checkpoint's own folder, where it is at hand: configuration and tokenizer are then read there.
        """
        self.folder, self.manifest = folder, read_manifest(folder)
        self.beside = folder if source is None else source
        if not self.manifest.get("complete"):
            raise CheckpointError(f"{folder} is a conversion that was not finished: run it again, and it goes on")
        self.config, self.dtype_name = read_config(self.beside)
        for name, about in self.manifest["files"].items():
            if not _sized(folder / name, about):
                raise CheckpointError(
                    f"{folder / name} is damaged: it should have {about['bytes']:,} bytes; remove it, and quantise again"
                )
        self.outer, self.outer_data = self._outer()

    @property
    def dtype(self) -> torch.dtype:
        """What the embedding is stored in."""
        return self.outer[EMBEDDING].dtype

    def layers(self) -> list[PackedLayer]:
        """Every layer's bytes. CheckpointError for a file with other tensors than the shape has."""
        return [self._layer(index) for index in range(self.config.n_layers)]

    def outer_tensor(self, name: str) -> Tensor:
        piece, path = self.outer[name], self.folder / OUTER
        buffer = torch.empty(piece.n_bytes, dtype=torch.uint8)
        FileRange(path, self.outer_data + piece.start, piece.n_bytes, 0, stamp_of(path)).read(bytes_of(buffer))
        return buffer.view(piece.dtype).view(piece.shape)

    def require_outer(self) -> None:
        """CheckpointError unless the file of the embedding has the checksum of the manifest."""
        path = self.folder / OUTER
        if sum_of(path, self.outer_data) != self.manifest["files"][OUTER]["sha256"]:
            raise CheckpointError(f"{path} is damaged: its checksum is not the manifest's; remove it, and quantise again")

    def _outer(self) -> tuple[Mapping[str, TensorSlice], int]:
        """What is outside the layers, and where its data begins. CheckpointError for another layout than the config's."""
        path = self.folder / OUTER
        outer, data = pieces_in(path)
        if outer.keys() != {EMBEDDING, NORM}:
            raise CheckpointError(f"{path} is not of this store: it holds {_listed(outer)}")
        self._require(path, outer, data, outer_layout(self.config, outer[EMBEDDING].dtype, outer[NORM].dtype))
        return outer, data

    def _require(self, path: Path, pieces: Mapping[str, TensorSlice], data: int, expected: list[TensorSlice]) -> None:
        """CheckpointError unless a file's header is of these pieces, in this order, and is the one that was written."""
        if list(pieces.values()) != expected or data + expected[-1].stop != path.stat().st_size:
            raise CheckpointError(
                f"{path} is damaged, or not of this store: its header does not describe the tensors of the config's shape; "
                "remove it, and quantise again"
            )
        wanted = self.manifest["files"][path.name].get("header")
        if wanted is not None and header_sum(path, data) != wanted:
            raise CheckpointError(
                f"{path} is damaged: its header's checksum is not the manifest's; remove it, and quantise again"
            )

    def _layer(self, index: int) -> PackedLayer:
        name = layer_file(index)
        path, about = self.folder / name, self.manifest["files"].get(name)
        if about is None:
            raise CheckpointError(f"{self.folder} has no {name}: its manifest lists {len(self.manifest['files'])} files")
        pieces, data = pieces_in(path)
        norms = pieces[NORMS[0]].dtype if NORMS[0] in pieces else torch.bfloat16
        expected = int8_layout(self.config, norms)
        self._require(path, pieces, data, expected)
        n_bytes = expected[-1].stop
        return PackedLayer((FileRange(path, data, n_bytes, 0, stamp_of(path)),), tuple(expected), about["sha256"])


def read_manifest(folder: Path) -> dict[str, Any]:
    found = read_json(folder / MANIFEST)
    if found.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder / MANIFEST} is of another version ({found.get('format')!r}, not {FORMAT!r}): give another folder, "
            "or remove this one"
        )
    if why := _damage(found):
        raise CheckpointError(
            f"{folder / MANIFEST} is damaged: {why}. Remove the folder, and quantise again; or give another folder"
        )
    return found


def _damage(manifest: dict[str, Any]) -> str | None:
    """What a conversion cannot have written in a manifest; None for nothing."""
    files, complete = manifest.get("files"), manifest.get("complete", False)
    for name in ("identity", "source"):
        if not isinstance(manifest.get(name), str):
            return f"it has no {name}"
    if manifest.get("group") != GROUP or type(manifest["group"]) is not int:
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


def _listed(pieces: Mapping[str, TensorSlice]) -> str:
    return ", ".join(name[:80] for name in list(pieces)[:4]) or "nothing"


def _sized(path: Path, about: Mapping[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == about["bytes"]


def whole_file(path: Path, about: Mapping[str, Any]) -> bool:
    if not _sized(path, about):
        return False
    try:
        data = pieces_in(path)[1]
    except CheckpointError:  # a damaged header
        return False
    return about.get("header") in (None, header_sum(path, data)) and sum_of(path, data) == about["sha256"]


def header_sum(path: Path, data: int) -> str:
    """The checksum of what stands before a file's data."""
    with path.open("rb") as file:
        return hashlib.sha256(file.read(data)).hexdigest()


def sum_of(path: Path, data: int) -> str:
    """The checksum of a file's data."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(data)
        while part := file.read(2**24):
            digest.update(part)
    return digest.hexdigest()
