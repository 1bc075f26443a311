"""Rows of all shards as one array that xarray reads when it is asked for its values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from xarray.backends import BackendArray
from xarray.core import indexing

from gemmascope.memory.limits import require_free_memory
from gemmascope.values import Array


class LazyRows(BackendArray):
    """An array [row, ...] whose rows are read by a function.

    Args:
        read: Gives the rows of these numbers, [row, ...].
        shape: Its shape.
        dtype: Its dtype.
        name: What it is called in an error.
    """

    def __init__(
        self, read: Callable[[Array], Array], shape: tuple[int, ...], dtype: np.dtype[np.generic], name: str
    ) -> None:
        self._read, self.shape, self.dtype, self._name = read, shape, dtype, name

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Array:
        values: Array = indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._outer)
        return values

    def _outer(self, key: tuple[int | slice | Array, ...]) -> Array:
        rows = np.arange(self.shape[0])[key[0]]
        single = np.ndim(rows) == 0
        rows = np.atleast_1d(rows)
        n_bytes = len(rows) * int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        do = "read some of the rows, .isel(row=slice(0, 1000)), or go through them with store.scan(site, layer)"
        require_free_memory(2 * n_bytes, torch.device("cpu"), f"{len(rows):,} rows of {self._name}", do)
        values = self._read(rows)
        for axis in range(len(key) - 1, 0, -1):  # from the last, as a single number takes its axis away
            values = values[(slice(None),) * axis + (key[axis],)]
        return values[0] if single else values
