"""ShardWriter: the file of one shard, which rows are written into as a pass makes them.

The file has another name until it is whole and on the disk.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from io import FileIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gemmascope.files.replace import SUFFIX, sync, sync_folder
from gemmascope.stores.shard_format import Region, array_shapes, header_of, scale_name
from gemmascope.stores.spec import StoreSpec
from gemmascope.stores.writing.parts import Part
from gemmascope.stores.writing.tables import KINDS, RunTables
from gemmascope.values import Array, chunks

# Bytes that are copied or hashed at once.
BLOCK = 2**22


def shard_name(number: int) -> str:
    """The name of a shard's file."""
    return f"shard-{number:05}.safetensors"


class ShardWriter:
    """The file of a shard while it is written. To be closed, finished or not.

    Args:
        folder: The store's folder.
        number: The number of the shard.
        tables: Its runs.
        spec: What is stored of them.
    """

    def __init__(self, folder: Path, number: int, tables: RunTables, spec: StoreSpec) -> None:
        self.path, self.tables, self.spec, self.number = folder / shard_name(number), tables, spec, number
        self._rows = tables.row_starts.tolist()
        self._norms: dict[str, Tensor] = {}
        self._file, self._regions = self._begin(self._temporary(""), None)

    @property
    def n_rows(self) -> int:
        """The rows of the runs, outliers included."""
        return int(self._rows[-1])

    def put(self, part: Part) -> None:
        """Write the rows of one array of one run. OSError if the disk takes no more."""
        first = self._rows[part.run]
        name = part.array.name
        _write_rows(self._file, self._regions[name], first, part.rows.values)
        if part.rows.scale is not None:
            _write_rows(self._file, self._regions[scale_name(part.array)], first, part.rows.scale)
        if part.norms is not None:
            norms = self._norms.setdefault(name, torch.zeros(self.n_rows))
            norms[first : first + len(part.norms)] = part.norms

    def finish(self) -> tuple[int, int, str, str]:
        """Leave outliers out, and put the file in its place. Returns the rows left out, its bytes, SHA-256 and name."""
        kept = self._kept()
        n_outliers = 0 if kept is None else int((~kept).sum())
        if kept is not None and n_outliers:
            self._leave_out(kept)
        sync(self._file)
        n_bytes, sha256 = digest_of(self._file)
        self._file.close()
        os.replace(self._temporary("-2" if n_outliers else ""), self.path)
        sync_folder(self.path.parent)
        return n_outliers, n_bytes, sha256, self.path.name

    def close(self) -> None:
        """Close the file, and remove it unless it was finished. May be called again."""
        with suppress(OSError):
            self._file.close()
        for kind in ("", "-2"):
            self._temporary(kind).unlink(missing_ok=True)

    def _temporary(self, kind: str) -> Path:
        return self.path.with_name(f"{self.path.name}{kind}{SUFFIX}")

    def _begin(self, path: Path, kept: Array | None) -> tuple[FileIO, dict[str, Region]]:
        """A new file with its header and its tables. kept: which rows it has; None for all."""
        tables = self.tables.tables(kept)
        shapes = {name: (KINDS[table.dtype], table.shape) for name, table in tables.items()}
        shapes |= array_shapes(self.spec.arrays, self.spec.dtype, len(tables["rows.pos"]))
        header, regions = header_of(shapes, {"format": "gemmascope.shard.1", "shard": str(self.number)})
        file = FileIO(path, "wb+")
        try:
            _write(file, 0, memoryview(header))
            file.truncate(max(region.offset + region.n_bytes for region in regions.values()))
            for name, table in tables.items():
                _write(file, regions[name].offset, memoryview(table.tobytes()))
        except BaseException:
            file.close()
            path.unlink(missing_ok=True)
            raise
        return file, regions

    def _kept(self) -> Array | None:
        """Which rows are no outliers at any array; None where outliers are kept."""
        if self.spec.outliers is None:
            return None
        kept = torch.ones(self.n_rows, dtype=torch.bool)
        for norms in self._norms.values():
            if median := float(norms.median()):
                kept &= norms <= self.spec.outliers * median
        return kept.numpy()

    def _leave_out(self, kept: Array) -> None:
        """Copy the rows that stay into a second file, which takes the place of the first."""
        old, regions = self._file, self._regions
        path, rows = self._temporary(""), np.flatnonzero(kept)
        self._file, self._regions = self._begin(self._temporary("-2"), kept)
        for name in array_shapes(self.spec.arrays, self.spec.dtype, 0):
            source = np.memmap(path, np.uint8, "r", regions[name].offset, (self.n_rows, regions[name].bytes_per_row))
            step = max(1, BLOCK // regions[name].bytes_per_row)
            for part in chunks(len(rows), step):
                _write_rows(self._file, self._regions[name], part.start, torch.from_numpy(source[rows[part]]))
        old.close()
        path.unlink()


def _write_rows(file: FileIO, region: Region, first: int, rows: Tensor) -> None:
    if rows.numel():
        data = rows.contiguous().view(torch.uint8).numpy().reshape(-1).data
        _write(file, region.offset + first * region.bytes_per_row, data)


def _write(file: FileIO, offset: int, data: memoryview) -> None:
    file.seek(offset)
    done = 0
    while done < len(data):
        done += file.write(data[done:])


def digest_of(file: FileIO) -> tuple[int, str]:
    """The length of an open file, and its SHA-256."""
    sha256 = hashlib.sha256()
    buffer = bytearray(BLOCK)
    n_bytes = file.seek(0)
    while count := file.readinto(buffer):
        sha256.update(memoryview(buffer)[:count])
        n_bytes += count
    return n_bytes, sha256.hexdigest()
