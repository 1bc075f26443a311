"""StoreJournal: the folder of a store that is being written. It holds the lock, and the list of finished shards."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from gemmascope.errors import BudgetError, StoreError
from gemmascope.files.locking import lock, unlock
from gemmascope.files.paths import is_full, why_not_written
from gemmascope.files.replace import SUFFIX, sync
from gemmascope.files.writing import explain_os_errors, make_folder
from gemmascope.stores.manifest import (
    MANIFEST,
    SHARDS,
    Manifest,
    ShardLine,
    ShardList,
    differences,
    line_of,
    read_manifest,
    read_shards,
)


class StoreJournal:
    """The folder of a store, open for writing. Made by open_journal, and to be closed."""

    def __init__(self, folder: Path, file: FileIO) -> None:
        self.folder, self._file = folder, file
        self.lines: list[ShardLine] = []
        self._size, self._checksum = 0, ""

    @property
    def shards(self) -> list[ShardLine]:
        """The finished shards."""
        return [line for line in self.lines if line.file]

    @property
    def finished(self) -> bool:
        """Whether the texts were read to their end."""
        return bool(self.lines) and not self.lines[-1].file

    @property
    def n_rows_run(self) -> int:
        """The rows that went through the model, outliers included."""
        return sum(line.n_rows + line.n_outliers for line in self.lines)

    def continue_from(self, found: ShardList) -> None:
        """Take the shards that are there, and clear away what a run left that was killed."""
        self.lines, self._size, self._checksum = list(found.lines), found.size, found.checksum
        self._file.truncate(found.size)
        known = {shard.file for shard in self.shards}
        for path in self.folder.glob("shard-*"):
            if path.name not in known:
                path.unlink(missing_ok=True)

    def append(self, shard: ShardLine) -> None:
        """Write the line of a shard that is on the disk, or of the end. A write that fails is undone."""
        line, checksum = line_of(shard, self._checksum)
        self._file.seek(self._size)
        try:
            done = 0
            while done < len(line):
                done += self._file.write(line[done:])
            sync(self._file)
        except BaseException:
            with suppress(OSError):
                self._file.truncate(self._size)
            raise
        self._size, self._checksum = self._size + len(line), checksum
        self.lines.append(shard)

    def require_room(self, n_bytes: int, what: str) -> None:
        """BudgetError, before anything is written, for what the disk has no room for."""
        free = free_on_disk(self.folder)
        if n_bytes > free:
            raise BudgetError(
                f"{what} would take {n_bytes:,} bytes, and {free:,} are free on the disk of {self.folder}: name fewer sites "
                "or layers, give dtype='int8' or fewer texts, or write to another disk"
            )

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turns the system's errors from writing into a StoreError that says what is finished."""
        try:
            yield
        except OSError as error:
            done = f"{len(self.shards)} shards, {sum(shard.n_rows for shard in self.shards):,} rows, are finished and stay"
            why = "the disk is full: make room on it" if is_full(error) else why_not_written(self.folder / SHARDS, error)
            raise StoreError(f"cannot write to {self.folder}: {why}. {done}; the same call goes on after them") from error

    def close(self) -> None:
        """Unlock. May be called again."""
        unlock(self._file)
        self._file.close()


def free_on_disk(folder: Path) -> int:
    """The free bytes of a folder's disk."""
    return shutil.disk_usage(folder).free


def open_journal(folder: Path, manifest: Manifest) -> StoreJournal:
    """Begin a store in a folder, or continue the one of the same question there.

    StoreError for a folder that holds something else, another question's store, or one that is being written to.
    """
    make_folder(folder, error=StoreError)
    _require_ours(folder)
    with explain_os_errors(folder / SHARDS, StoreError):
        file = FileIO(folder / SHARDS, "ab+")
    try:
        if not lock(file, wait=False):
            raise StoreError(f"another harvest is writing to {folder}: let it end, or give another folder")
        journal = StoreJournal(folder, file)
        if not (folder / MANIFEST).exists():
            with explain_os_errors(folder, StoreError):
                file.truncate(0)
            manifest.write(folder)
            return journal
        if different := differences(read_manifest(folder), manifest):
            raise StoreError(
                f"{folder} holds another store ({'; '.join(different[:3])}): give another folder, or remove this one"
            )
        with explain_os_errors(folder, StoreError):
            journal.continue_from(read_shards(folder))
        return journal
    except BaseException:
        unlock(file)
        file.close()
        raise


def _require_ours(folder: Path) -> None:
    """StoreError for a folder with other files than those of a store."""
    names = os.listdir(folder)
    if MANIFEST in names:
        return
    others = [name for name in names if name != SHARDS and not name.endswith(SUFFIX)]
    if others:
        raise StoreError(
            f"{folder} holds other files, such as {sorted(others)[0]!r}, and no {MANIFEST}: give a new folder, "
            "or an empty one"
        )
