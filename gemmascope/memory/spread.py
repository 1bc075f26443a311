"""Spread: which layers of a model lie on which of several GPUs. Each has layers that follow each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch

from gemmascope.checkpoints.device import Devices
from gemmascope.config import GemmaConfig
from gemmascope.errors import BudgetError
from gemmascope.memory.placement import (
    MICROBATCH_ROWS,
    RESERVED_ROWS,
    Placement,
    Sizes,
    free_bytes,
    place_layers,
    work_bytes,
)
from gemmascope.sites import layers_text


@dataclass(frozen=True)
class CardShare:
    """What one device of a model holds.

    Attributes:
        device: The device.
        layers: The numbers of the layers that it computes.
        placement: Which of them stay on it, and the memory that they take. The embedding is on the first device.
        free: Bytes that were free on it; None if nobody asked.
    """

    device: torch.device
    layers: range
    placement: Placement
    free: int | None = None

    def __str__(self) -> str:
        return f"{self.device} {layers_text(self.layers)}"


def spread_layers(
    config: GemmaConfig,
    sizes: Sizes,
    dtype: torch.dtype,
    devices: Devices,
    memory: int | None,
    *,
    must_fit: bool = True,
) -> tuple[CardShare, ...]:
    """The share of each device in a model. memory: the budget on each device; None: everything stays.

    Of devices that may all be used, the fewest that hold the whole model beside the rows of a sweep are; with a budget that
    even all together are too small for, all of them are, and layers stream to each. Layers are shared out in proportion to
    the memory that a device has for them. Raises BudgetError, with the bytes, for devices that are too small, unless a plan
    asks, which says so itself (must_fit=False).
    """
    chosen = devices.each
    if len(chosen) == 1:
        return (CardShare(chosen[0], range(config.n_layers), place_layers(config, sizes, dtype, memory)),)
    if len(chosen) > config.n_layers and not devices.fewest:
        raise BudgetError(
            f"{len(chosen)} devices for {config.n_layers} layers: name {config.n_layers} at most, since each gets a layer"
        )
    free = [free_bytes(device) for device in chosen]
    budgets = [amount if memory is None else memory for amount in free]
    counts = _counts(config, sizes, dtype, budgets, fewest=devices.fewest)
    if counts is None and memory is None and must_fit:
        raise _too_small(config, sizes, dtype, devices, free)
    if counts is None:
        budgets = budgets[: config.n_layers]
        rooms = [max(sizes.layer, room) for room in _rooms(sizes, budgets, _least_work(config, dtype))]
        counts = _in_proportion(rooms, [config.n_layers] * len(rooms), config.n_layers)
        assert counts is not None
    return tuple(
        _share(config, sizes, dtype, memory, device, layers, bytes_free)
        for device, layers, bytes_free in zip(chosen, _ranges(counts), free, strict=False)
    )


def whole_placement(shares: Sequence[CardShare]) -> Placement:
    """The placement of all layers, on all devices together. workspace: what the device with the least leaves for rows."""
    return Placement(
        kept=tuple(layer for share in shares for layer in share.placement.kept),
        embedded=shares[0].placement.embedded,
        weights=sum(share.placement.weights for share in shares),
        workspace=min(share.placement.workspace for share in shares),
    )


def sizes_on(sizes: Sizes, n_layers: int, *, first: bool) -> Sizes:
    """The sizes of what one device holds. The first has the embedding."""
    return replace(sizes, n_layers=n_layers, embedding=sizes.embedding if first else 0, part=sizes.part if first else 0)


def _counts(
    config: GemmaConfig, sizes: Sizes, dtype: torch.dtype, budgets: Sequence[int], *, fewest: bool
) -> list[int] | None:
    """How many layers each device gets if all of them stay; None if they do not fit. fewest: as few devices as do."""
    at_ease = work_bytes(config, dtype, RESERVED_ROWS)
    if fewest:
        for n in range(1, min(len(budgets), config.n_layers) + 1):
            if counts := _fitting(sizes, budgets[:n], at_ease):
                return counts
        budgets = budgets[: config.n_layers]
    return _fitting(sizes, budgets, _least_work(config, dtype))


def _least_work(config: GemmaConfig, dtype: torch.dtype) -> int:
    return work_bytes(config, dtype, min(config.context, MICROBATCH_ROWS))


def _fitting(sizes: Sizes, budgets: Sequence[int], work: int) -> list[int] | None:
    """How many layers each device gets, all of which stay beside so many bytes for rows; None if they do not fit."""
    rooms = _rooms(sizes, budgets, work)
    return _in_proportion(rooms, [room // sizes.layer for room in rooms], sizes.n_layers)


def _rooms(sizes: Sizes, budgets: Sequence[int], work: int) -> list[int]:
    """The bytes that each device has for layers."""
    fixed = [sizes.scratch + work + (0 if at else sizes.embedding) for at in range(len(budgets))]
    return [budget - taken for budget, taken in zip(budgets, fixed, strict=True)]


def _in_proportion(rooms: Sequence[int], most: Sequence[int], n_layers: int) -> list[int] | None:
    """Layers for each device: one at least, at most so many, in proportion to its room. None if they do not fit."""
    if min(most) < 1 or sum(most) < n_layers:
        return None
    shares = [n_layers * room / sum(rooms) for room in rooms]
    counts = [max(1, min(limit, int(share))) for limit, share in zip(most, shares, strict=True)]
    while sum(counts) < n_layers:
        counts[max((i for i in range(len(counts)) if counts[i] < most[i]), key=lambda i: shares[i] - counts[i])] += 1
    while sum(counts) > n_layers:
        counts[max((i for i in range(len(counts)) if counts[i] > 1), key=lambda i: counts[i] - shares[i])] -= 1
    return counts


def _ranges(counts: Sequence[int]) -> list[range]:
    return [range(start, stop) for start, stop in pairwise(accumulate(counts, initial=0))]


def _share(
    config: GemmaConfig,
    sizes: Sizes,
    dtype: torch.dtype,
    memory: int | None,
    device: torch.device,
    layers: range,
    free: int,
) -> CardShare:
    own = sizes_on(sizes, len(layers), first=layers.start == 0)
    try:
        placement = place_layers(config, own, dtype, memory)
    except BudgetError as error:
        raise BudgetError(f"{device}: {error}") from None
    kept = tuple(layers.start + at for at in placement.kept)
    return CardShare(device, layers, replace(placement, kept=kept), free)


def _too_small(config: GemmaConfig, sizes: Sizes, dtype: torch.dtype, devices: Devices, free: Sequence[int]) -> BudgetError:
    """The error for devices that do not hold the model together, or of which one holds no layer."""
    work = _least_work(config, dtype)
    each = [f"{device} has {amount:,} free" for device, amount in zip(devices.each, free, strict=True)]
    fixed = sizes.scratch + work
    on_first = sizes.embedding + fixed + sizes.layer
    return BudgetError(
        f"the model's {config.n_layers} layers of {sizes.layer:,} bytes do not fit on these devices with everything there: "
        f"{', '.join(each)}. The first needs {on_first:,} bytes at least, for the embedding, a layer and the rows of a "
        f"pass, each other {fixed + sizes.layer:,}. Give a budget for each, memory=, so that layers stream; or "
        "weights='int8', or other devices"
    )
