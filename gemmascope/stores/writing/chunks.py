"""Chunks: the texts of a harvest, as many at a time as make a shard; those of finished shards are compared only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gemmascope.errors import StoreError
from gemmascope.stores.manifest import ShardLine
from gemmascope.stores.spec import StoreSpec
from gemmascope.stores.texts.runs import Runs, TextDigest, TextRun
from gemmascope.stores.texts.sources import Texts, length_of

# A list of texts of up to so many characters is split into tokens before the first is run: then every text is known to be
# good, and the store's size is known.
MOST_CHARACTERS = 2**28


@dataclass(frozen=True)
class Chunk:
    """The texts of one shard: their runs, how many texts were read for them, how many of those were skipped, the digest."""

    runs: Sequence[TextRun]
    n_texts: int
    n_skipped: int
    digest: str

    @property
    def n_rows(self) -> int:
        return sum(run.n_rows for run in self.runs)

    @property
    def n_tokens(self) -> int:
        return sum(len(run.ids) for run in self.runs)

    def line(self, written: tuple[int, int, str, str] | None = None) -> ShardLine:
        """The line of its shard, or of the texts' end. written: what ShardWriter.finish gave."""
        n_outliers, n_bytes, sha256, file = written or (0, 0, "", "")
        return ShardLine(
            file=file, n_bytes=n_bytes, sha256=sha256, n_rows=self.n_rows - n_outliers, n_runs=len(self.runs),
            n_texts=self.n_texts, n_skipped=self.n_skipped, texts=self.digest, n_tokens=self.n_tokens, n_outliers=n_outliers,
        )  # fmt: skip


class Chunks:
    """Reads texts, once, and turns them into chunks.

    Args:
        texts: The texts.
        runs: Makes the runs of a text.
        spec: What is asked.
    """

    def __init__(self, texts: Texts, runs: Runs, spec: StoreSpec) -> None:
        self.texts, self._runs, self.spec = texts, runs, spec
        self._known: dict[int, list[TextRun]] = {}
        if texts.in_memory and sum(length_of(item.value) or 0 for item in texts.items()) <= MOST_CHARACTERS:
            self._known = {item.number: runs.of(item) for item in texts.items()}
        self._items = texts.items()

    @property
    def n_rows(self) -> int | None:
        """The rows of all texts, where they are known."""
        return sum(run.n_rows for runs in self._known.values() for run in runs) if self._known else None

    def estimate(self, chunk: Chunk) -> int | None:
        """About how many rows all texts have, by those of a chunk; None where nobody knows how many texts there are."""
        if self.texts.n_texts is None or not chunk.n_texts:
            return None
        return round(chunk.n_rows / chunk.n_texts * self.texts.n_texts)

    def skip(self, shards: Sequence[ShardLine], folder: Path) -> None:
        """Read past the texts of finished shards. StoreError if they are other ones than those that the shards are of."""
        first = 0
        for shard in shards:
            digest, last = TextDigest(), first + shard.n_texts
            for number in range(first, last):
                item = next(self._items, None)
                if item is None:
                    raise StoreError(
                        f"{folder} holds {last} texts or more, and {number} are given: give the same ones, or another folder"
                    )
                digest.add(item.value)
            if digest.hexdigest() != shard.texts:
                raise StoreError(
                    f"{folder} holds other texts: texts {first} to {last - 1} are not those of {shard.file or 'its end'}. "
                    "Give the same texts, in the same order, or another folder"
                )
            first = last

    def require_end(self, folder: Path) -> None:
        """StoreError if there are more texts than a finished store has."""
        if (item := next(self._items, None)) is not None:
            raise StoreError(
                f"{folder} is finished with {item.number} texts, and the texts that are given go on: give those, or another "
                "folder"
            )

    def __iter__(self) -> Iterator[Chunk]:
        """The chunks of the texts that are left. The last one, of the texts' end, may have no runs, and always comes."""
        digest, runs, n_texts, n_skipped, n_rows = TextDigest(), list[TextRun](), 0, 0, 0
        for item in self._items:
            of_text = self._known.pop(item.number) if item.number in self._known else self._runs.of(item)
            digest.add(item.value)
            runs += of_text
            n_texts, n_skipped, n_rows = n_texts + 1, n_skipped + (not of_text), n_rows + sum(run.n_rows for run in of_text)
            if n_rows >= self.spec.rows_per_shard:
                yield Chunk(runs, n_texts, n_skipped, digest.hexdigest())
                digest, runs, n_texts, n_skipped, n_rows = TextDigest(), [], 0, 0, 0
        if runs:
            yield Chunk(runs, n_texts, n_skipped, digest.hexdigest())
            digest, n_texts, n_skipped = TextDigest(), 0, 0
        yield Chunk((), n_texts, n_skipped, digest.hexdigest())
