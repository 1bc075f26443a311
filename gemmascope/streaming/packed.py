"""Packed layers: a layer's bytes in one flat buffer, where they lie in files, and the tensors in them.

The bytes come from one safetensors file of an int8 store, or from several ranges of a checkpoint's shards.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TypedDict

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

# Threads that read layers from files at once when a model is loaded: one does not keep a fast disk busy, since it also
# computes checksums.
READERS = min(4, os.cpu_count() or 1)

SCALE, NORM = ".scale", "model.norm.weight"


@dataclass(frozen=True)
class TensorSlice:
    """A tensor in a buffer of bytes."""

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
        """The tensor, sharing the buffer's memory."""
        return buffer[self.start : self.stop].view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class FileRange:
    """Bytes of a file and their place in the buffer. stamp: the file's size, time and inode when the range was made."""

    path: Path
    offset: int
    n_bytes: int
    buffer_offset: int
    stamp: tuple[int, int, int]

    def read(self, buffer: memoryview, *, direct: bool = False) -> None:
        """Read into the buffer of the whole layer. Raises CheckpointError if the file changed, is gone or is cut short.

        direct: bypass the page cache if the range is aligned to pages. The buffer then comes from `page_buffer`.
        """
        direct = direct and self.offset % PAGE == 0 and self.buffer_offset % PAGE == 0
        length = _whole_pages(self.n_bytes) if direct else self.n_bytes
        target = buffer[self.buffer_offset : self.buffer_offset + length]
        try:
            done = read_into(self.path, self.offset, target, self.n_bytes, direct=direct)
            stamp = file_stamp(self.path)
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error}") from error
        if done < self.n_bytes:
            raise CheckpointError(f"{self.path} is cut short: it ends at {self.offset + done:,} bytes")
        if stamp != self.stamp:
            raise CheckpointError(f"{self.path} changed while it was in use: load the model again")


def _whole_pages(n_bytes: int) -> int:
    return -(-n_bytes // PAGE) * PAGE


def page_buffer(n_bytes: int) -> Tensor:
    """A uint8 buffer of whole, aligned pages, as reads that bypass the page cache need it."""
    return torch.frombuffer(private_memory(_whole_pages(max(1, n_bytes))), dtype=torch.uint8)


def private_memory(n_bytes: int) -> mmap.mmap:
    """Memory in whole pages, private to this process: mmap's default is shared with forked processes."""
    private = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)
    return mmap.mmap(-1, n_bytes, flags=private) if private else mmap.mmap(-1, n_bytes)


def bytes_of(buffer: Tensor) -> memoryview:
    """The bytes of a uint8 tensor on the CPU, writable in place."""
    return memoryview(buffer.numpy().data)


def file_stamp(path: Path) -> tuple[int, int, int]:
    """A file's size, time of the last change and inode: they differ if the file changed. CheckpointError if it is gone."""
    try:
        status = path.stat()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    return status.st_size, status.st_mtime_ns, status.st_ino


def require_stamp(path: Path, stamp: tuple[int, int, int]) -> None:
    """Raises CheckpointError if a file changed since its stamp was taken."""
    if not path.is_file() or file_stamp(path) != stamp:
        raise CheckpointError(f"{path} changed while it was in use: load the model again")


@dataclass(frozen=True)
class PackedLayer:
    """A layer's bytes: the file ranges they are read from, and the tensors in them, by their names within the layer.

    sha256: the checksum of all the bytes; None if it is not known.
    """

    ranges: tuple[FileRange, ...]
    slices: tuple[TensorSlice, ...]
    sha256: str | None = None
    _verified: list[bool] = field(default_factory=list, compare=False, repr=False)

    @cached_property
    def n_bytes(self) -> int:
        return max(slice_.stop for slice_ in self.slices)

    @cached_property
    def by_name(self) -> Mapping[str, TensorSlice]:
        return {slice_.name: slice_ for slice_ in self.slices}

    def read(self, buffer: memoryview, *, direct: bool = False) -> None:
        """Read the layer into a buffer. The first time, its checksum is verified, if it has one."""
        for each in self.ranges:
            each.read(buffer, direct=direct and len(self.ranges) == 1)
        if self.sha256 is not None and not self._verified:
            if hashlib.sha256(buffer[: self.n_bytes]).hexdigest() != self.sha256:
                raise CheckpointError(
                    f"{self.ranges[0].path} is damaged: its checksum is not the manifest's; remove it, and quantise again"
                )
            self._verified.append(True)

    @property
    def mark(self) -> str:
        """The files that the layer is read from, with their current stamps."""
        return repr([(str(each.path), file_stamp(each.path)) for each in self.ranges])

    def computes_in(self, dtype: torch.dtype) -> bool:
        """Whether the tensors are all stored in the dtype to compute in, so that they need no unpacking."""
        return all(slice_.dtype == dtype for slice_ in self.slices)

    @property
    def is_int8(self) -> bool:
        """Whether the matrices are stored in int8, with scales."""
        return all(name + SCALE in self.by_name for name in MATRICES)

    def unpack(self, buffer: Tensor, into: Mapping[str, Tensor]) -> None:
        """Write each tensor's numbers into the tensor of the same name, dequantised and cast."""
        for name, target in into.items():
            value = self.by_name[name].view(buffer)
            if name + SCALE in self.by_name:
                dequantise(value, self.by_name[name + SCALE].view(buffer), target)
            else:
                target.copy_(value)


