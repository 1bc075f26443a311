"""The safetensors files of a checkpoint: their headers, and reading one tensor at a time."""

from __future__ import annotations

import struct
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gemmascope.errors import CheckpointError
from gemmascope.files.json_reader import is_regular_file, parse_json

# By their names in safetensors headers.
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as its file's header describes it, under the name it has there."""

    name: str
    shard: Path
    shape: tuple[int, ...]
    dtype: torch.dtype


class Shards:
    """Open safetensors files. Opening reads their headers; `read` reads one tensor.

    Files are read rather than memory-mapped: mapped pages would count as resident memory beside the model they are copied
    to, and would change if the file does.
    """

    def __init__(self, paths: list[Path]) -> None:
        """Raises CheckpointError, naming the file, for one that is missing, cut short or not a safetensors file."""
        self.stored: dict[str, StoredTensor] = {}
        self._files: dict[Path, Any] = {}
        self._closing = ExitStack()
        try:
            for path in paths:
                self._open(path)
        except BaseException:
            self.close()
            raise

    def _open(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        if not is_regular_file(path):
            raise CheckpointError(f"the shard {path.name} is not in {path.parent}: fetch it again")
        try:
            opened = safe_open(path, framework="pt", backend="pread")
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read: {_why(path) or error}") from error
        file = self._files[path] = self._closing.enter_context(opened)
        for name in file.keys():  # noqa: SIM118 (a safe_open has no __iter__)
            if name in self.stored:
                raise CheckpointError(f"tensor {name!r} lies in two files: {self.stored[name].shard.name} and {path.name}")
            header = file.get_slice(name)
            dtype = _dtype(header.get_dtype(), name, path)
            self.stored[name] = StoredTensor(name, path, tuple(header.get_shape()), dtype)

    def read(self, name: str) -> Tensor:
        """The tensor of this name, on the CPU, in its stored dtype. The caller owns its memory."""
        from safetensors import SafetensorError

        stored = self.stored[name]
        try:
            tensor: Tensor = self._files[stored.shard].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"tensor {name!r} of {stored.shard} cannot be read: {error}") from error
        return tensor

    def close(self) -> None:
        self._files.clear()
        self._closing.close()


def _dtype(code: str, name: str, path: Path) -> torch.dtype:
    if code not in DTYPES:
        raise CheckpointError(
            f"tensor {name!r} of {path} is stored as {code}; known are F32, BF16, F16. "
            "A quantised checkpoint cannot be loaded: give the original one"
        )
    return DTYPES[code]


def _why(path: Path) -> str | None:
    """Why safetensors refuses a file, for the usual cases; None for the others."""
    try:
        return _damage(path)
    except OSError:  # not readable at all: safetensors' own message says so
        return None


def _damage(path: Path) -> str | None:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start == b"version ":
            return "it is a git-lfs pointer, not the weights: run `git lfs pull` in the folder"
        if len(start) < 8:
            return f"it is cut short: {size} bytes are there, too few for a header; fetch it again"
        length = struct.unpack("<Q", start)[0]
        if length > size - 8:
            return f"it is no safetensors file, or cut short within its header ({size:,} bytes are there)"
        try:
            header = parse_json(file.read(length), path)
            end_offsets = {
                name: 8 + length + entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"
            }
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            return "its header is no safetensors header"
    cut = sorted((end, name) for name, end in end_offsets.items() if end > size)
    if not cut:
        return None
    return (
        f"it is cut short: {size:,} bytes are there and {cut[-1][0]:,} are needed, so tensor {cut[0][1]!r} "
        f"and {len(cut) - 1} more are not whole; fetch it again"
    )
