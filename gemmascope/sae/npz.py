"""params.npz read as data: a zip of five arrays of numbers. Nothing in the file is ever run, and no array is a pickle.

Each array's header is read and checked before any of its numbers are.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from gemmascope.errors import DictionaryError

# Every array of the format, and its axes.
AXES: dict[str, tuple[str, ...]] = {
    "W_enc": ("d_in", "feature"),
    "W_dec": ("feature", "d_out"),
    "b_enc": ("feature",),
    "b_dec": ("d_out",),
    "threshold": ("feature",),
}
NUMBERS = (np.float16, np.float32, np.float64)

# Weights do not compress to a hundredth: a file that declares more than that is made to fill the memory.
MOST_SHRUNK, SMALL = 100, 2**24

Array = np.ndarray[Any, Any]


def read_params(path: Path) -> dict[str, Array]:
    """The five arrays of a params.npz, as they are stored, by name.

    DictionaryError, which names the file, for one that is no such zip, is cut short or was changed, that holds other
    arrays, Python objects, shapes that do not belong together, NaN or infinity, or that declares more than it can hold.
    """
    if not path.is_file():
        raise DictionaryError(f"{path} is a folder; give the file" if path.is_dir() else f"there is no file {path}")
    with _explained(path), zipfile.ZipFile(path) as archive:
        members = _members(archive, path)
        shapes = {name: _header(archive, member, path)[0] for name, member in members.items()}
        _require_shapes(shapes, path)
        return {name: _read(archive, member, path) for name, member in members.items()}


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns what reading a damaged file raises into DictionaryError."""
    try:
        yield
    except DictionaryError:
        raise
    except Exception as error:  # zipfile, zlib and numpy's reader of headers raise some twenty kinds between them
        raise DictionaryError(
            f"{path} is not a params.npz that can be read: {error}. It is cut short, was changed, or is something else: "
            "fetch it again"
        ) from error


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """The zip's member of each array. DictionaryError if there are others, or if one is not there."""
    there = [info.filename.removesuffix(".npy") for info in archive.infolist()]
    missing, more = sorted(set(AXES) - set(there)), sorted(set(there) - set(AXES))
    if missing or more or len(there) > len(AXES):
        said = [f"it lacks {', '.join(missing)}"] * bool(missing) + [f"it also holds {', '.join(more)}"] * bool(more)
        said = said or ["it holds one of them twice"]
        raise DictionaryError(f"{path} is no dictionary of {', '.join(AXES)} (JumpReLU): {'; '.join(said)}")
    declared, size = sum(info.file_size for info in archive.infolist()), path.stat().st_size
    if declared > max(SMALL, MOST_SHRUNK * size):
        raise DictionaryError(
            f"{path} has {size:,} bytes and declares {declared:,} unpacked: no weights shrink so far, and it is not read"
        )
    return dict(zip(there, archive.infolist(), strict=True))


def _header(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """An array's shape, whether it is laid out by columns, and its dtype. DictionaryError if it is no array of AXES."""
    with archive.open(member) as file:
        shape, by_column, dtype = _read_header(file)
        n_bytes = member.file_size - file.tell()
    name = member.filename.removesuffix(".npy")
    if dtype.hasobject:
        raise DictionaryError(f"{path}: {name} holds Python objects, that is a pickle, which could run code: it is not read")
    if dtype not in NUMBERS:
        raise DictionaryError(f"{path}: {name} holds {dtype}; a dictionary's arrays are float32 (or float16, float64)")
    if len(shape) != len(AXES[name]) or not all(shape):
        raise DictionaryError(f"{path}: {name} has shape {shape}; it has the axes ({', '.join(AXES[name])})")
    wanted = dtype.itemsize
    for length in shape:
        wanted *= length
    if wanted != n_bytes:
        raise DictionaryError(f"{path}: {name} declares {wanted:,} bytes of shape {shape} and holds {n_bytes:,}")
    return shape, by_column, dtype


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(file)
    if version == (1, 0):
        return npy.read_array_header_1_0(file)
    if version == (2, 0):
        return npy.read_array_header_2_0(file)
    raise ValueError(f"arrays of format {version} are not read")


def _require_shapes(shapes: dict[str, tuple[int, ...]], path: Path) -> None:
    """DictionaryError for arrays that do not belong together."""
    sizes: dict[str, dict[str, int]] = {}
    for name, shape in shapes.items():
        for axis, length in zip(AXES[name], shape, strict=True):
            sizes.setdefault(axis, {})[name] = length
    for axis, by_name in sizes.items():
        if len(set(by_name.values())) > 1:
            said = ", ".join(f"{length} in {name}" for name, length in by_name.items())
            raise DictionaryError(f"{path} holds arrays that do not belong together: {axis} is {said}")


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> Array:
    """An array's numbers, checked to be finite. The zip's own checksum tells whether they were changed."""
    shape, by_column, dtype = _header(archive, member, path)
    found = np.empty(shape[::-1] if by_column else shape, dtype)
    with archive.open(member) as file:
        _read_header(file)
        left = memoryview(found.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        while len(left):
            n_bytes = file.readinto(left)  # type: ignore[attr-defined]
            if not n_bytes:
                raise EOFError("it ends in the middle of an array")
            left = left[n_bytes:]
        if file.read(1):  # reading to the end compares the checksum
            raise ValueError("an array is longer than its header says")
    if not np.isfinite(found).all():
        name = member.filename.removesuffix(".npy")
        raise DictionaryError(f"{path}: {name} holds NaN or infinity: it was written by a run that broke down")
    return found.T if by_column else found
