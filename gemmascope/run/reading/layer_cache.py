"""The sites of layers that ran again, of all traces of the process together, within a limit of memory.

The layer that was read longest ago goes first, whichever trace it is of. A trace takes its own with it when it goes.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count
from threading import Lock
from weakref import WeakSet

import torch
from torch import Tensor

from gemmascope.model.model import Model
from gemmascope.sites import Site

# A layer that ran again is cached with all its sites up to this many bytes; above it, only the requested site is kept.
MAX_CACHED_LAYER_BYTES = 256 * 2**20

# What all traces of the process may have cached together.
MAX_CACHED_BYTES = 2**30

_clock = count()
_caches: WeakSet[LayerCache] = WeakSet()
_eviction = Lock()


class LayerCache:
    """The sites of the layers of one trace that ran again last, by layer; None stands for what follows the last layer.

    Threads may share it. Its lock is not held while a layer runs.
    """

    def __init__(self) -> None:
        self._sites: dict[int | None, dict[str, Tensor]] = {}
        self._read_at: dict[int | None, int] = {}
        self._lock = Lock()
        with _eviction:
            _caches.add(self)

    def get(self, layer: int | None) -> dict[str, Tensor]:
        """The cached sites of a layer."""
        with self._lock:
            if layer in self._sites:
                self._read_at[layer] = next(_clock)
            return self._sites.get(layer, {})

    def add(self, layer: int | None, sites: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add sites of a layer to those that are cached, which another thread may have added meanwhile; returns them all."""
        with self._lock:
            merged = self._sites[layer] = {**self._sites.get(layer, {}), **sites}
            self._read_at[layer] = next(_clock)
        _evict()
        return merged

    def fits(self, n_bytes: int) -> bool:
        """Whether sites of one layer that have so many bytes are small enough to be cached."""
        return n_bytes <= MAX_CACHED_LAYER_BYTES

    def sizes(self) -> list[int]:
        """The bytes that are cached for each layer."""
        return list(self.sizes_by_layer().values())

    def sizes_by_layer(self) -> dict[int | None, int]:
        """The bytes that are cached, by layer."""
        with self._lock:
            return {layer: n_bytes_of(sites.values()) for layer, sites in self._sites.items()}

    def read_at(self) -> dict[int | None, int]:
        """When each cached layer was read last, on a clock that all traces share."""
        with self._lock:
            return dict(self._read_at)

    def drop(self, layer: int | None) -> None:
        """Free the sites of a layer."""
        with self._lock:
            self._sites.pop(layer, None)
            self._read_at.pop(layer, None)


def _evict() -> None:
    """Free layers, the one that was read longest ago first, until all traces are within the limit."""
    with _eviction:
        caches = list(_caches)
        sizes = {(cache, layer): size for cache in caches for layer, size in cache.sizes_by_layer().items()}
        excess = sum(sizes.values()) - MAX_CACHED_BYTES
        if excess <= 0:
            return
        ages = sorted((age, layer, cache) for cache in caches for layer, age in cache.read_at().items())
        for _, layer, cache in ages:
            cache.drop(layer)
            excess -= sizes.get((cache, layer), 0)
            if excess <= 0:
                return


def bytes_of_site(model: Model, site: Site, length: int) -> int:
    """The memory of a site of one layer in a run of so many positions, in bytes."""
    is_float32 = site.is_scale or "vocab" in site.axes
    n_numbers = torch.Size(model.config.size_of(axis, length) for axis in site.axes).numel()
    return n_numbers * (4 if is_float32 else model.dtype.itemsize)


def n_bytes_of(values: Iterable[Tensor]) -> int:
    """The memory of some tensors, in bytes."""
    return sum(value.numel() * value.element_size() for value in values)
