"""params.npz read as data: a zip of five arrays of numbers, and two that gs.train_sae adds where they are needed.

numpy reads the arrays, with pickles refused, once every header has been checked: no code in the file runs, and no file that
declares more than it holds is unpacked.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from gemmascope.errors import DictionaryError

# The arrays of the format and their axes.
AXES: dict[str, tuple[str, ...]] = {
    "W_enc": ("d_in", "feature"),
    "W_dec": ("feature", "d_out"),
    "b_enc": ("feature",),
    "b_dec": ("d_out",),
    "threshold": ("feature",),
}
# What Gemma Scope's files never hold: a transcoder's skip connection, and how many features a TopK dictionary keeps.
MORE: dict[str, tuple[str, ...]] = {"W_skip": ("d_in", "d_out"), "k": ()}
_ALL = {**AXES, **MORE}
NUMBERS = (np.float16, np.float32, np.float64)

# Weights do not compress to a hundredth of their size: a file that declares more was made to fill the memory.
MOST_SHRUNK, SMALL = 100, 2**24


def read_params(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a params.npz by name, in the dtype of the file: the five, and what there is of the others.

    DictionaryError, which names the file, for a file that is no such zip, is cut short or was changed, holds other arrays,
    Python objects, shapes that do not fit together, NaN or infinity, or declares more than it can hold.
    """
    if not path.is_file():
        raise DictionaryError(f"{path} is a folder; give the file" if path.is_dir() else f"there is no file {path}")
    with _explain_damage(path), zipfile.ZipFile(path) as archive:
        members = _members(archive, path)
        _require_shapes({name: _checked_shape(archive, member, path) for name, member in members.items()}, path)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in members}  # to each array's end, where the zip's checksum is compared
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise DictionaryError(f"{path}: {name} holds NaN or infinity: it was written by a run that broke down")
    return arrays


@contextmanager
def _explain_damage(path: Path) -> Iterator[None]:
    """DictionaryError for whatever reading a damaged file raises."""
    try:
        yield
    except DictionaryError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise some twenty kinds between them
        raise DictionaryError(
            f"{path} is not a params.npz that can be read: {error}. It is cut short, was changed, or is something else: "
            "fetch it again"
        ) from error


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """The zip member of each array. DictionaryError for a missing, unknown or repeated one, or for a zip bomb."""
    names = [info.filename.removesuffix(".npy") for info in archive.infolist()]
    missing, more = sorted(set(AXES) - set(names)), sorted(set(names) - set(_ALL))
    if missing or more or len(names) > len(set(names)):
        reasons = [f"it lacks {', '.join(missing)}"] * bool(missing) + [f"it also holds {', '.join(more)}"] * bool(more)
        reasons = reasons or ["it holds one of them twice"]
        raise DictionaryError(f"{path} is no dictionary of {', '.join(AXES)} (JumpReLU): {'; '.join(reasons)}")
    declared, size = sum(info.file_size for info in archive.infolist()), path.stat().st_size
    if declared > max(SMALL, MOST_SHRUNK * size):
        raise DictionaryError(
            f"{path} has {size:,} bytes and declares {declared:,} unpacked: no weights shrink so far, and it is not read"
        )
    return dict(zip(names, archive.infolist(), strict=True))


def _checked_shape(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> tuple[int, ...]:
    """An array's shape, from its header. DictionaryError if it is not an array of AXES, or of another size than it holds."""
    with archive.open(member) as file:
        shape, dtype = _read_header(file)
        n_bytes = member.file_size - file.tell()
    name = member.filename.removesuffix(".npy")
    if dtype.hasobject:
        raise DictionaryError(f"{path}: {name} holds Python objects, that is a pickle, which could run code: it is not read")
    if dtype not in NUMBERS:
        raise DictionaryError(f"{path}: {name} holds {dtype}; a dictionary's arrays are float32 (or float16, float64)")
    if len(shape) != len(_ALL[name]) or not all(shape):
        raise DictionaryError(f"{path}: {name} has shape {shape}; it has the axes ({', '.join(_ALL[name])})")
    declared = dtype.itemsize
    for length in shape:  # as Python integers, which do not overflow
        declared *= length
    if declared != n_bytes:
        raise DictionaryError(f"{path}: {name} declares {declared:,} bytes of shape {shape} and holds {n_bytes:,}")
    return shape


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"arrays of format {version} are not read")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def _require_shapes(shapes: dict[str, tuple[int, ...]], path: Path) -> None:
    """DictionaryError for arrays whose lengths differ along an axis that they share."""
    sizes: dict[str, dict[str, int]] = {}
    for name, shape in shapes.items():
        for axis, length in zip(_ALL[name], shape, strict=True):
            sizes.setdefault(axis, {})[name] = length
    for axis, by_name in sizes.items():
        if len(set(by_name.values())) > 1:
            lengths = ", ".join(f"{length} in {name}" for name, length in by_name.items())
            raise DictionaryError(f"{path} holds arrays that do not belong together: {axis} is {lengths}")
