"""Journals: the finished cells of a sweep in a file, as they come. A line for the question, and one a chunk.

A line that a crash cut off is left out on reading; its cells are run again. One sweep at a time writes to a file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from gemmascope.errors import SweepError
from gemmascope.files.locking import lock, unlock
from gemmascope.files.paths import user_path, why_not_written
from gemmascope.files.writing import explain_os_errors, require_writable
from gemmascope.sweeps.journal_lines import FORMAT, about_of, cells_line, fill, opened, sealed

if TYPE_CHECKING:
    from gemmascope.sweeps.result import SweepResult


class JournalStopped(SweepError):
    """A file that takes no more cells, such as on a full disk. What it holds can be read, and gone on from."""


class Journal:
    """Where finished cells are written; nowhere, if there is no file. Made by `Journal()`, and to be closed."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self._file: BinaryIO | None = None
        self._size, self._sum = 0, ""
        self.n_cells = 0  # that the file holds

    def open(self, given: str | os.PathLike[str] | None, result: SweepResult) -> None:
        """Take a new file, or the file of the same sweep, whose finished cells are read.

        SweepError for another sweep's, for one that another process or thread is writing to, and for a damaged one.
        """
        if given is None:
            return
        path = user_path(given, error=SweepError, what="a sweep")
        if os.path.isdir(path):
            raise SweepError(f"{path} is not a sweep that can be read: it is a folder; name a file in it")
        require_writable(given, error=SweepError)
        if os.path.exists(path) and not path.is_file():
            raise SweepError(
                f"cannot write {path}: it is a pipe or a device, and this must be a file that can be read again"
            )
        with explain_os_errors(path, SweepError):
            is_new = not path.exists()
            self.path, self._file = path, path.open("ab+", buffering=0)
        if not lock(self._file, wait=False):
            raise SweepError(f"another sweep is writing to {path}: let it end, or give another file")
        self._begin(result, is_new)

    def write(self, result: SweepResult, cells: Sequence[tuple[int, int]]) -> None:
        """Append these cells, (pair, number), and the baselines of their pairs.

        JournalStopped if the file does not take them: it then ends with the line before.
        """
        if self._file is None or not cells:
            return
        line, found = sealed(cells_line(result, list(cells)), self._sum)
        self._require_own()
        try:
            self._append(line)
        except OSError as error:
            assert self.path is not None
            raise JournalStopped(why_not_written(self.path, error)) from error
        self._size, self._sum = self._size + len(line), found
        self.n_cells += len(cells)

    def close(self) -> None:
        """Let go of the file. As often as one likes."""
        if self._file is not None:
            unlock(self._file)
            self._file.close()
            self._file = None

    def _begin(self, result: SweepResult, is_new: bool) -> None:
        """Write the first line, or read the lines that are there."""
        assert self._file is not None
        assert self.path is not None
        first, found = sealed(_about(result), "")
        there = _bytes_of(self.path)
        if len(there) < len(first) and first.startswith(there):  # nothing, or what a crash left of the first line
            try:
                with explain_os_errors(self.path, SweepError):
                    self._file.truncate(0)
                    self._append(first)
                    self._size, self._sum = len(first), found
                    is_new = False
            finally:
                if is_new:
                    self.close()
                    self.path.unlink(missing_ok=True)
            return
        _check_same(there, self.path, result)
        self._size, self._sum = fill_from(there, self.path, result)
        self.n_cells = int(result.finished.sum())
        with explain_os_errors(self.path, SweepError):
            if not there[: self._size].endswith(b"\n"):  # the first line, whose end alone is missing
                self._append(b"\n")
                self._size += 1
            self._file.truncate(self._size)  # a line that was cut off goes, so that the next one stands on its own

    def _append(self, line: bytes) -> None:
        """Write at the end; what breaks off in the middle is taken back."""
        assert self._file is not None
        done = 0
        try:
            while done < len(line):
                done += self._file.write(line[done:])
        except BaseException:
            with suppress(OSError):
                self._file.truncate(self._size)
            raise

    def _require_own(self) -> None:
        """JournalStopped for a file that was removed, replaced or written to since."""
        assert self._file is not None
        assert self.path is not None
        try:
            here, there = os.fstat(self._file.fileno()), os.stat(self.path)
        except OSError:
            raise JournalStopped("it was removed, or moved, while the sweep ran") from None
        if (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino):
            raise JournalStopped("another file was put in its place while the sweep ran")
        if here.st_size != self._size:
            raise JournalStopped("something else wrote to it while the sweep ran")


NOWHERE = Journal()


def text_of(result: SweepResult, cells: list[tuple[int, int]]) -> bytes:
    """A finished journal of these cells, as a file holds it."""
    first, found = sealed({**_about(result), "saved": len(cells)}, "")
    return first + (sealed(cells_line(result, cells), found)[0] if cells else b"")


def read_file(path: Path) -> tuple[dict[str, Any], bytes]:
    """The question that a file's sweep answers, and all of the file. SweepError if it is no sweep."""
    content = _bytes_of(path)
    return about_of(content.partition(b"\n")[0], path)[0], content


def _bytes_of(path: Path) -> bytes:
    if not os.path.isfile(path):
        there = "it is a folder" if os.path.isdir(path) else "it is no file" if os.path.exists(path) else "No such file"
        raise SweepError(f"{path} is not a sweep that can be read: {there}")
    try:
        with path.open("rb") as file:
            start = file.read(2)
            if start not in (b"", b"{", b'{"'):  # whatever its size: it may be of terabytes
                raise SweepError(f"{path} is not a sweep that can be read: it does not begin as one")
            return start + file.read()
    except OSError as error:
        raise SweepError(f"{path} is not a sweep that can be read: {error.strerror}") from error
    except MemoryError:
        raise SweepError(f"{path} is not a sweep that can be read: it does not fit in memory") from None


def fill_from(content: bytes, path: Path, result: SweepResult) -> tuple[int, str]:
    """Fill a result with a file's cells; where its last whole line ends, and that line's checksum."""
    *lines, torn = content.split(b"\n")  # a whole line ends in a newline
    first = lines[0] if lines else torn
    _, found = about_of(first, path)
    size = len(first) + bool(lines)
    for at, line in enumerate(lines[1:], start=2):
        where = f"line {at} of {path}"
        said, found = opened(line, found, where)
        fill(result, said, where)
        size += len(line) + 1
    return size, found


def _about(result: SweepResult) -> dict[str, Any]:
    return {"format": FORMAT, "n_pairs": len(result.values), "question": asdict(result.question)}


def _check_same(content: bytes, path: Path, result: SweepResult) -> None:
    there, here = about_of(content.partition(b"\n")[0], path)[0], json.loads(json.dumps(_about(result)))
    there.pop("saved", None)
    if there == here:
        return
    differing = [k for k, v in here["question"].items() if there["question"].get(k) != v and k != "digest"]
    said = "; ".join(f"{k}: {there['question'].get(k)!r} there, {here['question'][k]!r} here" for k in differing[:3])
    said = said or "other prompts or edits, or a function with other code"
    raise SweepError(f"{path} holds another sweep ({said}): give another file, or remove this one")
