"""Converting a checkpoint to an int8 store.

The manifest is written after each file, so an interrupted conversion continues with the next file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from gemmascope.checkpoints.folder import Checkpoint, require_finite
from gemmascope.checkpoints.tensor_names import EMBEDDING
from gemmascope.errors import BudgetError, CheckpointError
from gemmascope.files.json_reader import MAX_BYTES, read_bytes
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
    file_stamp,
    header_of,
    int8_layout,
    outer_layout,
)
from gemmascope.streaming.store import (
    FORMAT,
    MANIFEST,
    OUTER,
    Manifest,
    StoredFile,
    header_sum,
    is_store,
    is_undamaged,
    layer_file,
    read_manifest,
)

# The source's configuration and tokenizer, which are copied to the store.
_COMPANIONS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
           "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json")  # fmt: skip


def identity_of(checkpoint: Checkpoint) -> str:
    """A digest of every bit of a checkpoint's tensors, whatever its files are called and however it is sharded.

    Reads the whole checkpoint, one tensor at a time.
    """
    names = sorted(checkpoint.stored)
    return join_digests((FORMAT, *names, *(tensor_digest(checkpoint.read(name)) for name in names)))


def outdated_companions(checkpoint: Checkpoint, target: Path) -> Iterator[tuple[str, bytes | None]]:
    """Configuration and tokenizer files whose copies are outdated: name and content, or None if the source has none."""
    for name in _COMPANIONS:
        content, copy = checkpoint.companion(name), target / name
        if content is not None:
            if not os.path.isfile(copy) or read_bytes(copy, MAX_BYTES) != content:
                yield name, content
        elif os.path.lexists(copy):
            yield name, None


@contextmanager
def exclusive(target: Path) -> Iterator[None]:
    """Keeps other processes from converting into the folder: they wait."""
    make_folder(target, error=CheckpointError, full=BudgetError)
    with ExitStack() as stack:
        with explain_os_errors(target / ".lock", CheckpointError, BudgetError):
            stack.enter_context(file_lock(target / ".lock"))
        yield


def convert(checkpoint: Checkpoint, target: Path, source: str, identity: str) -> None:
    """Convert a checkpoint to int8 in a folder, with a progress bar. source, identity: its name and digest for the manifest.

    Holds one layer in int8 and one tensor of the source in memory. Raises CheckpointError if the folder holds other files
    or the source changes meanwhile, and BudgetError, before writing, if the disk has no room.
    """
    from tqdm.auto import tqdm

    writer = _Writer(checkpoint, target, source, identity)
    writer.write_outer()
    with tqdm(range(checkpoint.config.n_layers), desc="int8", unit="layer", delay=1.0, leave=False) as layers:
        for index in layers:
            writer.write_layer(index)
    writer.finish()


class _Writer:
    """A conversion in progress: its manifest, and a buffer for one layer."""

    def __init__(self, checkpoint: Checkpoint, target: Path, source: str, identity: str) -> None:
        self.checkpoint, self.target = checkpoint, target
        self.stamps = {path: file_stamp(path) for path in {stored.shard for stored in checkpoint.stored.values()}}
        self.manifest: Manifest = {"format": FORMAT, "group": GROUP, "source": source, "identity": identity}
        self.files = self._finished_files()
        self.outer = outer_layout(checkpoint.config, self._dtype(EMBEDDING), self._dtype(NORM))
        norms = {stored.dtype for name, stored in checkpoint.stored.items() if name.endswith("layernorm.weight")}
        self.layer = int8_layout(checkpoint.config, norms.pop() if len(norms) == 1 else torch.float32)
        self._require_room()
        for abandoned in target.glob(f".*{SUFFIX}"):  # by a process that was killed while writing
            abandoned.unlink()
        self._write_manifest()
        for name, content in outdated_companions(checkpoint, target):
            if content is not None:
                self._write(name, content)
        self.buffer = torch.empty(self.layer[-1].stop, dtype=torch.uint8)

    def write_outer(self) -> None:
        """Write the tensors outside the layers, unless they are done."""
        if OUTER not in self.files:
            tensors = [self._read(slice_.name) for slice_ in self.outer]
            self._save(OUTER, self.outer, [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in tensors])

    def write_layer(self, index: int) -> None:
        """Write a layer's file, unless it is done."""
        if layer_file(index) not in self.files:
            self._fill(index)
            self._save(layer_file(index), self.layer, [self.buffer])

    def finish(self) -> None:
        self.manifest["complete"] = True
        self._write_manifest()

    def _fill(self, index: int) -> None:
        """Quantise a layer into the buffer."""
        slices = {slice_.name: slice_ for slice_ in self.layer}
        for name in (name for name in slices if not name.endswith(SCALE)):
            weight, into = self._read(f"model.layers.{index}.{name}"), slices[name].view(self.buffer)
            if name in MATRICES:
                quantise(weight, into, slices[name + SCALE].view(self.buffer), f"model.layers.{index}.{name}")
            else:
                into.copy_(weight)

    def _read(self, name: str) -> Tensor:
        """A tensor of the source. Raises CheckpointError if it holds NaN or infinity."""
        tensor = self.checkpoint.read(name)
        require_finite(tensor, f"tensor {name!r} of {self.checkpoint.stored[name].shard}")
        return tensor

    def _save(self, name: str, slices: list[TensorSlice], parts: list[Tensor]) -> None:
        digest = hashlib.sha256()

        def content() -> Iterator[bytes | memoryview]:
            yield header_of(slices, {"format": FORMAT, "identity": self.manifest["identity"]})
            for part in parts:
                data = bytes_of(part)
                digest.update(data)
                yield data
            self._require_unchanged()

        self._write(name, content())
        path = self.target / name
        n_bytes = path.stat().st_size
        header = header_sum(path, n_bytes - slices[-1].stop)
        self.files[name] = {"bytes": n_bytes, "sha256": digest.hexdigest(), "header": header}
        self._write_manifest()

    def _write_manifest(self) -> None:
        """Write the manifest in its current state."""
        self._write(MANIFEST, json.dumps({**self.manifest, "files": self.files}, indent=1))

    def _write(self, name: str, content: Content) -> None:
        write_file(self.target / name, content, error=CheckpointError, full=BudgetError)

    def _finished_files(self) -> dict[str, StoredFile]:
        """The undamaged files of an interrupted conversion of the same checkpoint."""
        if not is_store(self.target):
            if self.target.is_dir() and any(not path.name.startswith(".") for path in self.target.iterdir()):
                raise CheckpointError(f"{self.target} is not empty and holds no conversion: give an empty or a new folder")
            return {}
        manifest = read_manifest(self.target)
        if manifest["identity"] != self.manifest["identity"]:
            raise CheckpointError(
                f"{self.target} holds a conversion of another checkpoint ({manifest['source']!r}): give another folder, "
                "or remove this one"
            )
        return {name: entry for name, entry in manifest["files"].items() if is_undamaged(self.target / name, entry)}

    def _require_room(self) -> None:
        layers = [f for f in self.files if f != OUTER]
        needed = (self.checkpoint.config.n_layers - len(layers)) * (self.layer[-1].stop + 8192)
        needed += 0 if OUTER in self.files else max(slice_.stop for slice_ in self.outer) + 8192
        folder = self.target.absolute()
        while not folder.is_dir():
            folder = folder.parent
        if (free := shutil.disk_usage(folder).free) < needed:
            raise BudgetError(f"{self.target} needs {needed:,} bytes and the disk has {free:,} free: nothing was written")

    def _require_unchanged(self) -> None:
        for path, stamp in self.stamps.items():
            if not path.is_file() or file_stamp(path) != stamp:
                raise CheckpointError(f"{path} changed while it was read: start again, into an empty folder")

    def _dtype(self, name: str) -> torch.dtype:
        return self.checkpoint.stored[name].dtype
