"""RecordedRun: what the functions that read a run need of a Trace; and the cache of its layers that ran again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Protocol

from torch import Tensor

from gemmascope.edits.edit import BoundEdit, Edit
from gemmascope.edits.sources import ReadableRun
from gemmascope.model.layout import Layout
from gemmascope.model.tap import Tap
from gemmascope.sites import Site

# A layer that ran again is cached with all its sites up to this many bytes; above it, only the requested site is kept.
MAX_CACHED_LAYER_BYTES = 256 * 2**20
MAX_CACHED_LAYERS = 4


@dataclass(frozen=True)
class LayerInfo:
    """A layer's index, its kind ("local" or "global"), and how many keys a query sees (None: all)."""

    index: int
    kind: str
    window: int | None


class LayerCache:
    """The sites of the layers that ran again last, by layer; None stands for what follows the last layer.

    Threads may share it. Its lock is not held while a layer runs.
    """

    def __init__(self) -> None:
        self._sites: OrderedDict[int | None, dict[str, Tensor]] = OrderedDict()
        self._lock = Lock()

    def get(self, layer: int | None) -> dict[str, Tensor]:
        """The cached sites of a layer."""
        with self._lock:
            if layer in self._sites:
                self._sites.move_to_end(layer)
            return self._sites.get(layer, {})

    def add(self, layer: int | None, sites: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add sites of a layer to those that are cached, which another thread may have added meanwhile; returns them all."""
        with self._lock:
            merged = self._sites[layer] = {**self._sites.get(layer, {}), **sites}
            self._sites.move_to_end(layer)
            while len(self._sites) > MAX_CACHED_LAYERS:
                self._sites.popitem(last=False)
            return merged

    def fits(self, n_bytes: int) -> bool:
        """Whether sites of one layer that have so many bytes are small enough to be cached."""
        return n_bytes <= MAX_CACHED_LAYER_BYTES

    def sizes(self) -> list[int]:
        """The bytes that are cached for each layer."""
        with self._lock:
            return [n_bytes_of(sites.values()) for sites in self._sites.values()]


def n_bytes_of(values: Iterable[Tensor]) -> int:
    """The memory of some tensors, in bytes."""
    return sum(value.numel() * value.element_size() for value in values)


class RecordedRun(ReadableRun, Protocol):
    """A run with its residual stream. Trace implements it, and says what each member is."""

    residuals: tuple[Tensor, ...]
    bound_edits: tuple[BoundEdit, ...]
    marks: tuple[str, ...]
    layout: Layout
    layer_cache: LayerCache

    @property
    def edits(self) -> tuple[Edit, ...]: ...
    @property
    def layers(self) -> tuple[LayerInfo, ...]: ...
    def top(self, k: int = 5, pos: int | str = -1) -> list[tuple[str, int, float]]: ...
    def read(self, site: Site, layer: int | None) -> Tensor: ...
    def require_weights(self, part: int | None) -> None: ...
    def edits_at(self, layer: int, sites: Sequence[str]) -> bool: ...
    def tap(self, keeping: Tap) -> Tap: ...
