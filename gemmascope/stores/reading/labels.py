"""An array of a store as a labelled array, which is read when its values are asked for."""

from __future__ import annotations

from functools import partial

import numpy as np
import xarray
from xarray.core import indexing

from gemmascope.sites import SITES
from gemmascope.stores.reading.lazy import LazyRows
from gemmascope.stores.reading.shards import Shards
from gemmascope.stores.spec import ArraySpec
from gemmascope.values import Array


def labelled_rows(shards: Shards, array: ArraySpec) -> xarray.DataArray:
    """[row, ...], float32; labels of its rows: text, pos, id. Nothing is read before its values are asked for."""
    shape = (shards.n_rows, *array.shape)
    lazy = LazyRows(lambda rows: shards.read(array, rows).numpy(), shape, np.dtype(np.float32), array.name)
    dims = ("row", *array.axes)
    coords: dict[str, object] = {axis: (axis, np.arange(n)) for axis, n in zip(array.axes, array.shape, strict=True)}
    for name, dtype in (("text", np.int64), ("pos", np.int32), ("id", np.int32)):
        label = LazyRows(partial(_label, shards, name), (shards.n_rows,), np.dtype(dtype), name)
        coords[name] = xarray.Variable(("row",), indexing.LazilyIndexedArray(label))
    about = {"long_name": SITES[array.site].meaning}
    data = {array.name: xarray.Variable(dims, indexing.LazilyIndexedArray(lazy), about)}
    return xarray.Dataset(data, coords)[array.name]


def _label(shards: Shards, name: str, rows: Array) -> Array:
    values: Array = getattr(shards.places(rows), name)
    return values
