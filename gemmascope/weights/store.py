"""Stores: a checkpoint in int8 in a folder, a safetensors file for each layer, with a manifest.

The manifest says which checkpoint the numbers come from and the checksum of every file. Files are written aside and
renamed, and the manifest after each of them: a conversion that was interrupted goes on at the next file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gemmascope.config import GemmaConfig
from gemmascope.errors import BudgetError, CheckpointError
from gemmascope.weights.checkpoint import EMBEDDING, Checkpoint, read_config, read_json
from gemmascope.weights.int8 import GROUP, quantise
from gemmascope.weights.packed import (
    MATRICES,
    SCALE,
    Packed,
    Piece,
    Span,
    bytes_of,
    header_of,
    int8_layout,
    laid_out,
    layer_shapes,
    pieces_in,
    stamp_of,
)

MANIFEST, OUTER, NORM = "gemmascope.json", "outer.safetensors", "model.norm.weight"
FORMAT = "gemmascope.int8.1"

# What comes along from the source: its shape and its words.
_BESIDE = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
           "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json")  # fmt: skip


# Opens a bar of so many files, and gives what is called after each.
Bar = Callable[[int], AbstractContextManager[Callable[[], None]]]


def is_store(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def layer_file(index: int) -> str:
    return f"layer-{index:02d}.safetensors"


def identity_of(checkpoint: Checkpoint) -> str:
    """A digest that tells checkpoints apart: the names, shapes and dtypes of all tensors, bytes from all over them, and
    each file's size and the time of its last change, so that an edit of any weight is seen."""
    digest = hashlib.sha256(FORMAT.encode())
    for name, stored in sorted(checkpoint.stored.items()):
        digest.update(repr((name, stored.shape, str(stored.dtype))).encode())
    for path in sorted({stored.shard for stored in checkpoint.stored.values()}):
        size, changed, _ = stamp_of(path)
        digest.update(f"{size} {changed}".encode())
        with path.open("rb", buffering=0) as file:
            for i in range(4096):
                digest.update(os.pread(file.fileno(), 64, i * max(0, size - 64) // 4095))
    return digest.hexdigest()


def is_whole(target: Path, identity: str) -> bool:
    """Whether a folder holds the finished conversion of the checkpoint of this identity, its files of the right size."""
    if not is_store(target):
        return False
    there = _manifest(target)
    files = there["files"].items()
    return there["identity"] == identity and bool(there.get("complete")) and all(_sized(target / n, a) for n, a in files)


@contextmanager
def alone(target: Path) -> Iterator[None]:
    """While this lasts no other process converts into the folder: it waits."""
    import fcntl

    target.mkdir(parents=True, exist_ok=True)
    with (target / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def convert(checkpoint: Checkpoint, target: Path, source: str, bar: Bar) -> None:
    """Write a checkpoint in int8 to a folder. bar: opens a bar of so many files, and gives what is called after each.

    Holds a layer in int8 and one tensor of the source at a time. Raises CheckpointError for a folder that holds
    something else and for a source that changes meanwhile, BudgetError for a disk without the room, before writing.
    """
    writer = _Writer(checkpoint, target, source)
    files = [OUTER, *(layer_file(i) for i in range(checkpoint.config.n_layers))]
    with bar(len(files)) as done:
        for name in files:
            if name not in writer.files:
                writer.write(name)
            done()
    writer.finish()


class _Writer:
    """A conversion under way: what its manifest says is done, and a buffer for one layer."""

    def __init__(self, checkpoint: Checkpoint, target: Path, source: str) -> None:
        self.checkpoint, self.target = checkpoint, target
        self.stamps = {path: stamp_of(path) for path in {stored.shard for stored in checkpoint.stored.values()}}
        self.manifest = {"format": FORMAT, "group": GROUP, "source": source, "identity": identity_of(checkpoint)}
        self.files = self._done()
        self.outer = laid_out({name: (self._dtype(name), self._shape(name)) for name in (EMBEDDING, NORM)})
        norms = {stored.dtype for name, stored in checkpoint.stored.items() if name.endswith("layernorm.weight")}
        self.layer = int8_layout(checkpoint.config, norms.pop() if len(norms) == 1 else torch.float32)
        self._require_room()
        target.mkdir(parents=True, exist_ok=True)
        self._note()
        for name in _BESIDE:
            if (checkpoint.folder / name).is_file():
                shutil.copyfile(checkpoint.folder / name, target / name)
        self.buffer = torch.empty(self.layer[-1].stop, dtype=torch.uint8)

    def write(self, name: str) -> None:
        """Write a file and note it in the manifest."""
        if name == OUTER:
            parts = [_finite(self.checkpoint.read(piece.name), piece.name) for piece in self.outer]
            self._save(name, self.outer, [part.contiguous().reshape(-1).view(torch.uint8) for part in parts])
        else:
            self._fill(int(name[6:-12]))
            self._save(name, self.layer, [self.buffer])

    def finish(self) -> None:
        self.manifest["complete"] = True
        self._note()

    def _fill(self, index: int) -> None:
        """Quantise a layer into the buffer."""
        pieces = {piece.name: piece for piece in self.layer}
        for name in (name for name in pieces if not name.endswith(SCALE)):
            weight, into = self.checkpoint.read(f"model.layers.{index}.{name}"), pieces[name].view(self.buffer)
            if name in MATRICES:
                quantise(weight, into, pieces[name + SCALE].view(self.buffer), f"model.layers.{index}.{name}")
            else:
                into.copy_(_finite(weight, f"model.layers.{index}.{name}"))

    def _save(self, name: str, pieces: list[Piece], parts: list[Tensor]) -> None:
        aside, digest = self.target / f".{name}.part", hashlib.sha256()
        try:
            with aside.open("wb") as file:
                file.write(header_of(pieces, {"format": FORMAT, "identity": str(self.manifest["identity"])}))
                for part in parts:
                    data = bytes_of(part)
                    digest.update(data)
                    file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self._require_unchanged()
            os.replace(aside, self.target / name)
        finally:
            aside.unlink(missing_ok=True)
        self.files[name] = {"bytes": (self.target / name).stat().st_size, "sha256": digest.hexdigest()}
        self._note()

    def _note(self) -> None:
        """Write the manifest as it stands."""
        aside = self.target / f".{MANIFEST}.part"
        aside.write_text(json.dumps({**self.manifest, "files": self.files}, indent=1), encoding="utf-8")
        os.replace(aside, self.target / MANIFEST)

    def _done(self) -> dict[str, dict[str, Any]]:
        """The files that an earlier conversion of the same checkpoint has written, but for damaged ones."""
        if not is_store(self.target):
            if self.target.is_dir() and any(not path.name.startswith(".") for path in self.target.iterdir()):
                raise CheckpointError(f"{self.target} is not empty and holds no conversion: give an empty or a new folder")
            return {}
        there = _manifest(self.target)
        if there["identity"] != self.manifest["identity"]:
            raise CheckpointError(
                f"{self.target} holds a conversion of another checkpoint ({there['source']!r}): give another folder, "
                "or remove this one"
            )
        return {name: about for name, about in there["files"].items() if _whole(self.target / name, about)}

    def _require_room(self) -> None:
        layers = [f for f in self.files if f != OUTER]
        needed = (self.checkpoint.config.n_layers - len(layers)) * (self.layer[-1].stop + 8192)
        needed += 0 if OUTER in self.files else max(piece.stop for piece in self.outer) + 8192
        there = self.target.absolute()
        while not there.is_dir():
            there = there.parent
        if (free := shutil.disk_usage(there).free) < needed:
            raise BudgetError(f"{self.target} needs {needed:,} bytes and the disk has {free:,} free: nothing was written")

    def _require_unchanged(self) -> None:
        for path, stamp in self.stamps.items():
            if not path.is_file() or stamp_of(path) != stamp:
                raise CheckpointError(f"{path} changed while it was read: start again, into an empty folder")

    def _dtype(self, name: str) -> torch.dtype:
        return self.checkpoint.stored[name].dtype

    def _shape(self, name: str) -> tuple[int, ...]:
        return self.checkpoint.stored[name].shape


class Store:
    """An open store: the shape of its model, and where its tensors lie."""

    def __init__(self, folder: Path) -> None:
        """Raises CheckpointError for a folder that is unfinished, damaged, or of another version."""
        self.folder, self.manifest = folder, _manifest(folder)
        if not self.manifest.get("complete"):
            raise CheckpointError(f"{folder} is a conversion that was not finished: run it again, and it goes on")
        self.config, self.dtype_name = read_config(folder)
        for name, about in self.manifest["files"].items():
            if not _sized(folder / name, about):
                raise CheckpointError(
                    f"{folder / name} is damaged: it should have {about['bytes']:,} bytes; remove it, and quantise again"
                )
        outer, self.outer_data = pieces_in(folder / OUTER)
        if outer.keys() != {EMBEDDING, NORM}:
            raise CheckpointError(f"{folder / OUTER} is not of this store: it holds {', '.join(outer) or 'nothing'}")
        self.outer: Mapping[str, Piece] = outer

    @property
    def dtype(self) -> torch.dtype:
        """What the embedding is stored in."""
        return self.outer[EMBEDDING].dtype

    def layers(self) -> list[Packed]:
        """Every layer's bytes. CheckpointError for a file with other tensors than the shape has."""
        return [self._layer(index) for index in range(self.config.n_layers)]

    def outer_tensor(self, name: str) -> Tensor:
        piece, path = self.outer[name], self.folder / OUTER
        buffer = torch.empty(piece.n_bytes, dtype=torch.uint8)
        Span(path, self.outer_data + piece.start, piece.n_bytes, 0, stamp_of(path)).read(bytes_of(buffer))
        return buffer.view(piece.dtype).view(piece.shape)

    def require_outer(self) -> None:
        """CheckpointError unless the file of the embedding has the checksum of the manifest."""
        path = self.folder / OUTER
        if _sum_of(path, self.outer_data) != self.manifest["files"][OUTER]["sha256"]:
            raise CheckpointError(f"{path} is damaged: its checksum is not the manifest's; remove it, and quantise again")

    def _layer(self, index: int) -> Packed:
        name = layer_file(index)
        path, about = self.folder / name, self.manifest["files"].get(name)
        if about is None:
            raise CheckpointError(f"{self.folder} has no {name}: its manifest lists {len(self.manifest['files'])} files")
        pieces, data = pieces_in(path)
        norms = pieces[_first_norm()].dtype if _first_norm() in pieces else torch.bfloat16
        expected = int8_layout(self.config, norms)
        if list(pieces.values()) != expected:
            raise CheckpointError(f"{path} is not of this store: its tensors are not those of the config's shape")
        n_bytes = expected[-1].stop
        return Packed((Span(path, data, n_bytes, 0, stamp_of(path)),), tuple(expected), about["sha256"])


def _first_norm() -> str:
    return "input_layernorm.weight"


def _manifest(folder: Path) -> dict[str, Any]:
    found = read_json(folder / MANIFEST)
    if found.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder} is a store of another version ({found.get('format')!r}, not {FORMAT!r}): give another folder, "
            "or remove this one"
        )
    files = found.get("files")
    described = isinstance(files, dict) and all({"bytes", "sha256"} <= about.keys() for about in files.values())
    if not {"identity", "source"} <= found.keys() or not described:
        raise CheckpointError(f"{folder / MANIFEST} is damaged: give another folder, or remove this one")
    return found


def _sized(path: Path, about: Mapping[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == about["bytes"]


def _whole(path: Path, about: Mapping[str, Any]) -> bool:
    return _sized(path, about) and _sum_of(path, pieces_in(path)[1]) == about["sha256"]


def _sum_of(path: Path, data: int) -> str:
    """The checksum of a file's data."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(data)
        while part := file.read(2**24):
            digest.update(part)
    return digest.hexdigest()


def _finite(tensor: Tensor, name: str) -> Tensor:
    low, high = tensor.aminmax()
    if not (low.isfinite() and high.isfinite()):
        raise CheckpointError(f"tensor {name!r} holds NaN or infinity")
    return tensor


def plain_layers(checkpoint: Checkpoint, config: GemmaConfig) -> list[Packed]:
    """Every layer's bytes in the shards of a checkpoint, as they are stored."""
    where = {path: pieces_in(path) for path in {stored.shard for stored in checkpoint.stored.values()}}
    stamps = {path: stamp_of(path) for path in where}
    found = []
    for index in range(config.n_layers):
        names = {name: f"model.layers.{index}.{name}" for name in layer_shapes(config)}
        stored = {name: checkpoint.stored[full] for name, full in names.items()}
        layout = laid_out({name: (one.dtype, one.shape) for name, one in stored.items()})
        spans = []
        for piece in layout:
            path = stored[piece.name].shard
            pieces, data = where[path]
            spans.append(Span(path, data + pieces[names[piece.name]].start, piece.n_bytes, piece.start, stamps[path]))
        found.append(Packed(tuple(spans), tuple(layout)))
    return found
