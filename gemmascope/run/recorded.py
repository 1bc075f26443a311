"""RecordedRun: what the functions that read a run need of a Trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from gemmascope.edits.edit import BoundEdit, Edit
from gemmascope.edits.sources import ReadableRun
from gemmascope.model.layout import Layout
from gemmascope.model.tap import Tap
from gemmascope.run.reading.layer_cache import LayerCache
from gemmascope.sites import Site, SiteKey


@dataclass(frozen=True)
class LayerInfo:
    """A layer's index, its kind ("local" or "global"), and how many keys a query sees (None: all)."""

    index: int
    kind: str
    window: int | None


class RecordedRun(ReadableRun, Protocol):
    """A run with its residual stream. Trace implements it, and says what each member is."""

    residuals: tuple[Tensor, ...]
    bound_edits: tuple[BoundEdit, ...]
    marks: tuple[str, ...]
    layout: Layout
    layer_cache: LayerCache
    kept_values: dict[SiteKey, Tensor]

    @property
    def edits(self) -> tuple[Edit, ...]: ...
    @property
    def layers(self) -> tuple[LayerInfo, ...]: ...
    def top(self, k: int = 5, pos: int | str = -1) -> list[tuple[str, int, float]]: ...
    def read(self, site: Site, layer: int | None) -> Tensor: ...
    def require_weights(self, part: int | None) -> None: ...
    def edits_at(self, layer: int, sites: Sequence[str]) -> bool: ...
    def tap(self, keeping: Tap) -> Tap: ...
