"""Packed layers: the bytes of a layer as they lie in files, in one flat buffer, and the tensors that they hold.

A layer's bytes come from one safetensors file of a store, or from places in the shards of a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gemmascope.checkpoints.shards import DTYPES
from gemmascope.checkpoints.tensor_names import EMBEDDING
from gemmascope.config import GemmaConfig
from gemmascope.errors import CheckpointError
from gemmascope.files.json_reader import parse_json
from gemmascope.files.positional_read import PAGE, read_into
from gemmascope.streaming.int8 import dequantise, n_groups

PACKED_DTYPES = {**DTYPES, "I8": torch.int8}
CODES = {dtype: code for code, dtype in PACKED_DTYPES.items()}

SCALE, NORM = ".scale", "model.norm.weight"


@dataclass(frozen=True)
class TensorSlice:
    """A tensor in a buffer of bytes: where it begins, and what it is."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def stop(self) -> int:
        return self.start + self.n_bytes

    def view(self, buffer: Tensor) -> Tensor:
        """The tensor, in the memory of the buffer."""
        return buffer[self.start : self.stop].view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class FileRange:
    """Bytes of a file, `at` their place in the buffer. stamp: what the file looked like when it was described."""

    path: Path
    offset: int
    n_bytes: int
    at: int
    stamp: tuple[int, int, int]

    def read(self, buffer: memoryview, *, direct: bool = False) -> None:
        """Read into the buffer of the whole layer. CheckpointError for a file that changed, is gone or is cut short.

        direct: past the page cache where the place in the file allows it. The buffer is then of `room(...)`.
        """
        direct = direct and self.offset % PAGE == 0 and self.at % PAGE == 0
        target = buffer[self.at : self.at + (_paged(self.n_bytes) if direct else self.n_bytes)]
        try:
            done = read_into(self.path, self.offset, target, self.n_bytes, direct=direct)
            stamp = stamp_of(self.path)
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error}") from error
        if done < self.n_bytes:
            raise CheckpointError(f"{self.path} is cut short: it ends at {self.offset + done:,} bytes")
        if stamp != self.stamp:
            raise CheckpointError(f"{self.path} changed while it was in use: load the model again")


def _paged(n_bytes: int) -> int:
    return -(-n_bytes // PAGE) * PAGE


def room(n_bytes: int) -> Tensor:
    """A buffer of whole pages for so many bytes, uint8, into which the disk may write by itself."""
    return torch.frombuffer(own_memory(_paged(max(1, n_bytes))), dtype=torch.uint8)


def own_memory(n_bytes: int) -> mmap.mmap:
    """Memory in whole pages. Private: mmap's default would be shared with forked processes, which would fill it, too."""
    private = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)
    return mmap.mmap(-1, n_bytes, flags=private) if private else mmap.mmap(-1, n_bytes)


def bytes_of(buffer: Tensor) -> memoryview:
    """The bytes of a tensor of uint8 on the CPU, to be read and written in place."""
    return memoryview(buffer.numpy().data)


def stamp_of(path: Path) -> tuple[int, int, int]:
    """What tells a file from the same file changed: size, time of the last change, inode. CheckpointError if it is gone."""
    try:
        found = path.stat()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    return found.st_size, found.st_mtime_ns, found.st_ino


def require_stamp(path: Path, stamp: tuple[int, int, int]) -> None:
    """CheckpointError for a file that does not look as it did."""
    if not path.is_file() or stamp_of(path) != stamp:
        raise CheckpointError(f"{path} changed while it was in use: load the model again")


@dataclass(frozen=True)
class PackedLayer:
    """A layer's bytes: where they are read from, and the tensors in them, by the names within the layer.

    sha256: of all the bytes, where it is known.
    """

    spans: tuple[FileRange, ...]
    pieces: tuple[TensorSlice, ...]
    sha256: str | None = None
    checked: list[bool] = field(default_factory=list, compare=False, repr=False)

    @cached_property
    def n_bytes(self) -> int:
        return max(piece.stop for piece in self.pieces)

    @cached_property
    def by_name(self) -> Mapping[str, TensorSlice]:
        return {piece.name: piece for piece in self.pieces}

    def read(self, buffer: memoryview, *, direct: bool = False) -> None:
        """Read the layer into a buffer. The first time, its checksum is taken, if there is one to compare with."""
        for span in self.spans:
            span.read(buffer, direct=direct and len(self.spans) == 1)
        if self.sha256 is not None and not self.checked:
            if hashlib.sha256(buffer[: self.n_bytes]).hexdigest() != self.sha256:
                raise CheckpointError(
                    f"{self.spans[0].path} is damaged: its checksum is not the manifest's; remove it, and quantise again"
                )
            self.checked.append(True)

    @property
    def mark(self) -> str:
        """The files that the layer is read from, as they are now."""
        return repr([(str(span.path), stamp_of(span.path)) for span in self.spans])

    def ready(self, dtype: torch.dtype) -> bool:
        """Whether the tensors can be computed with where they lie."""
        return all(piece.dtype == dtype for piece in self.pieces)

    def unpack(self, buffer: Tensor, into: Mapping[str, Tensor]) -> None:
        """Write every tensor as the numbers that it stands for."""
        for name, target in into.items():
            value = self.by_name[name].view(buffer)
            if name + SCALE in self.by_name:
                dequantise(value, self.by_name[name + SCALE].view(buffer), target)
            else:
                target.copy_(value)


