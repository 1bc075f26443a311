"""Block: the rows of one site of some whole texts. Blocks come from running texts, or from a store."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gemmascope.errors import StoreError
from gemmascope.model.model import Model
from gemmascope.sites import SiteKey
from gemmascope.stores.reading.store import Store
from gemmascope.stores.spec import ArraySpec, StoreSpec
from gemmascope.stores.writing.chunks import Chunks
from gemmascope.stores.writing.passes import Pass, SiteRows, groups_of, passes_of
from gemmascope.values import Array

# Values of a block's units in memory at once, in elements: 64 MB.
BLOCK_ELEMENTS = 2**24
# Places are told apart by 32 bits.
MOST_TOKENS = 2**32


class BlockText(NamedTuple):
    """A text of a block.

    number: which text it is, in the order of all. start: how many tokens all texts before it have. ids: its token ids,
    `<bos>` included. pos: the positions that have a row, rising.
    """

    number: int
    start: int
    ids: Array
    pos: Array


@dataclass(frozen=True)
class Block:
    """The rows of one array of whole texts, one text after the other.

    key: the site and layer. rows: [row, ...]. texts: in rising order of their numbers.
    """

    key: SiteKey
    rows: Tensor
    texts: Sequence[BlockText]

    @cached_property
    def text_of_row(self) -> Array:
        """Which of its texts each row is of, int64 [row]."""
        return np.repeat(np.arange(len(self.texts)), [len(text.pos) for text in self.texts])

    @cached_property
    def pos(self) -> Array:
        """The position of each row in its text, int64 [row]."""
        return np.concatenate([text.pos for text in self.texts]).astype(np.int64)

    @cached_property
    def number(self) -> Array:
        """The number of each row's text, int64 [row]."""
        return np.array([text.number for text in self.texts])[self.text_of_row]

    @cached_property
    def place(self) -> Array:
        """The place of each row among the tokens of all texts, int64 [row]: earlier texts and positions are smaller."""
        return np.array([text.start for text in self.texts])[self.text_of_row] + self.pos

    @cached_property
    def _bases(self) -> Array:
        """Where each text begins among the tokens of the block, and the end of the last."""
        return np.concatenate(([0], np.cumsum([len(text.ids) for text in self.texts])))

    @cached_property
    def _row_at(self) -> Array:
        """The row of each token of the block; -1 for one without."""
        found = np.full(self._bases[-1], -1)
        found[self._bases[self.text_of_row] + self.pos] = np.arange(len(self.pos))
        return found

    @cached_property
    def _ids(self) -> Array:
        return np.concatenate([text.ids for text in self.texts])

    def around(self, rows: Array, offsets: Array) -> tuple[Array, Array]:
        """The rows and token ids around some rows.

        Args:
            rows: Their numbers, [entry].
            offsets: [offset], such as -2 to 1.

        Returns:
            Row numbers [entry, offset], -1 for what has no row; and token ids, -1 outside the text.
        """
        of_text = self.text_of_row[rows]
        at = (self._bases[of_text] + self.pos[rows])[:, None] + offsets
        inside = (at >= self._bases[of_text][:, None]) & (at < self._bases[of_text + 1][:, None])
        at = np.where(inside, at, 0)
        return np.where(inside, self._row_at[at], -1), np.where(inside, self._ids[at], -1)


# Takes a block, and reads from it whatever it needs.
Take = Callable[[Block], None]


def run_texts(
    model: Model, arrays: Sequence[ArraySpec], chunks: Chunks, max_rows: int, rows_of: Callable[[SiteKey], int], take: Take
) -> Generator[float]:
    """Run texts through the model, and hand out their blocks.

    Args:
        model: The model.
        arrays: The arrays whose rows are wanted.
        chunks: The texts.
        max_rows: How many rows one pass may carry.
        rows_of: How many rows a block of an array may have before it is handed out.
        take: Takes each block, of any array, in any order.

    Yields:
        How many rows more are done.
    """
    start = number = 0
    for chunk in chunks:
        starts = start + np.concatenate(([0], np.cumsum([len(run.ids) for run in chunk.runs]))).astype(np.int64)
        _require_few(int(starts[-1]))
        texts = [
            BlockText(number + i, int(starts[i]), run.ids, np.arange(run.skipped, len(run.ids)))
            for i, run in enumerate(chunk.runs)
        ]
        yield from _passes(model, arrays, chunks.spec, texts, max_rows, rows_of, take)
        start, number = int(starts[-1]), number + len(texts)


