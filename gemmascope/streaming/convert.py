"""Converting: a checkpoint's weights in int8, written to a store.

Files are written aside and renamed, and the manifest after each of them: a conversion that was interrupted goes on at
the next file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gemmascope.checkpoints.folder import Checkpoint, require_finite
from gemmascope.checkpoints.tensor_names import EMBEDDING
from gemmascope.errors import BudgetError, CheckpointError
from gemmascope.files.json_reader import MAX_BYTES, is_regular_file, read_bytes
from gemmascope.files.locking import file_lock
from gemmascope.files.replace import SUFFIX
from gemmascope.files.writing import Content, explain_os_errors, make_folder, write_file
from gemmascope.model.digests import join_digests, tensor_digest
from gemmascope.streaming.int8 import GROUP, quantise
from gemmascope.streaming.packed import (
    MATRICES,
    NORM,
    SCALE,
    TensorSlice,
    bytes_of,
    header_of,
    int8_layout,
    outer_layout,
    stamp_of,
)
from gemmascope.streaming.store import FORMAT, MANIFEST, OUTER, header_sum, is_store, layer_file, read_manifest, whole_file

# What comes along from the source: its shape and its words.
_BESIDE = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
           "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json")  # fmt: skip


def identity_of(checkpoint: Checkpoint) -> str:
    """A digest of a checkpoint's numbers: of every bit of every tensor, however its files are called, cut and dated.

    It reads the whole checkpoint, a tensor at a time.
    """
    names = sorted(checkpoint.stored)
    return join_digests((FORMAT, *names, *(tensor_digest(checkpoint.read(name)) for name in names)))


def outdated_beside(source: Path, target: Path) -> Iterator[tuple[str, bytes | None]]:
    """What stands beside a source's weights and is not so in its store: the name, and the content; None for what is gone."""
    for name in _BESIDE:
        there, here = source / name, target / name
        if is_regular_file(there):
            content = read_bytes(there, MAX_BYTES)
            if not os.path.isfile(here) or read_bytes(here, MAX_BYTES) != content:
                yield name, content
        elif os.path.lexists(here):
            yield name, None


@contextmanager
def alone(target: Path) -> Iterator[None]:
    """While this lasts no other process converts into the folder: it waits."""
    make_folder(target, error=CheckpointError, full=BudgetError)
    with ExitStack() as stack:
        with explain_os_errors(target / ".lock", CheckpointError, BudgetError):
            stack.enter_context(file_lock(target / ".lock"))
        yield


def convert(checkpoint: Checkpoint, target: Path, source: str, identity: str) -> None:
    """Write a checkpoint in int8 to a folder, and show how far it is. source, identity: what the manifest says of it.

    Holds a layer in int8 and one tensor of the source at a time. Raises CheckpointError for a folder that holds
    something else and for a source that changes meanwhile, BudgetError for a disk without the room, before writing.
    """
    from tqdm.auto import tqdm

    writer = _Writer(checkpoint, target, source, identity)
    writer.write_outer()
    with tqdm(range(checkpoint.config.n_layers), desc="int8", unit="layer", delay=1.0, leave=False) as layers:
        for index in layers:
            writer.write_layer(index)
    writer.finish()


class _Writer:
    """A conversion under way: what its manifest says is done, and a buffer for one layer."""

    def __init__(self, checkpoint: Checkpoint, target: Path, source: str, identity: str) -> None:
        self.checkpoint, self.target = checkpoint, target
        self.stamps = {path: stamp_of(path) for path in {stored.shard for stored in checkpoint.stored.values()}}
        self.manifest = {"format": FORMAT, "group": GROUP, "source": source, "identity": identity}
        self.files = self._done()
        self.outer = outer_layout(checkpoint.config, self._dtype(EMBEDDING), self._dtype(NORM))
        norms = {stored.dtype for name, stored in checkpoint.stored.items() if name.endswith("layernorm.weight")}
        self.layer = int8_layout(checkpoint.config, norms.pop() if len(norms) == 1 else torch.float32)
        self._require_room()
        for left in target.glob(f".*{SUFFIX}"):  # of a process that was ended in the middle
            left.unlink()
        self._note()
        for name, content in outdated_beside(checkpoint.folder, target):
            if content is not None:
                self._write(name, content)
        self.buffer = torch.empty(self.layer[-1].stop, dtype=torch.uint8)

    def write_outer(self) -> None:
        """Write what is outside the layers, unless it is there."""
        if OUTER not in self.files:
            parts = [self._read(piece.name) for piece in self.outer]
            self._save(OUTER, self.outer, [part.contiguous().reshape(-1).view(torch.uint8) for part in parts])

    def write_layer(self, index: int) -> None:
        """Write a layer's file, unless it is there."""
        if layer_file(index) not in self.files:
            self._fill(index)
            self._save(layer_file(index), self.layer, [self.buffer])

    def finish(self) -> None:
        self.manifest["complete"] = True
        self._note()

    def _fill(self, index: int) -> None:
        """Quantise a layer into the buffer."""
        pieces = {piece.name: piece for piece in self.layer}
        for name in (name for name in pieces if not name.endswith(SCALE)):
            weight, into = self._read(f"model.layers.{index}.{name}"), pieces[name].view(self.buffer)
            if name in MATRICES:
                quantise(weight, into, pieces[name + SCALE].view(self.buffer), f"model.layers.{index}.{name}")
            else:
                into.copy_(weight)

    def _read(self, name: str) -> Tensor:
        """A tensor of the source. CheckpointError for NaN or infinity in it."""
        tensor = self.checkpoint.read(name)
        require_finite(tensor, f"tensor {name!r} of {self.checkpoint.stored[name].shard}")
        return tensor

    def _save(self, name: str, pieces: list[TensorSlice], parts: list[Tensor]) -> None:
        digest = hashlib.sha256()

        def content() -> Iterator[bytes | memoryview]:
            yield header_of(pieces, {"format": FORMAT, "identity": str(self.manifest["identity"])})
            for part in parts:
                data = bytes_of(part)
                digest.update(data)
                yield data
            self._require_unchanged()

        self._write(name, content())
        path = self.target / name
        n_bytes = path.stat().st_size
        header = header_sum(path, n_bytes - pieces[-1].stop)
        self.files[name] = {"bytes": n_bytes, "sha256": digest.hexdigest(), "header": header}
        self._note()

    def _note(self) -> None:
        """Write the manifest as it stands."""
        self._write(MANIFEST, json.dumps({**self.manifest, "files": self.files}, indent=1))

    def _write(self, name: str, content: Content) -> None:
        write_file(self.target / name, content, error=CheckpointError, full=BudgetError)

    def _done(self) -> dict[str, dict[str, Any]]:
        """The files that an earlier conversion of the same checkpoint has written, but for damaged ones."""
        if not is_store(self.target):
            if self.target.is_dir() and any(not path.name.startswith(".") for path in self.target.iterdir()):
                raise CheckpointError(f"{self.target} is not empty and holds no conversion: give an empty or a new folder")
            return {}
        there = read_manifest(self.target)
        if there["identity"] != self.manifest["identity"]:
            raise CheckpointError(
                f"{self.target} holds a conversion of another checkpoint ({there['source']!r}): give another folder, "
                "or remove this one"
            )
        return {name: about for name, about in there["files"].items() if whole_file(self.target / name, about)}

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