def laid_out(tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> list[TensorSlice]:
    """The pieces of a buffer that holds these tensors without holes, wide numbers first, so that each is aligned."""
    names = sorted(tensors, key=lambda name: (-tensors[name][0].itemsize, name))
    sizes = [torch.Size(tensors[name][1]).numel() * tensors[name][0].itemsize for name in names]
    starts = accumulate([0, *sizes])
    return [TensorSlice(name, *tensors[name], start) for name, start in zip(names, starts, strict=False)]


def header_of(pieces: Sequence[TensorSlice], metadata: Mapping[str, str]) -> bytes:
    """What a safetensors file has before these bytes."""
    described = {
        p.name: {"dtype": CODES[p.dtype], "shape": list(p.shape), "data_offsets": [p.start, p.stop]} for p in pieces
    }
    text = json.dumps({"__metadata__": dict(metadata), **described}).encode()
    text += b" " * (-(8 + len(text)) % PAGE)  # the data begins at a page, as reading past the page cache wants it
    return struct.pack("<Q", len(text)) + text


def pieces_in(path: Path) -> tuple[dict[str, TensorSlice], int]:
    """The tensors in a safetensors file, and where its data begins. CheckpointError if it is none."""
    try:
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            if length > path.stat().st_size:
                raise ValueError("the header is longer than the file")
            header = parse_json(file.read(length), path)
            pieces = {name: _piece(name, entry) for name, entry in header.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise CheckpointError(f"{path} is no safetensors file that can be read: {error}") from error
    return pieces, 8 + length


def _piece(name: str, entry: Mapping[str, Any]) -> TensorSlice:
    """A tensor as a header describes it. ValueError and the like for what no writer writes."""
    sizes, (start, stop) = entry["shape"], entry["data_offsets"]
    if not all(type(size) is int and 0 <= size < 2**48 for size in (*sizes, start, stop)):
        raise ValueError(f"tensor {name[:80]!r} has sizes or offsets that are none")
    piece = TensorSlice(name, PACKED_DTYPES[entry["dtype"]], tuple(sizes), start)
    if piece.stop != stop:
        raise ValueError(f"tensor {name[:80]!r} does not fill its place in the file")
    return piece


# The matrices of a layer, and its norms.
MATRICES = tuple(f"self_attn.{x}_proj.weight" for x in "qkvo") + tuple(
    f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")
)
NORMS = tuple(f"{x}_layernorm.weight" for x in ("input", "post_attention", "pre_feedforward", "post_feedforward"))


def layer_shapes(config: GemmaConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of a layer."""
    d, d_q, d_kv, d_mlp = config.d_model, config.n_heads * config.d_head, config.n_kv_heads * config.d_head, config.d_mlp
    shapes = ((d_q, d), (d_kv, d), (d_kv, d), (d, d_q), (d_mlp, d), (d_mlp, d), (d, d_mlp))
    return dict(zip(MATRICES, shapes, strict=True)) | dict.fromkeys(NORMS, (d,))


def int8_layout(config: GemmaConfig, norms: torch.dtype) -> list[TensorSlice]:
    """A layer in int8: matrices and their scales, norms in a dtype of their own."""
    tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for name, shape in layer_shapes(config).items():
        tensors[name] = (torch.int8 if name in MATRICES else norms, shape)
        if name in MATRICES:
            tensors[name + SCALE] = (torch.float16, (shape[0], n_groups(shape[1])))
    return laid_out(tensors)


def outer_layout(config: GemmaConfig, embedding: torch.dtype, norm: torch.dtype) -> list[TensorSlice]:
    """What is outside the layers: the embedding and the last norm, as they are stored."""
    return laid_out({EMBEDDING: (embedding, (config.vocab_size, config.d_model)), NORM: (norm, (config.d_model,))})


def plain_layout(config: GemmaConfig, dtype: torch.dtype) -> list[TensorSlice]:
    """A layer in one dtype throughout."""
    return laid_out({name: (dtype, shape) for name, shape in layer_shapes(config).items()})
