"""Budgets: how many rows of variants fit in an amount of memory."""

from __future__ import annotations

import os
import re

import torch

from gemmascope.errors import SweepError
from gemmascope.model.model import Model
from gemmascope.run.variants import BIN_ROWS

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}

# More rows at once gain nothing on weights that lie still, and finished cells, a bar that moves and an interrupt cost
# a chunk: some seconds of a small model.
RESIDENT_ROWS = 32 * BIN_ROWS


def parse_bytes(given: int | str) -> int:
    """A number of bytes, or a text such as "2GiB" or "500 MB", in bytes. SweepError for anything else."""
    if isinstance(given, int) and not isinstance(given, bool) and given > 0:
        return given
    if (
        isinstance(given, str)
        and (found := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", given))
        and found[2].upper() in UNITS
    ):
        return int(float(found[1]) * UNITS[found[2].upper()])
    raise SweepError(f"memory is a number of bytes or a text such as '2GiB' or '500MB'; given {given!r}")


def free_bytes(device: torch.device) -> int:
    """What is free on a device now, in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with open("/proc/meminfo") as file:
        found = re.search(r"MemAvailable:\s+(\d+) kB", file.read())
    return int(found[1]) * 1024 if found else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def rows_within(memory: int | str | None, model: Model) -> int:
    """How many rows of variants one pass may carry within a budget; None: a quarter of what is free.

    SweepError for a budget too small for one bin of rows, with what is needed.
    """
    budget = free_bytes(model.device) // 4 if memory is None else parse_bytes(memory)
    config, size = model.config, model.dtype.itemsize
    # While a bin goes through a layer: gate, up and their product, q, k, v, z, norms in float32.
    at_work = BIN_ROWS * (3 * config.d_mlp * size + 4 * config.n_heads * config.d_head * size + 4 * config.d_model * 4)
    per_row = 2 * config.d_model * size  # the row, and the one that takes its place
    rows = (budget - at_work) // per_row
    least = min(config.context, BIN_ROWS)  # a variant has no more rows than the context
    if rows < least:
        needed = at_work + least * per_row
        raise SweepError(
            f"memory of {budget:,} bytes is too little for a pass of {model.name!r}: it needs {needed:,} bytes at least"
        )
    return min(rows, RESIDENT_ROWS)