def pack_layout(tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> list[TensorSlice]:
    """The slices of a buffer that holds these tensors without gaps, the widest dtypes first so that each is aligned."""
    names = sorted(tensors, key=lambda name: (-tensors[name][0].itemsize, name))
    sizes = [torch.Size(tensors[name][1]).numel() * tensors[name][0].itemsize for name in names]
    starts = accumulate([0, *sizes])
    return [TensorSlice(name, *tensors[name], start) for name, start in zip(names, starts, strict=False)]


def header_of(slices: Sequence[TensorSlice], metadata: Mapping[str, str]) -> bytes:
    """The safetensors header of a file that holds these slices."""
    described = {
        p.name: {"dtype": CODES[p.dtype], "shape": list(p.shape), "data_offsets": [p.start, p.stop]} for p in slices
    }
    text = json.dumps({"__metadata__": dict(metadata), **described}).encode()
    text += b" " * (-(8 + len(text)) % PAGE)  # the data begins at a page, so that reads can bypass the page cache
    return struct.pack("<Q", len(text)) + text


def read_header(path: Path) -> tuple[dict[str, TensorSlice], int]:
    """The tensors in a safetensors file, and the offset of its data. Raises CheckpointError for any other file."""
    try:
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            if length > path.stat().st_size:
                raise ValueError("the header is longer than the file")
            header = parse_json(file.read(length), path)
            slices = {name: _slice(name, entry) for name, entry in header.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise CheckpointError(f"{path} is no safetensors file that can be read: {error}") from error
    return slices, 8 + length


class _Entry(TypedDict):
    """A tensor's entry in a safetensors header."""

    dtype: str
    shape: list[int]
    data_offsets: list[int]


def _slice(name: str, entry: _Entry) -> TensorSlice:
    """A tensor as a header describes it. Raises ValueError, KeyError or TypeError for a malformed entry."""
    sizes, (start, stop) = entry["shape"], entry["data_offsets"]
    if not all(type(size) is int and 0 <= size < 2**48 for size in (*sizes, start, stop)):
        raise ValueError(f"tensor {name[:80]!r} has sizes or offsets that are none")
    described = TensorSlice(name, PACKED_DTYPES[entry["dtype"]], tuple(sizes), start)
    if described.stop != stop:
        raise ValueError(f"tensor {name[:80]!r} does not fill its place in the file")
    return described


# The matrices of a layer, and its norms.
MATRICES = tuple(f"self_attn.{x}_proj.weight" for x in "qkvo") + tuple(
    f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")
)
NORMS = tuple(f"{x}_layernorm.weight" for x in ("input", "post_attention", "pre_feedforward", "post_feedforward"))

QK_NORMS = ("self_attn.q_norm.weight", "self_attn.k_norm.weight")


def layer_shapes(config: GemmaConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of a layer."""
    d, d_q, d_kv, d_mlp = config.d_model, config.n_heads * config.d_head, config.n_kv_heads * config.d_head, config.d_mlp
    shapes = ((d_q, d), (d_kv, d), (d_kv, d), (d, d_q), (d_mlp, d), (d_mlp, d), (d, d_mlp))
    norms = {**dict.fromkeys(NORMS, (d,)), **(dict.fromkeys(QK_NORMS, (config.d_head,)) if config.qk_norms else {})}
    return {**dict(zip(MATRICES, shapes, strict=True)), **norms}


def int8_layout(config: GemmaConfig, norms: torch.dtype) -> list[TensorSlice]:
    """The layout of a layer in int8: the matrices, their scales, and the norms in their own dtype."""
    tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for name, shape in layer_shapes(config).items():
        tensors[name] = (torch.int8 if name in MATRICES else norms, shape)
        if name in MATRICES:
            tensors[name + SCALE] = (torch.float16, (shape[0], n_groups(shape[1])))
    return pack_layout(tensors)


def outer_layout(config: GemmaConfig, embedding: torch.dtype, norm: torch.dtype) -> list[TensorSlice]:
    """The layout of what is outside the layers: the embedding and the last norm, in their stored dtypes."""
    return pack_layout({EMBEDDING: (embedding, (config.vocab_size, config.d_model)), NORM: (norm, (config.d_model,))})


def plain_layout(config: GemmaConfig, dtype: torch.dtype) -> list[TensorSlice]:
    """The layout of a layer in a single dtype."""
    return pack_layout({name: (dtype, shape) for name, shape in layer_shapes(config).items()})