def _passes(
    model: Model, arrays: Sequence[ArraySpec], spec: StoreSpec, texts: Sequence[BlockText], max_rows: int,
    rows_of: Callable[[SiteKey], int], take: Take,
) -> Iterator[float]:  # fmt: skip
    lengths = [len(text.ids) for text in texts]
    for groups in passes_of(groups_of(lengths, spec.exact, spec.rows_at_once), lengths, max_rows):
        numbers = [run for group in groups for run in group]
        place = {run: at for at, run in enumerate(numbers)}
        ids = [torch.from_numpy(texts[run].ids).long().to(model.device) for run in numbers]
        n_rows = sum(len(texts[run].pos) for run in numbers)
        waiting: dict[SiteKey, list[tuple[BlockText, Tensor]]] = {}
        n_waiting: dict[SiteKey, int] = {}
        of_pass = Pass(model, ids, arrays, [[place[run] for run in group] for group in groups])
        with closing(of_pass.steps()) as steps:
            for step in steps:
                for rows in step.rows:
                    key = rows.array.key
                    waiting.setdefault(key, []).extend(_by_text(rows, [texts[numbers[at]] for at in rows.runs]))
                    n_waiting[key] = n_waiting.get(key, 0) + len(rows.values)
                    if n_waiting[key] >= rows_of(key):
                        take(_block(key, waiting.pop(key)))
                        del n_waiting[key]
                yield step.share * n_rows
        for key, parts in waiting.items():
            take(_block(key, parts))


def _by_text(rows: SiteRows, texts: Sequence[BlockText]) -> Iterator[tuple[BlockText, Tensor]]:
    """The rows of each text that are kept."""
    first = 0
    for text in texts:
        yield text, rows.values[first + len(text.ids) - len(text.pos) : first + len(text.ids)]
        first += len(text.ids)


def _block(key: SiteKey, parts: Sequence[tuple[BlockText, Tensor]]) -> Block:
    parts = sorted(parts, key=lambda part: part[0].number)
    return Block(key, torch.cat([rows for _, rows in parts]), [text for text, _ in parts])


def read_store(
    store: Store, arrays: Sequence[ArraySpec], rows_of: Callable[[SiteKey], int], take: Take, bos_id: int | None = None
) -> Iterator[float]:
    """Read a store, and hand out its blocks. Yields how many rows more are read, of one array each.

    Args:
        store: The store.
        arrays: The arrays that are wanted.
        rows_of: How many rows a block of an array may have before it is handed out.
        take: Takes each block.
        bos_id: The token whose rows at the start of texts are left out; None where there are none.
    """
    for array in arrays:
        start = n_rows = 0
        texts, numbers = list[BlockText](), list[Array]()
        for number in range(store.n_texts):
            rows, ids = store.shards.rows_of_run(number), store.ids(number)
            pos = store.places(rows).pos
            skipped = int(len(pos) > 0 and pos[0] == 0 and ids[0] == bos_id)
            text = BlockText(number, start, ids, pos[skipped:])
            start += len(ids)
            _require_few(start)
            if texts and n_rows + len(text.pos) > rows_of(array.key):
                take(Block(array.key, store.read(array.site, array.layer, np.concatenate(numbers)), texts))
                yield n_rows
                texts, numbers, n_rows = [], [], 0
            if len(text.pos):
                texts.append(text)
                numbers.append(np.arange(rows.start + skipped, rows.stop))
                n_rows += len(text.pos)
        if texts:
            take(Block(array.key, store.read(array.site, array.layer, np.concatenate(numbers)), texts))
            yield n_rows


def _require_few(n_tokens: int) -> None:
    if n_tokens > MOST_TOKENS:
        raise StoreError(f"top examples are found over up to {MOST_TOKENS:,} tokens; these texts have more: take a part")
