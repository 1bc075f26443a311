"""The sites of layers that a trace does not keep but has at hand, of all traces of the process within a limit of memory.

They are those of layers that ran again, and those that a trace's own run made anyway (reading/keep.py). The layer that was
read longest ago goes first, whichever trace it is of. A trace takes its own with it when it goes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from heapq import heapify, heappop, heappush
from itertools import count
from threading import Lock
from weakref import WeakSet

import torch
from torch import Tensor

from gemmascope.model.model import Model
from gemmascope.sites import LAYER_SITES, SITES, Site

# A layer that ran again is cached with all its sites up to this many bytes; above it, only the requested site is kept.
MAX_CACHED_LAYER_BYTES = 256 * 2**20

# What all traces of the process may have cached together.
MAX_CACHED_BYTES = 2**30

# The sites that a layer makes anyway and no trace stores: they cost no computing, and few bytes beside scores and patterns.
MADE_ANYWAY: tuple[Site, ...] = tuple(
    SITES[name]
    for name in LAYER_SITES
    if not SITES[name].is_edges and not SITES[name].is_scale and name not in ("resid_pre", "resid_post", "head_out")
)

_clock = count()
_caches: WeakSet[LayerCache] = WeakSet()
_eviction = Lock()


class LayerCache:
    """Sites of the layers of one trace, by layer; None stands for what follows the last layer.

    Threads may share it. Its lock is not held while a layer runs.
    """

    def __init__(self) -> None:
        self._sites: OrderedDict[int | None, dict[str, Tensor]] = OrderedDict()  # the layer read longest ago comes first
        self._read_at: dict[int | None, int] = {}
        self._n_bytes: dict[int | None, int] = {}
        self._unchecked: set[int | None] = set()
        self._lock = Lock()
        with _eviction:
            _caches.add(self)

    def get(self, layer: int | None) -> dict[str, Tensor]:
        """The cached sites of a layer."""
        with self._lock:
            if layer not in self._sites:
                return {}
            self._touch(layer)
            return self._sites[layer]

    def add(self, layer: int | None, sites: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add sites of a layer to those that are cached, which another thread may have added meanwhile; returns them all."""
        with self._lock:
            merged = self._add(layer, sites)
        _evict()
        return merged

    def add_layers(self, layers: Mapping[int | None, dict[str, Tensor]]) -> None:
        """Add sites of several layers, as the run itself made them."""
        with self._lock:
            for layer, sites in layers.items():
                self._add(layer, sites)
                self._unchecked.add(layer)
        _evict()

    def needs_check(self, layer: int | None) -> bool:
        """Whether the layer's sites come from the run and nobody called checked(): its weights may have changed since."""
        with self._lock:
            return layer in self._unchecked and layer in self._sites

    def checked(self, layer: int | None) -> None:
        """The weights of the layer are those of the run, as they are for a layer that ran again."""
        with self._lock:
            self._unchecked.discard(layer)

    def fits(self, n_bytes: int) -> bool:
        """Whether sites of one layer that have so many bytes are small enough to be cached."""
        return n_bytes <= MAX_CACHED_LAYER_BYTES

    def sizes(self) -> list[int]:
        """The bytes that are cached for each layer."""
        return list(self.sizes_by_layer().values())

    def sizes_by_layer(self) -> dict[int | None, int]:
        """The bytes that are cached, by layer."""
        with self._lock:
            return dict(self._n_bytes)

    def oldest(self) -> tuple[int, int | None] | None:
        """When the layer that was read longest ago was read, on a clock that all traces share, and the layer; or None."""
        with self._lock:
            return next(((self._read_at[layer], layer) for layer in self._sites), None)

    def drop(self, layer: int | None) -> int:
        """Free the sites of a layer, and return how many bytes they had."""
        with self._lock:
            self._sites.pop(layer, None)
            self._read_at.pop(layer, None)
            return self._n_bytes.pop(layer, 0)

    def _add(self, layer: int | None, sites: dict[str, Tensor]) -> dict[str, Tensor]:
        merged = self._sites[layer] = {**self._sites.get(layer, {}), **sites}
        self._n_bytes[layer] = n_bytes_of(merged.values())
        self._touch(layer)
        return merged

    def _touch(self, layer: int | None) -> None:
        self._sites.move_to_end(layer)
        self._read_at[layer] = next(_clock)


def _evict() -> None:
    """Free layers, the one that was read longest ago first, until all traces are within the limit."""
    with _eviction:
        caches = list(_caches)
        excess = sum(sum(cache.sizes()) for cache in caches) - MAX_CACHED_BYTES
        if excess <= 0:
            return
        ages = [(*oldest, cache) for cache in caches if (oldest := cache.oldest()) is not None]
        heapify(ages)
        while excess > 0 and ages:
            _, layer, cache = heappop(ages)
            excess -= cache.drop(layer)
            if (oldest := cache.oldest()) is not None:
                heappush(ages, (*oldest, cache))


def bytes_of_site(model: Model, site: Site, length: int) -> int:
    """The memory of a site of one layer in a run of so many positions, in bytes."""
    is_float32 = site.is_scale or "vocab" in site.axes
    n_numbers = torch.Size(model.config.size_of(axis, length) for axis in site.axes).numel()
    return n_numbers * (4 if is_float32 else model.dtype.itemsize)


def n_bytes_of(values: Iterable[Tensor]) -> int:
    """The memory of some tensors, in bytes. What several share counts once."""
    return sum({store.data_ptr(): store.nbytes() for store in (value.untyped_storage() for value in values)}.values())
