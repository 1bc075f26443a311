"""The layout of a pass: which run and position each row is, and which keys it may see.

A pass carries the rows of many runs, flat, without padding. Adjacent runs with the same start and length form a block, whose
attention is one batched product. A run that starts after position 0 reads the keys of the positions before it from a
prefix (in a sweep: of its base run) or from a KV cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, groupby, pairwise
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gemmascope.model.kv_cache import KVCache, PassCache, once
from gemmascope.model.maths import index_tensor, ranges, rope_table
from gemmascope.values import Array, moved

T = TypeVar("T")


class KeyPool(NamedTuple):
    """Keys, after RoPE, and values of one layer at the rows of many runs."""

    k: Float[Tensor, "kv_head row d_head"]
    v: Float[Tensor, "kv_head row d_head"]


@dataclass(frozen=True)
class PrefixKV:
    """Keys, after RoPE, and values of one layer at consecutive positions of one run, for rows that start after them.

    first: the position of the first key and value. pool: what k and v are a view of, so that one kernel can read the
    prefixes of many runs; None if they stand alone. pool_row: the pool's row of the first of them.
    """

    k: Float[Tensor, "kv_head k_pos d_head"]
    v: Float[Tensor, "kv_head k_pos d_head"]
    first: int = 0
    pool: KeyPool | None = None
    pool_row: int = 0

    @classmethod
    def in_pool(cls, pool: KeyPool, rows: slice) -> PrefixKV:
        """The prefix, from position 0 on, in these rows of a pool."""
        return cls(pool.k[:, rows], pool.v[:, rows], pool=pool, pool_row=rows.start)

    def between(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the positions start to stop - 1."""
        return self.k[:, start - self.first : stop - self.first], self.v[:, start - self.first : stop - self.first]


@dataclass(frozen=True)
class Block:
    """Adjacent runs of a pass with the same start and length.

    Attributes:
        first: The row of the pass at which the first of these runs begins.
        count: How many runs.
        length: How many rows each run has.
        run: The index of the first of these runs among the runs of the pass.
        start: The position of each run's first row.
        n_queries: How many of each run's last rows are queries, which continue after attention; the rows before them only
            provide keys and values. 0 means all.
    """

    first: int
    count: int
    length: int
    run: int = 0
    start: int = 0
    n_queries: int = 0

    def __post_init__(self) -> None:
        if not self.n_queries:
            object.__setattr__(self, "n_queries", self.length)

    @property
    def rows(self) -> slice:
        return slice(self.first, self.first + self.count * self.length)

    @property
    def stop(self) -> int:
        """The position after the last row of a run."""
        return self.start + self.length


