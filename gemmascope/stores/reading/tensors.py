"""The shuffled batches of a store as the tensors that a training takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

from torch import Tensor

from gemmascope.stores.encoding import decode
from gemmascope.stores.reading.batches import Block, Shuffle, Values, shuffled
from gemmascope.stores.reading.shards import Shards
from gemmascope.stores.spec import ArraySpec
from gemmascope.values import Array


def batches_of(
    shards: Shards, arrays: Sequence[ArraySpec], asked: Shuffle, is_single: bool, numbered: bool
) -> Iterator[Tensor | tuple[object, ...]]:
    """The batches that Store.batches gives. is_single: whether of one array, and not a tuple. numbered: with row numbers."""

    def read(blocks: Sequence[Block], n_free: int) -> Values:
        return shards.read_blocks(arrays, blocks, n_free)

    def read_rows(rows: Array) -> Values:
        return [shards.encoded(array, rows) for array in arrays]

    with closing(shuffled(asked, read, read_rows)) as batches:
        for batch in batches:
            each = zip(arrays, batch.values, strict=True)
            values = tuple(decode(stored).view(len(batch.rows), *array.shape) for array, stored in each)
            given = values[0] if is_single else values
            yield (batch.rows, given) if numbered else given
