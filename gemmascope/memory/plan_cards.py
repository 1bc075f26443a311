"""What each of several GPUs of a model holds, which a plan lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from gemmascope.config import GemmaConfig
from gemmascope.memory.placement import Placement, Sizes
from gemmascope.memory.plan_tables import gigabytes
from gemmascope.memory.sizes import TASKS, Part, device_parts, run_parts, sweep_part, weight_parts
from gemmascope.memory.spread import CardShare, sizes_on
from gemmascope.sites import layers_text


@dataclass(frozen=True)
class CardPlan:
    """What one of a model's devices holds, in bytes.

    Attributes:
        device: The device.
        layers: The numbers of the layers that it computes.
        placement: Which of them stay on it.
        limit: The budget, or else the bytes that were free on it.
        parts: What takes memory on it.
    """

    device: torch.device
    layers: range
    placement: Placement
    limit: int | None
    parts: tuple[Part, ...]

    @cached_property
    def peaks(self) -> dict[str, int]:
        """Bytes on the device at once, by task."""
        return {task: sum(part.n_bytes for part in self.parts if task in part.tasks) for task in TASKS}

    def row(self, tasks: Sequence[str]) -> list[str]:
        """The device, its layers and its bytes, as cells of a table."""
        kept, total = len(self.placement.kept), max(self.peaks[task] for task in tasks)
        streams = "" if kept == len(self.layers) else f", {len(self.layers) - kept} of them stream"
        first = "embedding, " if self.layers.start == 0 else ""
        room = "" if self.limit is None else f" of {gigabytes(self.limit)}"
        return [str(self.device), gigabytes(total) + room, f"{first}{layers_text(self.layers)}{streams}"]

    def to_dict(self) -> dict[str, object]:
        """The device as JSON."""
        return {
            "device": str(self.device), "layers": list(self.layers), "layers_kept": list(self.placement.kept),
            "limit": self.limit, "peaks": self.peaks,
        }  # fmt: skip


def parts_on(
    config: GemmaConfig, sizes: Sizes, share: CardShare, dtype: torch.dtype, context: int, rows: int
) -> tuple[Part, ...]:
    """What takes memory on one device, whose share may be the whole model."""
    own = sizes_on(sizes, len(share.layers), first=share.layers.start == 0)
    return (
        *weight_parts(config, own, share.placement, dtype),
        *device_parts(share.device),
        *parts_of_run(config, dtype, context, rows, share.layers),
    )


def parts_of_run(
    config: GemmaConfig, dtype: torch.dtype, context: int, rows: int, layers: range | None = None
) -> tuple[Part, ...]:
    """What runs take beside the weights. layers: those of the device; None: all."""
    return (*run_parts(config, dtype, context, layers), sweep_part(config, dtype, rows))


def sum_of_parts(cards: Sequence[tuple[Part, ...]]) -> tuple[Part, ...]:
    """The parts of all devices together: those of one name as one."""
    if len(cards) == 1:
        return cards[0]
    by_name: dict[str, list[Part]] = {}
    for part in (part for parts in cards for part in parts):
        by_name.setdefault(part.name, []).append(part)
    return tuple(
        Part(name, sum(part.n_bytes for part in parts), f"on {len(parts)} devices", parts[0].tasks, parts[0].of_device)
        if len(parts) > 1
        else parts[0]
        for name, parts in by_name.items()
    )
