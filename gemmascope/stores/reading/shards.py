"""Shards: all shards of a store, opened when they are first needed, and the rows of several of them together."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gemmascope.errors import StoreError
from gemmascope.stores.encoding import Encoded, decode
from gemmascope.stores.manifest import ShardLine
from gemmascope.stores.reading.batches import Block, Values
from gemmascope.stores.reading.shard import Shard
from gemmascope.stores.shard_format import scale_name
from gemmascope.stores.spec import DTYPES, ArraySpec, StoreSpec
from gemmascope.stores.writing.shard_writer import digest_of
from gemmascope.values import Array

# How many shards stay mapped: each takes an open file.
MOST_MAPPED = 128


class RowPlaces(NamedTuple):
    """What some rows are: the number of their text in the store, their position in it, and their token id. Each [row]."""

    text: Array
    pos: Array
    id: Array


class Shards:
    """The shards of a store. Threads may share it.

    Args:
        folder: The store's folder.
        lines: The finished shards.
        spec: What is stored.
    """

    def __init__(self, folder: Path, lines: Sequence[ShardLine], spec: StoreSpec) -> None:
        self.folder, self.lines, self.spec = folder, tuple(lines), spec
        self.row_starts = np.concatenate(([0], np.cumsum([line.n_rows for line in lines], dtype=np.int64)))
        self.run_starts = np.concatenate(([0], np.cumsum([line.n_runs for line in lines], dtype=np.int64)))
        self._open: OrderedDict[int, Shard] = OrderedDict()
        self._lock = Lock()

    @property
    def n_rows(self) -> int:
        return int(self.row_starts[-1])

    @property
    def n_runs(self) -> int:
        return int(self.run_starts[-1])

    def shard(self, number: int) -> Shard:
        """One shard. StoreError if its file is missing or damaged."""
        with self._lock:
            if number in self._open:
                self._open.move_to_end(number)
                return self._open[number]
        shard = Shard(self.folder, self.lines[number], self.spec)
        with self._lock:
            self._open[number] = shard
            while len(self._open) > MOST_MAPPED:
                self._open.popitem(last=False)
        return shard

    def of_run(self, run: int) -> tuple[Shard, int]:
        """The shard that a run is in, and the run's number there."""
        number = int(np.searchsorted(self.run_starts, run, side="right")) - 1
        return self.shard(number), run - int(self.run_starts[number])

    def rows_of_run(self, run: int) -> slice:
        """The rows of a run."""
        number = int(np.searchsorted(self.run_starts, run, side="right")) - 1
        starts = self.shard(number).table("runs.row")
        at = run - int(self.run_starts[number])
        first = int(self.row_starts[number])
        return slice(first + int(starts[at]), first + int(starts[at + 1]))

    def counts(self, n_runs: int | None = None) -> list[int]:
        """The rows of each shard; with n_runs only those of the first so many runs."""
        stop = self.n_rows if n_runs is None or n_runs >= self.n_runs else self.rows_of_run(n_runs).start
        return [int(n) for n in np.diff(self.row_starts.clip(max=stop))]

    def _by_shard(self, rows: Array) -> Iterator[tuple[int, Array, Array | slice]]:
        """For each shard that some rows are in: its number, which of the rows, and their numbers there."""
        numbers = np.searchsorted(self.row_starts, rows, side="right") - 1
        for number in np.unique(numbers).tolist():
            which = np.flatnonzero(numbers == number)
            at = rows[which] - self.row_starts[number]
            is_run = len(at) and at[-1] - at[0] == len(at) - 1 and bool((np.diff(at) == 1).all())
            yield number, which, slice(int(at[0]), int(at[-1]) + 1) if is_run else at

    def read(self, array: ArraySpec, rows: Array) -> Tensor:
        """Some rows of an array, in their order: float32 [row, *shape], in memory of their own."""
        values = torch.empty(len(rows), array.width)
        for number, which, at in self._by_shard(rows):
            part = self.shard(number).encoded(array, at)
            if which[-1] - which[0] == len(which) - 1:  # neighbours: they become float32 where they belong
                target = values[int(which[0]) : int(which[-1]) + 1]
                target.copy_(part.values)
                if part.scale is not None:
                    target.mul_(part.scale[:, None])
            else:
                values[torch.from_numpy(which)] = decode(part)
        return values.view(len(rows), *array.shape)

    def places(self, rows: Array) -> RowPlaces:
        """What some rows are."""
        places = RowPlaces(*(np.empty(len(rows), dtype) for dtype in (np.int64, np.int32, np.int32)))
        for number, which, at in self._by_shard(rows):
            for name, values in places._asdict().items():
                values[which] = self.shard(number).table(f"rows.{name}")[at]
        return places

    def tokens(self, rows: Array) -> list[str]:
        """The token of each of some rows, as text."""
        texts = [""] * len(rows)
        for number, which, at in self._by_shard(rows):
            shard = self.shard(number)
            for place, text in zip(which.tolist(), shard.tokens(shard.table("rows.id")[at].tolist()), strict=True):
                texts[place] = text
        return texts

    def encoded(self, array: ArraySpec, rows: Array) -> Encoded:
        """Some rows of an array as they are stored, [row, width]."""
        values = torch.empty(len(rows), array.width, dtype=DTYPES[self.spec.dtype])
        scale = torch.empty(len(rows)) if self.spec.dtype == "int8" else None
        for number, which, at in self._by_shard(rows):
            part, index = self.shard(number).encoded(array, at), torch.from_numpy(which)
            values[index] = part.values
            if scale is not None and part.scale is not None:
                scale[index] = part.scale
        return Encoded(values, scale)

    def read_blocks(self, arrays: Sequence[ArraySpec], blocks: Sequence[Block], n_free: int) -> Values:
        """Blocks of rows as they are stored, one after the other, behind n_free rows that are left free; of each array.

        They are read without mapping, so that they come as fast as the disk gives them.
        """
        n_rows = n_free + sum(block.stop - block.start for block in blocks)
        values: Values = []
        for array in arrays:
            scale = torch.empty(n_rows) if self.spec.dtype == "int8" else None
            values.append(Encoded(torch.empty(n_rows, array.width, dtype=DTYPES[self.spec.dtype]), scale))
        at = n_free
        file: FileIO | None = None
        opened = -1
        try:
            for block in blocks:
                shard = self.shard(block.shard)
                if file is None or opened != block.shard:
                    if file is not None:
                        file.close()
                    file, opened = FileIO(shard.path, "rb"), block.shard
                for array, target in zip(arrays, values, strict=True):
                    _fill(file, shard, array.name, block, target.values[at : at + block.stop - block.start])
                    if target.scale is not None:
                        _fill(file, shard, scale_name(array), block, target.scale[at : at + block.stop - block.start])
                at += block.stop - block.start
        finally:
            if file is not None:
                file.close()
        return values

    def verify(self) -> None:
        """Read every shard whole. StoreError for the first whose bytes are not those that were written."""
        for line in self.lines:
            path = self.folder / line.file
            try:
                with FileIO(path, "rb") as file:
                    n_bytes, sha256 = digest_of(file)
            except OSError as error:
                raise StoreError(f"{path} cannot be read: {error.strerror}") from error
            if (n_bytes, sha256) != (line.n_bytes, line.sha256):
                raise StoreError(
                    f"{path} is damaged: its SHA-256 is {sha256[:16]}..., and {line.sha256[:16]}... was written. Take the "
                    "file from a copy, or harvest into another folder"
                )


def _fill(file: FileIO, shard: Shard, name: str, block: Block, target: Tensor) -> None:
    region = shard.regions[name]
    data = target.view(torch.uint8).numpy().reshape(-1).data
    file.seek(region.offset + block.start * region.bytes_per_row)
    done = 0
    while done < len(data):
        count = file.readinto(data[done:])
        if not count:
            raise StoreError(f"{os.fspath(shard.path)} ends within {name}: it was changed since the store was opened")
        done += count
