"""AskedOfRay: the arguments of gs.ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass
class AskedOfRay:
    """What was asked for. See gs.ray."""

    address: str | None
    n: int
    gpus_per_worker: float | None
    cpus_per_worker: int
    init: Mapping[str, object]
