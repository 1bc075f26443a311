"""Shuffled batches at the disk's speed: blocks of neighbouring rows are read in a random order into a pool, whose rows are
shuffled.

A pool mixes blocks of all shards. Rows that do not fill a batch go into the next pool, so every batch but an epoch's last is
full, and each row comes once an epoch. The order follows from the seed and the epoch alone, not from what was read before.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

import numpy as np
import torch

from gemmascope.stores.encoding import Encoded
from gemmascope.values import Array

# A block has a 512th of the pool's bytes, within these limits: smaller ones would be read slower than the disk can.
BLOCKS_PER_POOL = 512
LEAST_BLOCK, MOST_BLOCK = 2**16, 2**20

Values = list[Encoded]


class Block(NamedTuple):
    """Neighbouring rows of one shard. first: the number of the first in the store."""

    shard: int
    start: int
    stop: int
    first: int


class Batch(NamedTuple):
    """The numbers of the rows of a batch in the store, and their values in each of the arrays."""

    rows: Array
    values: Values


@dataclass(frozen=True)
class Shuffle:
    """What a shuffled reader is asked.

    counts: the rows of every shard. bytes_per_row: of all its arrays together. pool_bytes: how many bytes are shuffled at a
    time; twice as many are in memory, since the next ones are read meanwhile. start: the first batch that is given.
    """

    counts: Sequence[int]
    bytes_per_row: int
    batch_size: int
    pool_bytes: int
    seed: int
    epochs: int | None
    start: int = 0

    def blocks(self) -> list[Block]:
        """All blocks, in the order of the store."""
        block_bytes = min(max(self.pool_bytes // BLOCKS_PER_POOL, LEAST_BLOCK), MOST_BLOCK)
        step = max(1, block_bytes // self.bytes_per_row)
        firsts = np.concatenate(([0], np.cumsum(self.counts))).tolist()
        return [
            Block(shard, start, min(start + step, n), firsts[shard] + start)
            for shard, n in enumerate(self.counts)
            for start in range(0, n, step)
        ]

    def pools(self, rng: np.random.Generator) -> list[list[Block]]:
        """The blocks in a random order, as many together as fill a pool."""
        blocks = self.blocks()
        most = max(1, self.pool_bytes // self.bytes_per_row)
        pools: list[list[Block]] = [[]]
        n_rows = 0
        for number in rng.permutation(len(blocks)).tolist():
            block = blocks[number]
            if pools[-1] and n_rows + block.stop - block.start > most:
                pools.append([])
                n_rows = 0
            pools[-1].append(block)
            n_rows += block.stop - block.start
        return [sorted(pool) for pool in pools]  # as they lie on the disk: the rows are shuffled afterwards


def shuffled(
    asked: Shuffle, read: Callable[[list[Block], int], Values], read_rows: Callable[[Array], Values]
) -> Generator[Batch]:
    """The batches of all epochs.

    Args:
        asked: What is asked.
        read: Reads blocks into new tensors, one after the other, behind so many rows that are left free.
        read_rows: Reads single rows.
    """
    n_batches = -(-sum(asked.counts) // asked.batch_size)
    skip = asked.start
    with ThreadPoolExecutor(1) as reader:
        for epoch in count() if asked.epochs is None else range(asked.epochs):
            if skip < n_batches:
                yield from _epoch(asked, epoch, skip, read, read_rows, reader)
            skip = max(0, skip - n_batches)


def _epoch(
    asked: Shuffle,
    epoch: int,
    skip: int,
    read: Callable[[list[Block], int], Values],
    read_rows: Callable[[Array], Values],
    reader: ThreadPoolExecutor,
) -> Iterator[Batch]:
    """The batches of one epoch but for the first `skip`, whose values are not read."""
    rng = np.random.default_rng((asked.seed, epoch))
    size = asked.batch_size
    plan = _plan(asked.pools(rng), size)
    first = next(i for i, pool in enumerate(plan) if pool.n_before + pool.n_batches > skip)
    future: Future[Values] = reader.submit(read, plan[first].blocks, plan[first].n_left)
    left = np.zeros(0, dtype=np.int64)
    kept: Values | None = None
    for number, pool in enumerate(plan):
        rows = np.concatenate([left, *(np.arange(b.first, b.first + b.stop - b.start) for b in pool.blocks)])
        order = rng.permutation(len(rows))
        n_whole = pool.n_batches * size
        if number < first:
            left = rows[order[n_whole:]]
            continue
        values = future.result()
        if number + 1 < len(plan):
            future = reader.submit(read, plan[number + 1].blocks, plan[number + 1].n_left)
        if len(left):
            _put(values, read_rows(left) if kept is None else kept)
        for batch in range(max(0, skip - pool.n_before), pool.n_batches):
            at = order[batch * size : (batch + 1) * size]
            yield Batch(rows[at], _taken(values, at))
        left, kept = rows[order[n_whole:]], _taken(values, order[n_whole:])


class _Pool(NamedTuple):
    """A pool of an epoch. n_left: rows that come from the pool before it. n_before: batches of the pools before it."""

    blocks: list[Block]
    n_left: int
    n_batches: int
    n_before: int


def _plan(pools: Sequence[list[Block]], size: int) -> list[_Pool]:
    plan: list[_Pool] = []
    left = before = 0
    for number, blocks in enumerate(pools):
        n_rows = left + sum(block.stop - block.start for block in blocks)
        is_last = number == len(pools) - 1
        n_batches = -(-n_rows // size) if is_last else n_rows // size
        plan.append(_Pool(blocks, left, n_batches, before))
        left, before = n_rows - n_batches * size, before + n_batches
    return plan


def _taken(values: Values, at: Array) -> Values:
    index = torch.from_numpy(at)
    return [Encoded(v.values.index_select(0, index), None if v.scale is None else v.scale[index]) for v in values]


def _put(values: Values, left: Values) -> None:
    """Put rows into the places that were left free at the front."""
    for target, rows in zip(values, left, strict=True):
        target.values[: len(rows.values)] = rows.values
        if target.scale is not None and rows.scale is not None:
            target.scale[: len(rows.scale)] = rows.scale
