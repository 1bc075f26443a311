"""Shard: one shard of a store as a mapped file. Nothing is read before it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gemmascope.errors import StoreError
from gemmascope.stores.encoding import Encoded
from gemmascope.stores.manifest import ShardLine
from gemmascope.stores.shard_format import TORCH, read_regions, require_regions, scale_name
from gemmascope.stores.spec import ArraySpec, StoreSpec
from gemmascope.values import Array


class Shard:
    """A shard's arrays and tables. StoreError if its file is missing, cut off, or not the one of the store's list."""

    def __init__(self, folder: Path, line: ShardLine, spec: StoreSpec) -> None:
        self.path, self.line, self.spec = folder / line.file, line, spec
        self.regions = read_regions(self.path)
        require_regions(self.path, self.regions, spec.arrays, spec.dtype, line.n_rows)
        if len(self.table("runs.row")) != line.n_runs + 1 or len(self.table("rows.pos")) != line.n_rows:
            raise StoreError(f"{self.path} is damaged: its tables are not of {line.n_runs} runs and {line.n_rows} rows")

    @cached_property
    def _bytes(self) -> Array:
        return np.memmap(self.path, np.uint8, "r")

    def mapped(self, name: str) -> Array:
        """One tensor of the file, mapped; of bfloat16 its bits, as uint16."""
        region = self.regions[name]
        data = self._bytes[region.offset : region.offset + region.n_bytes]
        return data.view(region.row_dtype).reshape(region.shape)

    def table(self, name: str) -> Array:
        """One of the small tables. StoreError if there is none."""
        if name not in self.regions:
            raise StoreError(f"{self.path} is damaged: it has no {name}")
        return self.mapped(name)

    def encoded(self, array: ArraySpec, at: Array | slice) -> Encoded:
        """Some rows of an array as they are stored, [row, width], in memory of their own."""
        return Encoded(self._part(array.name, at), self._part(scale_name(array), at) if self.spec.dtype == "int8" else None)

    def _part(self, name: str, at: Array | slice) -> Tensor:
        values = np.array(self.mapped(name)[at])  # a copy: a tensor over a mapped file could not be written to
        kind = self.regions[name].dtype
        return torch.from_numpy(values).view(TORCH[kind]) if kind == "BF16" else torch.from_numpy(values)

    def ids(self, run: int) -> Array:
        """All token ids of one of its runs, `<bos>` included."""
        starts = self.table("runs.token")
        return np.array(self.table("runs.ids")[starts[run] : starts[run + 1]])

    def text(self, run: int) -> str:
        """The text of one of its runs."""
        return _text(self.table("runs.byte"), self.table("runs.text"), run)

    def source(self, run: int) -> tuple[int, int]:
        """The number of the text that a run is of, and the token of it that the run's piece begins at."""
        return int(self.table("runs.source")[run]), int(self.table("runs.first")[run])

    @cached_property
    def vocab(self) -> dict[int, str]:
        """How each token that occurs is written, by its id."""
        starts, text = self.table("vocab.byte"), self.table("vocab.text")
        return {int(token): _text(starts, text, i) for i, token in enumerate(self.table("vocab.id"))}

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Each token as text."""
        return [self.vocab[int(i)] for i in ids]


def _text(starts: Array, data: Array, at: int) -> str:
    return bytes(data[starts[at] : starts[at + 1]]).decode("utf-8")
