"""What the attention kernels are told: which rows each program reads, and how products become scores. Needs no Triton."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gemmascope.values import Array

# Query rows, times the heads that share a key-value head, of a program for a short run, of which there may be thousands.
FEW_ROWS = 16

MOST_D_HEAD = 256

# Slots of a KV cache that one program reads; longer caches are split, so that one run keeps a card busy.
SPLIT = 256

NO_WINDOW = 2**30  # a window that is wider than any context


class Scores(NamedTuple):
    """What makes scores of products: their scale, the soft cap and the window, None for none."""

    scale: float
    cap: float | None
    window: int | None


class Runs(NamedTuple):
    """The runs of a pass, one array a field.

    query: the first of the run's rows among all queries. n_queries: how many, its last ones. row: the run's first row among
    all rows. start, stop: the position of its first row, and the one after its last. pool_row: where position 0 of its
    prefix would be in the pool. known: the first position that the prefix has.
    """

    query: Array
    n_queries: Array
    row: Array
    start: Array
    stop: Array
    pool_row: Array
    known: Array


class Tiles(NamedTuple):
    """The tiles of one launch, int32 [tile, 7], and how many query rows times heads a program of it has."""

    table: Tensor
    n_rows: int


def many_rows(dtype: torch.dtype, d_head: int) -> int:
    """Query rows times heads of a program for a long run: as many as the registers hold."""
    if dtype == torch.float32:
        return 32 if d_head <= 128 else FEW_ROWS
    return 64


def fits(dtype: torch.dtype, d_head: int, group: int) -> bool:
    """Whether the kernels compute heads of this size, so many of which share a key-value head."""
    return d_head <= MOST_D_HEAD and group <= many_rows(dtype, d_head)


def tile_tables(runs: Runs, group: int, window: int | None, most_rows: int) -> list[tuple[Array, int]]:
    """The tiles of short runs and of the others, where there are any, each with the rows of a program.

    group: how many heads share a key-value head. Which tiles a run has depends on the run alone. A tile is: its first query
    row, how many there are, the position of the first, the row of the run's position 0, the run's start, the pool's row of
    position 0, and the first key that is read.
    """
    short = runs.n_queries * group <= FEW_ROWS
    chosen = ((short, FEW_ROWS), (~short, most_rows))
    return [(_tiles(Runs(*(x[which] for x in runs)), n // group, window), n) for which, n in chosen if which.any()]


def _tiles(runs: Runs, size: int, window: int | None) -> Array:
    """Tiles of at most `size` query rows, those with the most keys first, so that none is left when the others are done."""
    counts = -(-runs.n_queries // size)
    run = np.repeat(np.arange(len(counts)), counts)
    done = (np.arange(len(run)) - np.repeat(np.cumsum(counts) - counts, counts)) * size
    n = np.minimum(size, runs.n_queries[run] - done)
    at = (runs.stop - runs.n_queries)[run] + done
    start = runs.start[run]
    first = np.maximum(at - (NO_WINDOW if window is None else window) + 1, 0)
    first = np.maximum(first, np.minimum(runs.known[run], start))
    table = np.stack((runs.query[run] + done, n, at, runs.row[run] - start, start, runs.pool_row[run], first), axis=1)
    return table[np.argsort(first - at - n, kind="stable")].astype(np.int32)
