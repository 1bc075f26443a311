"""Budgets: how many rows of variants fit in an amount of memory."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gemmascope.errors import BudgetError, SweepError
from gemmascope.memory import placement as budget
from gemmascope.memory.placement import MICROBATCH_ROWS, RESIDENT_ROWS, free_bytes, parse_bytes, rows_in, work_bytes
from gemmascope.model.model import Model


@contextmanager
def explain_oom(model: Model) -> Iterator[None]:
    """Around a pass: BudgetError, with what was planned and what was taken, where the device's memory runs out."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):  # a CPU's
            raise
        device = model.device
        taken = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
        planned_bytes = model.network.work_bytes
        planned = f"{planned_bytes:,} bytes were planned for its rows" if planned_bytes else "no budget was given"
        traceback.clear_frames(error.__traceback__)  # else a traceback that is held, as notebooks do, holds the tensors
        raise BudgetError(
            f"{device} ran out of memory in a pass of {model.name!r}: {planned}, and {taken:,} bytes were taken in all. "
            f"Give a smaller memory= to the sweep, or load the model with a budget, memory=. ({str(error).splitlines()[0]})"
        ) from None


def require_free_memory(n_bytes: int, device: torch.device, what: str, do: str) -> None:
    """BudgetError, before anything is computed, for values that take more than is free. do: what else to ask for."""
    free = budget.free_bytes(device)
    if n_bytes > free:
        raise BudgetError(f"{what} would take {n_bytes:,} bytes, and {free:,} are free on {device}: {do}")


def rows_within(memory: int | str | None, model: Model) -> int:
    """How many rows of variants one pass may carry within a budget.

    None: what the model was loaded to leave for them, or a quarter of what is free.
    SweepError for a budget too small for one bin of rows, with what is needed.
    """
    given = (model.network.work_bytes or free_bytes(model.device) // 4) if memory is None else parse_bytes(memory)
    least = min(model.config.context, MICROBATCH_ROWS)  # a variant has no more rows than the context
    rows = rows_in(model.config, model.dtype, given)
    if rows < least:
        needed = work_bytes(model.config, model.dtype, least)
        raise SweepError(
            f"memory of {given:,} bytes is too little for a pass of {model.name!r}: it needs {needed:,} bytes at least"
        )
    return rows if model.network.layer_source is not None else min(rows, RESIDENT_ROWS)
