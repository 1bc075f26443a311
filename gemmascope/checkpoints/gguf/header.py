"""The header of a GGUF file: its metadata, and where each tensor lies.

The gguf package reads headers too, but takes many seconds for a vocabulary of 262,144 tokens; this takes under one, and says
where a damaged file ends. The package dequantises (tensors.py).

References: the GGUF specification of the ggml project (docs/gguf.md).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from gemmascope.errors import CheckpointError

T = TypeVar("T")

MAGIC = b"GGUF"
VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
# The formats of numbers in metadata, by their types in the file.
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
# More than any file has: a larger count means a damaged file, and is refused before it is read.
_MOST_ENTRIES, _MOST_ITEMS, _MOST_BYTES = 2**20, 2**26, 2**26
_SKIPPED = object()
# Longer than any list of a layer's settings.
LONG = 2**13


@dataclass(frozen=True)
class Entry:
    """A tensor's entry in a header. shape: as torch has it, the reverse of the file's. offset: from the file's start."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int


@dataclass(frozen=True)
class Header:
    """What a GGUF file says about itself: metadata by key, and the entries of its tensors.

    If long lists were skipped, as read_header does on request, the metadata lacks them: the vocabulary is one.
    """

    path: Path
    metadata: dict[str, object]
    entries: tuple[Entry, ...]


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF files do."""
    try:
        with path.open("rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def read_header(path: Path, *, skip_lists: bool = False) -> Header:
    """The header of a GGUF file. CheckpointError for another file, one that is cut short, or another version.

    skip_lists: Leave out lists of more than LONG items, such as a vocabulary, which are most of a header.
    """
    return _read(path, lambda reader: reader.header(skip_lists=skip_lists))


def read_architecture(path: Path) -> str | None:
    """The architecture that a GGUF file names, from its first entries; None if it names none. Errors as read_header."""
    return _read(path, _Reader.architecture)


def _read(path: Path, read: Callable[[_Reader], T]) -> T:
    try:
        with path.open("rb") as file:
            return read(_Reader(file, path))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (struct.error, UnicodeDecodeError, KeyError, OverflowError, ValueError) as error:
        raise CheckpointError(f"{path} is cut short or damaged: its header cannot be read ({error})") from error


class _Reader:
    """Reads a header from the start of a file."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self._ended = f"it ends at {path.stat().st_size:,} bytes, inside its header"

    def header(self, *, skip_lists: bool = False) -> Header:
        n_tensors, n_metadata = self._counts()
        metadata = {}
        for _ in range(n_metadata):
            key = self._text()
            value = self._value(int(self._number("I")), skip_lists=skip_lists)
            if value is not _SKIPPED:
                metadata[key] = value
        entries = [self._entry() for _ in range(n_tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 2**20:
            raise ValueError(f"its alignment is {alignment!r}")
        start = -(-self._file.tell() // alignment) * alignment
        placed = (Entry(name, shape, type_id, start + offset) for name, shape, type_id, offset in entries)
        return Header(self._path, metadata, tuple(placed))

    def architecture(self) -> str | None:
        _, n_metadata = self._counts()
        for _ in range(n_metadata):
            key = self._text()
            value = self._value(int(self._number("I")), skip_lists=True)
            if key == "general.architecture":
                return value if isinstance(value, str) else None
        return None

    def _counts(self) -> tuple[int, int]:
        """How many tensors and entries of metadata there are."""
        if self._take(4) != MAGIC:
            raise CheckpointError(f"{self._path} is no GGUF file: it does not begin with GGUF")
        version, n_tensors, n_metadata = self._number("I"), self._number("Q"), self._number("Q")
        if version not in VERSIONS:
            known = " and ".join(map(str, VERSIONS))
            raise CheckpointError(
                f"{self._path} is GGUF of version {version}; versions {known}, little-endian, are read: convert it anew"
            )
        if max(n_tensors, n_metadata) > _MOST_ENTRIES:
            raise ValueError(f"it announces {n_tensors:,} tensors and {n_metadata:,} entries")
        return n_tensors, n_metadata

    def _take(self, n: int) -> bytes:
        content = self._file.read(n)
        if len(content) < n:
            raise ValueError(self._ended)
        return content

    def _number(self, code: str) -> int:
        return int(struct.unpack(f"<{code}", self._take(struct.calcsize(code)))[0])

    def _text(self) -> str:
        n_bytes = self._number("Q")
        if n_bytes > _MOST_BYTES:
            raise ValueError(f"it announces a text of {n_bytes:,} bytes")
        return self._take(n_bytes).decode("utf-8", "surrogateescape")

    def _value(self, type_id: int, *, skip_lists: bool = False) -> object:
        if type_id == _STRING:
            return self._text()
        if type_id != _ARRAY:
            return struct.unpack(f"<{_FORMATS[type_id]}", self._take(struct.calcsize(_FORMATS[type_id])))[0]
        inner, count = self._number("I"), self._number("Q")
        if count > _MOST_ITEMS:
            raise ValueError(f"it announces a list of {count:,} items")
        skipped = skip_lists and count > LONG
        if inner == _STRING:
            return self._skip_texts(count) if skipped else self._texts(count)
        if inner == _ARRAY:
            return [self._value(_ARRAY) for _ in range(count)]
        code = f"<{count}{_FORMATS[inner]}"
        if skipped:
            self._file.seek(struct.calcsize(code), 1)
            return _SKIPPED
        return list(struct.unpack(code, self._take(struct.calcsize(code))))

    def _texts(self, count: int) -> list[str]:
        """A list of texts, such as a vocabulary of hundreds of thousands: in one loop with as few calls as possible."""
        read: Callable[[int], bytes] = self._file.read
        unpack, texts = struct.Struct("<Q").unpack, []
        for _ in range(count):
            head = read(8)
            if len(head) < 8:
                raise ValueError(self._ended)
            (n_bytes,) = unpack(head)
            if n_bytes > _MOST_BYTES:
                raise ValueError(f"it announces a text of {n_bytes:,} bytes")
            content = read(n_bytes)
            if len(content) < n_bytes:
                raise ValueError(self._ended)
            texts.append(content.decode("utf-8", "surrogateescape"))
        return texts

    def _skip_texts(self, count: int) -> object:
        read, seek, unpack = self._file.read, self._file.seek, struct.Struct("<Q").unpack
        for _ in range(count):
            (n_bytes,) = unpack(read(8))  # struct.error at the end of the file
            if n_bytes > _MOST_BYTES:
                raise ValueError(f"it announces a text of {n_bytes:,} bytes")
            seek(n_bytes, 1)
        return _SKIPPED

    def _entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name, n_dims = self._text(), self._number("I")
        if n_dims > 8:
            raise ValueError(f"tensor {name[:80]!r} has {n_dims} dimensions")
        shape = tuple(self._number("Q") for _ in range(n_dims))
        return name, shape[::-1], self._number("I"), self._number("Q")
