"""Budgets: how many rows of variants fit in an amount of memory."""

from __future__ import annotations

from gemmascope.errors import SweepError
from gemmascope.model.model import Model
from gemmascope.weights.budget import BIN_ROWS, free_bytes, parse_bytes, rows_in, work_bytes

# More rows at once gain nothing on weights that lie still, and finished cells, a bar that moves and an interrupt cost
# a chunk: some seconds of a small model.
RESIDENT_ROWS = 32 * BIN_ROWS


def rows_within(memory: int | str | None, model: Model) -> int:
    """How many rows of variants one pass may carry within a budget.

    None: what the model was loaded to leave for them, or a quarter of what is free.
    SweepError for a budget too small for one bin of rows, with what is needed.
    """
    default = model.network.work or free_bytes(model.device) // 4
    budget = default if memory is None else parse_bytes(memory)
    least = min(model.config.context, BIN_ROWS)  # a variant has no more rows than the context
    rows = rows_in(model.config, model.dtype, budget)
    if rows < least:
        needed = work_bytes(model.config, model.dtype, least)
        raise SweepError(
            f"memory of {budget:,} bytes is too little for a pass of {model.name!r}: it needs {needed:,} bytes at least"
        )
    return min(rows, RESIDENT_ROWS)