@dataclass(frozen=True)
class Layout:
    """The blocks of a pass, in the order of their rows, and the position of every row.

    Attributes:
        blocks: The blocks, adjacent.
        positions: The position of each row in its run.
        prefixes: For each block, the keys and values before its start in one layer; None for a block that starts at 0. Set
            for each layer by with_prefixes.
        kv_cache: The cache of one layer, for runs that grow by one row. Set for each layer by with_kv_cache.
        pass_cache: Values that all layers of the pass share, such as the angles of RoPE, computed when first needed.
    """

    blocks: tuple[Block, ...]
    positions: Int[Tensor, " row"]
    prefixes: tuple[PrefixKV | None, ...] = ()
    kv_cache: KVCache | None = None
    pass_cache: PassCache = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of_lengths(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> Layout:
        """The layout of whole prompts, in their order. Neighbours of equal length share a block."""
        blocks, first, run = [], 0, 0
        for length, same in groupby(lengths):
            blocks.append(Block(first, len(list(same)), length, run))
            first, run = blocks[-1].rows.stop, run + blocks[-1].count
        return cls.of_blocks(blocks, device)

    @classmethod
    def of_blocks(cls, blocks: Sequence[Block], device: torch.device | str = "cpu") -> Layout:
        """The layout of these blocks, which follow each other row by row."""
        starts, lengths = (
            np.repeat([getattr(b, name) for b in blocks], [b.count for b in blocks]) for name in ("start", "length")
        )
        return cls(tuple(blocks), index_tensor(ranges(starts, lengths), torch.device(device)))

    def with_prefixes(self, prefixes: Sequence[PrefixKV | None]) -> Layout:
        """This layout with the keys and values of one layer before each block."""
        return replace(self, prefixes=tuple(prefixes))

    def on(self, device: torch.device) -> Layout:
        """This layout for a layer on a device. What a pass copies there is copied once, for all its layers there."""
        if self.positions.device == device:
            return self
        positions, pass_cache = self.once(("on", device), lambda: (moved(self.positions, device), PassCache()))
        return replace(self, positions=positions, pass_cache=pass_cache)

    def with_kv_cache(self, kv_cache: KVCache) -> Layout:
        """This layout, of one new row for each run, with the KV cache of one layer."""
        return replace(self, kv_cache=kv_cache)

    @property
    def n_rows(self) -> int:
        return len(self.positions)

    @cached_property
    def spans(self) -> tuple[slice, ...]:
        """The rows of each run."""
        return tuple(
            slice(b.first + i * b.length, b.first + (i + 1) * b.length) for b in self.blocks for i in range(b.count)
        )

    @cached_property
    def query_stops(self) -> tuple[int, ...]:
        """For each run, where its rows end among the query rows."""
        return tuple(accumulate(b.n_queries for b in self.blocks for _ in range(b.count)))

    @cached_property
    def query_firsts(self) -> tuple[int, ...]:
        """For each block, its first row among the query rows; and at the end, how many query rows there are."""
        return (0, *accumulate(b.count * b.n_queries for b in self.blocks))

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The position of each run's first row."""
        return tuple(b.start for b in self.blocks for _ in range(b.count))

    def query_rows(self, x: Float[Tensor, "row ..."]) -> Float[Tensor, "query ..."]:
        """The rows of x that are queries: all, unless some blocks have fewer."""
        return x if self._query_rows is None else x[self._query_rows]

    @cached_property
    def _query_rows(self) -> Tensor | None:
        if all(b.n_queries == b.length for b in self.blocks):
            return None
        counts = [b.count for b in self.blocks]
        stops = np.concatenate([b.first + (1 + np.arange(b.count)) * b.length for b in self.blocks])
        n_queries = np.repeat([b.n_queries for b in self.blocks], counts)
        return index_tensor(ranges(stops - n_queries, n_queries), self.positions.device)

    def rope(self, d_head: int, theta: float, factor: float = 1.0) -> tuple[Tensor, Tensor]:
        """Cosines and sines of every row's angles, computed once per pass. factor: what positions are divided by."""
        return self.once(("rope", d_head, theta, factor), lambda: rope_table(self.positions, d_head, theta, factor))

    def once(self, key: object, compute: Callable[[], T]) -> T:
        """A value that all layers of the pass share, computed when it is first needed."""
        return once(self.pass_cache, key, compute)


@dataclass(frozen=True)
class RunRows:
    """Rows of many runs, one array a field: of which base, positions start to stop - 1, and n_queries as in Block."""

    base: Array
    start: Array
    stop: Array
    n_queries: Array

    @property
    def n_rows(self) -> Array:
        return self.stop - self.start

    def of(self, runs: Array) -> RunRows:
        """Those of some of the runs."""
        return RunRows(self.base[runs], self.start[runs], self.stop[runs], self.n_queries[runs])

    def with_padding(self, n_padding: int) -> RunRows:
        """These, and at the end the first rows of a base."""
        if not n_padding:
            return self
        last = (0, 0, n_padding, n_padding)
        fields = (self.base, self.start, self.stop, self.n_queries)
        return RunRows(*(np.append(field, value) for field, value in zip(fields, last, strict=True)))

    def layout(self, device: torch.device) -> tuple[Layout, list[int]]:
        """Their layout, in which like runs side by side share a block, and the base of each block."""
        fields = np.stack((self.base, self.start, self.stop, self.n_queries))
        bounds = [0, *(np.flatnonzero((fields[:, 1:] != fields[:, :-1]).any(0)) + 1).tolist(), fields.shape[1]]
        blocks: list[Block] = []
        first = 0
        for run, stop in pairwise(bounds):
            _, start, end, n_queries = fields[:, run].tolist()
            blocks.append(Block(first, stop - run, end - start, run, start, n_queries))
            first = blocks[-1].rows.stop
        return Layout.of_blocks(blocks, device), self.base[bounds[:-1]].tolist()


# For computations outside a pass, such as reading logits from rows of a stream.
NO_ROWS = Layout((), torch.zeros(0, dtype=torch.long))
