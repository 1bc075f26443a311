"""Store: activations of many texts on the disk, as labelled arrays, by text and position, and in shuffled batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import xarray
from torch import Tensor

from gemmascope.arguments import true_or_false, whole_number
from gemmascope.errors import SiteError, StoreError
from gemmascope.legible import legible_line, prints_legibly
from gemmascope.memory.placement import parse_bytes
from gemmascope.model.model import Model
from gemmascope.sites import SiteKey, find
from gemmascope.stores.manifest import Manifest
from gemmascope.stores.reading.batches import Shuffle
from gemmascope.stores.reading.labels import labelled_rows
from gemmascope.stores.reading.lookup import pairs_of, row_numbers, rows_of
from gemmascope.stores.reading.sequences import LazySequence
from gemmascope.stores.reading.shard import Shard
from gemmascope.stores.reading.shards import RowPlaces, Shards
from gemmascope.stores.reading.tensors import batches_of
from gemmascope.stores.spec import ArraySpec
from gemmascope.values import Array, chunks


class Store:
    """Activations of many texts, in files. Made by gs.harvest and gs.open_store.

    A row is one token of one text; all arrays have the same rows, in the order of the texts. store["resid_post", 5] is a
    labelled array that is read when its values are asked for; store.read gives rows as a tensor, store.rows finds them by
    text and position, store.batches goes through all of them in a random order, and store.scan in theirs.

    Attributes:
        path: The folder.
        manifest: What was asked, and of which model.
        shards: The files.
        finished: Whether the texts were harvested to their end.

    Examples:
        >>> store = gs.harvest(None, ["Mary and John", "The cat sat on the mat"], ["z", "mlp_out"], layers=3, out="acts")
        >>> store["z", 3].dims, store["z", 3].shape
        (('row', 'head', 'd_head'), (11, 4, 32))
        >>> store.rows(text=1, pos=2)
        array([4])
        >>> store.tokens[4], store.texts[1]
        (' cat', 'The cat sat on the mat')
    """

    def __init__(self, path: Path, manifest: Manifest, shards: Shards, finished: bool) -> None:
        self.path, self.manifest, self.shards, self.finished = path, manifest, shards, finished
        self._arrays = {array.key: array for array in manifest.spec.arrays}

    @property
    def keys(self) -> tuple[SiteKey, ...]:
        """The arrays: (site, layer), the layer None outside the layers."""
        return tuple(self._arrays)

    @property
    def n_rows(self) -> int:
        """The number of rows."""
        return self.shards.n_rows

    @property
    def n_texts(self) -> int:
        """The number of texts that were run; a text that was split counts once for each piece."""
        return self.shards.n_runs

    @property
    def texts(self) -> Sequence[str]:
        """The text of every run, without `<bos>`; read when it is asked for."""
        return LazySequence(self.n_texts, lambda numbers: [self._text(int(n)) for n in numbers], "texts")

    @property
    def tokens(self) -> Sequence[str]:
        """The token of every row as text; read when it is asked for."""
        return LazySequence(self.n_rows, self.shards.tokens, "tokens")

    def array(self, site: object, layer: int | None = None) -> ArraySpec:
        """What is stored of a site at a layer: the axes and the shape of a row.

        Args:
            site: The site.
            layer: Its layer; None outside the layers.

        Raises:
            SiteError: There is no such site or layer, or the store does not hold it.
        """
        key = find(site, self.manifest.n_layers, layer).key
        if key not in self._arrays:
            has = ", ".join(array.name for array in self.manifest.spec.arrays)
            name = key[0] if key[1] is None else f"{key[0]}.{key[1]}"
            raise SiteError(f"{self.path} does not hold {name}; it holds {has}")
        return self._arrays[key]

    def __getitem__(self, key: object) -> xarray.DataArray:
        """A site at a layer as a labelled array, float32 [row, ...]: store["resid_post", 5].

        It is read when its values are asked for: take some rows first, .isel(row=...). Labels of its rows: text, pos, id.

        Raises:
            SiteError: The store does not hold it.
        """
        return labelled_rows(self.shards, self.array(key))

    def read(self, site: str, layer: int | None, rows: object) -> Tensor:
        """Some rows of a site as a tensor.

        Args:
            site: The site.
            layer: Its layer; None outside the layers.
            rows: Their numbers: a number, a list, an array, or a slice.

        Returns:
            [row, ...], float32, on the CPU, in the order of rows.

        Raises:
            SiteError: The store does not hold it, or has no such row.
        """
        return self.shards.read(self.array(site, layer), row_numbers(rows, self.n_rows))

    def places(self, rows: object) -> RowPlaces:
        """What some rows are: the number of their text, their position in it, and their token id, each an array [row].

        Args:
            rows: As in read.
        """
        return self.shards.places(row_numbers(rows, self.n_rows))

    def rows(self, *, text: object, pos: object = None) -> Array:
        """The numbers of rows by text and position.

        Args:
            text: A text, or a list of them, by their numbers in the store.
            pos: Positions in each of them, `<bos>` being 0; negative ones count from the end. None: all that have a row.

        Returns:
            [row], int64, in the order of the texts.

        Raises:
            SiteError: There is no such text, or a position has no row: it does not exist, or it was left out.
        """
        return rows_of(self.shards, text, pos)

    def ids(self, text: int) -> Array:
        """All token ids of a text, `<bos>` included, int32 [pos].

        Args:
            text: Its number in the store.
        """
        shard, run = self._run(text)
        return shard.ids(run)

    def text_tokens(self, text: int) -> list[str]:
        """All tokens of a text as text, `<bos>` included.

        Args:
            text: Its number in the store.
        """
        shard, run = self._run(text)
        return shard.tokens(shard.ids(run).tolist())

    def source(self, text: int) -> tuple[int, int]:
        """The number of the text, as it was given, that a text of the store is or is a piece of.

        With it the token of that text at which the piece begins; 0 for a whole text. Texts that were skipped count.

        Args:
            text: Its number in the store.
        """
        shard, run = self._run(text)
        return shard.source(run)

    def scan(self, site: str, layer: int | None = None, *, rows: int = 8192) -> Iterator[tuple[int, Tensor]]:
        """All rows of a site in their order, some at a time.

        Args:
            site: The site.
            layer: Its layer; None outside the layers.
            rows: How many rows at a time.

        Yields:
            The number of the first row, and the rows, float32 [row, ...].
        """
        array = self.array(site, layer)
        step = whole_number(rows, "rows", least=1, error=StoreError)
        for part in chunks(self.n_rows, step):
            yield part.start, self.shards.read(array, np.arange(part.start, part.stop))

    def batches(
        self,
        site: str | Sequence[SiteKey],
        layer: int | None = None,
        batch_size: int = 4096,
        *,
        seed: int = 0,
        epochs: int | None = 1,
        start: int = 0,
        texts: int | None = None,
        with_rows: bool = False,
        buffer: int | str = "256MiB",
    ) -> Iterator[Tensor | tuple[object, ...]]:
        """Shuffled batches, for training: every row once an epoch.

        Blocks of neighbouring rows of all shards are read in a random order and shuffled together, a buffer at a time, while
        the next are read. The order follows from the seed, the epoch and the buffer alone.

        Args:
            site: The site; or a list of (site, layer), whose rows come together, such as [("mlp_in", 3), ("mlp_out", 3)].
            layer: Its layer; None outside the layers, and for a list.
            batch_size: Rows of a batch. The last of an epoch may have fewer.
            seed: The seed of the order.
            epochs: How often all rows come, each time in another order; None: without end.
            start: The first batch to give, counted over all epochs: to go on where a training stopped.
            texts: Give the rows of the first so many texts alone, and hold out the others; None: of all.
            with_rows: Give the numbers of the rows as well.
            buffer: How many bytes are shuffled at a time; about twice as many are in memory.

        Yields:
            A tensor [batch, ...], float32 on the CPU; for a list a tuple of them. With with_rows, (rows, that).

        Raises:
            SiteError, StoreError, BudgetError: The store does not hold a site, or has no rows; an argument does not fit.
        """
        arrays = [self.array(*pair) for pair in ([(site, layer)] if isinstance(site, str) else pairs_of(site))]
        most = whole_number(texts, "texts", least=1, most=self.n_texts, error=StoreError) if texts is not None else None
        counts = self.shards.counts(most)
        if not sum(counts) or not arrays:
            raise StoreError(
                f"{self.path} has no rows to read" if arrays else "the list of sites is empty: name at least one"
            )
        asked = Shuffle(
            counts,
            sum(self.manifest.spec.bytes_of(array) for array in arrays),
            whole_number(batch_size, "batch_size", least=1, error=StoreError),
            parse_bytes(buffer),
            whole_number(seed, "seed", least=0, error=StoreError),
            None if epochs is None else whole_number(epochs, "epochs", least=1, error=StoreError),
            whole_number(start, "start", least=0, error=StoreError),
        )
        is_single, numbered = isinstance(site, str), true_or_false(with_rows, "with_rows", error=StoreError)
        return batches_of(self.shards, arrays, asked, is_single, numbered)

    def verify(self) -> None:
        """Read every file of the store whole, and compare it with its checksum.

        Raises:
            StoreError: A shard is damaged. Says which.
        """
        self.shards.verify()

    def require_model(self, model: Model) -> None:
        """Check that the store was harvested from a model.

        Args:
            model: The model.

        Raises:
            StoreError: It was another one, or this one with other weights or edits.
        """
        if model.fingerprint != self.manifest.fingerprint:
            other = "with other weights, another tokenizer or other edits" if model.name == self.manifest.model else ""
            raise StoreError(
                f"{self.path} was harvested from {self.manifest.model!r} {other or f'and not from {model.name!r}'}: give "
                "that model, or harvest these texts from this one"
            )

    def _run(self, text: object) -> tuple[Shard, int]:
        """The shard of a text, and its number there."""
        most = self.n_texts - 1
        return self.shards.of_run(whole_number(text, "text", least=0, most=most, error=SiteError))

    def _text(self, text: int) -> str:
        shard, run = self.shards.of_run(text)
        return shard.text(run)

    def __len__(self) -> int:
        return self.n_rows

    @prints_legibly
    def __repr__(self) -> str:
        spec, end = self.manifest.spec, "" if self.finished else "; not finished: the same gs.harvest goes on"
        sizes = f"{self.n_texts:,} texts, {self.n_rows:,} rows of {spec.arrays_text}"
        return f"Store of {legible_line(self.manifest.model)}: {sizes}, {spec.dtype}{end}"
