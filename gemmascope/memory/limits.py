"""Memory limits of a pass: how many rows fit, and a clear error when memory runs out."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gemmascope.checkpoints.device import DeviceChoice, choose_devices
from gemmascope.errors import BudgetError, SweepError
from gemmascope.memory import placement
from gemmascope.memory.placement import (
    DEVICE_MICROBATCH_ROWS,
    MICROBATCH_ROWS,
    RESIDENT_ROWS,
    free_bytes,
    layer_bytes,
    parse_bytes,
    rows_in,
    work_bytes,
)
from gemmascope.model.model import Model


@contextmanager
def explain_oom(model: Model) -> Iterator[None]:
    """Wraps a pass: turns an out-of-memory error into a BudgetError with the planned and the allocated bytes."""
    try:
        yield
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        devices = list(dict.fromkeys((model.device, *model.layer_devices)))
        device = " or ".join(map(str, devices))
        allocated = sum(torch.cuda.max_memory_allocated(one) for one in devices if one.type == "cuda")
        planned_bytes = model.network.work_bytes
        planned = f"{planned_bytes:,} bytes were planned for its rows" if planned_bytes else "no budget was given"
        traceback.clear_frames(error.__traceback__)  # a stored traceback would keep the tensors alive
        raise BudgetError(
            f"{device} ran out of memory in a pass of {model.name!r}: {planned}, and {allocated:,} bytes were taken in all. "
            f"Give a smaller memory= to the sweep, or load the model with a budget, memory=. ({str(error).splitlines()[0]})"
        ) from None


@contextmanager
def explain_oom_in_loading(name: str, device: DeviceChoice) -> Iterator[None]:
    """Wraps loading: turns an out-of-memory error into a BudgetError that says how to load the model in less memory."""
    try:
        yield
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        place = " or ".join(map(str, choose_devices(device).each))
        traceback.clear_frames(error.__traceback__)  # a stored traceback would keep the tensors alive
        raise BudgetError(
            f"{place} ran out of memory while {name!r} was loaded: give a budget, memory=, within which the layers that do "
            f"not fit stream; or weights='int8'. gs.plan({name!r}) says what fits. ({str(error).splitlines()[0]})"
        ) from None


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)  # the CPU's


def require_free_memory(n_bytes: int, device: torch.device, what: str, advice: str) -> None:
    """Raises BudgetError, before anything is computed, for values that take more memory than is free."""
    free = placement.free_bytes(device)
    if n_bytes > free:
        raise BudgetError(f"{what} would take {n_bytes:,} bytes, and {free:,} are free on {device}: {advice}")


def rows_within(memory: int | str | None, model: Model) -> int:
    """How many rows of variants one pass may carry within a budget.

    memory None: the budget that the model was loaded with leaves, or a quarter of the free memory. Raises SweepError,
    with the bytes needed, for a budget too small for one microbatch.
    """
    available = _row_budget(memory, model)
    least = min(model.config.context, MICROBATCH_ROWS)  # a variant has no more rows than the context
    more_at_once = microbatch_rows(model, memory) - MICROBATCH_ROWS
    rows = rows_in(model.config, model.dtype, available - more_at_once * layer_bytes(model.config, model.dtype))
    if rows < least:
        needed = work_bytes(model.config, model.dtype, least)
        raise SweepError(
            f"memory of {available:,} bytes is too little for a pass of {model.name!r}: it needs {needed:,} bytes at least"
        )
    return rows if model.network.layer_source is not None else min(rows, RESIDENT_ROWS)


def text_rows_within(memory: int | str | None, model: Model) -> int:
    """How many rows of texts one pass may carry within a budget. As rows_within, with BudgetError for one too small."""
    try:
        return rows_within(memory, model)
    except SweepError as error:  # which speaks of a pass of any kind
        raise BudgetError(str(error)) from error


def microbatch_rows(model: Model, memory: int | str | None = None) -> int:
    """How many rows go through a layer at once: what fits a CPU's caches, or what keeps an accelerator busy.

    On an accelerator, what a layer makes of these rows takes at most half of the budget. memory: as in rows_within.
    """
    if model.device.type == "cpu":
        return MICROBATCH_ROWS
    fitting = _row_budget(memory, model) // 2 // layer_bytes(model.config, model.dtype)
    return max(MICROBATCH_ROWS, min(DEVICE_MICROBATCH_ROWS, fitting))


def _row_budget(memory: int | str | None, model: Model) -> int:
    """The bytes that the rows of a pass may take."""
    if memory is not None:
        return parse_bytes(memory)
    return model.network.work_bytes or min(map(free_bytes, {model.device, *model.layer_devices})) // 4
