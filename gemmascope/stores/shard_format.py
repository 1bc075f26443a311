"""The files of shards: safetensors, whose header is written before the rows are known, so that rows need not be in memory.

A shard of n rows and t texts holds, beside one array [n, width] for each array of the store (and its `scale` [n] with int8):

- rows.text [n], rows.pos [n], rows.id [n]: of every row the number of its run in the store, the position and the token id;
- runs.row [t+1]: at which row of the shard each run begins; runs.source [t] and runs.first [t]: as in TextRun;
- runs.token [t+1], runs.ids [tokens]: at which token each run begins, and all token ids, `<bos>` included;
- runs.byte [t+1], runs.text [bytes]: the text of every run as UTF-8;
- vocab.id [v], vocab.byte [v+1], vocab.text [bytes]: how each token that occurs is written, by its id.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from gemmascope.errors import GemmascopeError, StoreError
from gemmascope.files.json_reader import parse_json
from gemmascope.stores.spec import DTYPES, ArraySpec

# Of safetensors' names, those that a shard uses, with numpy's dtype for the bytes and torch's; numpy has no bfloat16.
_NUMPY = {"I64": "<i8", "I32": "<i4", "F32": "<f4", "BF16": "<u2", "I8": "<i1", "U8": "<u1"}
TORCH = {"I64": torch.int64, "I32": torch.int32, "F32": torch.float32, "BF16": torch.bfloat16, "I8": torch.int8}
TORCH |= {"U8": torch.uint8}
NAMES = {dtype: name for name, dtype in TORCH.items()}

# A header of more bytes than this is damage.
_MOST_HEADER = 2**27
_ADVICE = "Harvest it again into another folder, or take the file from a copy"


class Region(NamedTuple):
    """Where a tensor is in a file: its safetensors dtype, its shape, and the byte it begins at."""

    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.row_dtype.itemsize

    @property
    def row_dtype(self) -> np.dtype[np.generic]:
        """The numpy dtype of its bytes; uint16 for bfloat16."""
        return np.dtype(_NUMPY[self.dtype])

    @property
    def bytes_per_row(self) -> int:
        return math.prod(self.shape[1:]) * self.row_dtype.itemsize


Regions = Mapping[str, Region]


def scale_name(array: ArraySpec) -> str:
    return f"{array.name}.scale"


def array_shapes(arrays: Iterable[ArraySpec], dtype: str, n_rows: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The dtypes and shapes of a shard's arrays, by name."""
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    for array in arrays:
        shapes[array.name] = NAMES[DTYPES[dtype]], (n_rows, array.width)
        if dtype == "int8":
            shapes[scale_name(array)] = "F32", (n_rows,)
    return shapes


def header_of(
    shapes: Mapping[str, tuple[str, tuple[int, ...]]], about: Mapping[str, str]
) -> tuple[bytes, dict[str, Region]]:
    """The header of a file, and where each tensor goes. Larger numbers come first, so that each is aligned."""
    size = {name: np.dtype(_NUMPY[dtype]).itemsize for name, (dtype, _) in shapes.items()}
    entries: dict[str, object] = {"__metadata__": dict(about)}
    regions: dict[str, Region] = {}
    at = 0
    for name in sorted(shapes, key=lambda name: -size[name]):
        dtype, shape = shapes[name]
        regions[name] = Region(dtype, shape, at)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + regions[name].n_bytes]}
        at += regions[name].n_bytes
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    moved = {name: region._replace(offset=start + region.offset) for name, region in regions.items()}
    return len(text).to_bytes(8, "little") + text, moved


def read_regions(path: Path) -> Regions:
    """Where the tensors of a shard are. StoreError if the file is missing, cut off, or no such file."""
    try:
        n_bytes = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            text = file.read(length) if length <= min(_MOST_HEADER, n_bytes) else b""
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}. {_ADVICE}") from error
    try:
        entries = parse_json(text, path, error=StoreError)
        regions = {
            name: Region(entry["dtype"], tuple(map(int, entry["shape"])), 8 + length + int(entry["data_offsets"][0]))
            for name, entry in entries.items()
            if name != "__metadata__"
        }
        end = max(region.offset + region.n_bytes for region in regions.values())
    except (GemmascopeError, AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise StoreError(f"{path} is damaged: it does not begin as a shard. {_ADVICE}") from error
    if end != n_bytes:
        raise StoreError(f"{path} is damaged: it has {n_bytes:,} bytes, and its header names {end:,}. {_ADVICE}")
    return regions


def require_regions(path: Path, regions: Regions, arrays: Sequence[ArraySpec], dtype: str, n_rows: int) -> None:
    """StoreError for a shard that lacks an array, or has one of another shape."""
    for name, (kind, shape) in array_shapes(arrays, dtype, n_rows).items():
        region = regions.get(name)
        if region is None or (region.dtype, region.shape) != (kind, shape):
            given = "no such array" if region is None else f"{region.dtype} {list(region.shape)}"
            raise StoreError(f"{path} is damaged: {name} should be {kind} {list(shape)}, and it has {given}. {_ADVICE}")
