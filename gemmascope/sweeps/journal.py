"""Journals: the finished cells of a sweep in a file: a line for what was asked, and a line for each chunk as it ends.

A last line that a crash cut off is dropped on reading, and its cells are run again. One sweep at a time writes to a file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from gemmascope.errors import SweepError
from gemmascope.files.line_file import LineFile
from gemmascope.files.sealed_lines import sealed
from gemmascope.sweeps.journal_lines import Head, SweepNumbers, cells_line, fill, opened, read_head


class JournalStopped(SweepError):
    """A file takes no more cells, for example on a full disk. It can still be read, and a later sweep can continue it."""


class Journal(LineFile):
    """Where finished cells are written; nowhere, if there is no file. Made by `Journal()`, and to be closed."""

    what, error, stopped = "sweep", SweepError, JournalStopped

    def __init__(self) -> None:
        super().__init__()
        self.n_cells = 0  # in the file

    def open(self, out: str | os.PathLike[str] | None, result: SweepNumbers) -> None:
        """Start a new file, or continue the file of the same sweep, whose finished cells are read into the result.

        SweepError for another sweep's file, for one that another process or thread is writing to, and for a damaged one.
        """
        if out is not None:
            self._begin(result, self.start(out))

    def write(self, result: SweepNumbers, cells: Sequence[tuple[int, int]]) -> None:
        """Append these cells, (pair, number), and the baselines of their pairs.

        JournalStopped if the file does not take them: it then ends with the line before.
        """
        if self._file is None or not cells:
            return
        self.add(cells_line(result, list(cells)))
        self.n_cells += len(cells)

    def _begin(self, result: SweepNumbers, is_new: bool) -> None:
        """Write the first line, or read the lines that the file has."""
        assert self.path is not None
        head, checksum = sealed(Head.of(result).as_line(), "")
        content = _bytes_of(self.path)
        if len(content) < len(head) and head.startswith(content):  # empty, or what a crash left of the first line
            self.begin(head, checksum, is_new)
            return
        _check_same(content, self.path, result)
        size, checksum = fill_from(content, self.path, result)
        self.n_cells = int(result.finished.sum())
        self.go_on(content, size, checksum)


NOWHERE = Journal()


def text_of(result: SweepNumbers, cells: list[tuple[int, int]]) -> bytes:
    """The whole file of a result with these cells."""
    head, checksum = sealed(Head.of(result, saved=len(cells)).as_line(), "")
    return head + (sealed(cells_line(result, cells), checksum)[0] if cells else b"")


def read_file(path: Path) -> tuple[Head, bytes]:
    """What a file's sweep was asked, and all of the file. SweepError if it is not a sweep's."""
    content = _bytes_of(path)
    return read_head(content.partition(b"\n")[0], path)[0], content


def _bytes_of(path: Path) -> bytes:
    if not os.path.isfile(path):
        fault = "it is a folder" if os.path.isdir(path) else "it is no file" if os.path.exists(path) else "No such file"
        raise SweepError(f"{path} is not a sweep that can be read: {fault}")
    try:
        with path.open("rb") as file:
            start = file.read(2)
            if start not in (b"", b"{", b'{"'):  # checked first: the file may be of any size
                raise SweepError(f"{path} is not a sweep that can be read: it does not begin as one")
            return start + file.read()
    except OSError as error:
        raise SweepError(f"{path} is not a sweep that can be read: {error.strerror}") from error
    except MemoryError:
        raise SweepError(f"{path} is not a sweep that can be read: it does not fit in memory") from None


def fill_from(content: bytes, path: Path, result: SweepNumbers) -> tuple[int, str]:
    """Fill a result with a file's cells. Returns where the last whole line ends, and the checksum of that line."""
    *lines, cut_off = content.split(b"\n")  # a whole line ends in a newline
    head = lines[0] if lines else cut_off
    _, checksum = read_head(head, path)
    size = len(head) + bool(lines)
    for number, line in enumerate(lines[1:], start=2):
        name = f"line {number} of {path}"
        cells, checksum = opened(line, checksum, name)
        fill(result, cells, name)
        size += len(line) + 1
    return size, checksum


def _check_same(content: bytes, path: Path, result: SweepNumbers) -> None:
    """SweepError for a file of another sweep."""
    theirs = read_head(content.partition(b"\n")[0], path)[0]
    ours = Head.of(result)
    question = json.loads(json.dumps(ours.question))  # with lists for tuples, as the file has them
    if theirs.n_pairs == ours.n_pairs and theirs.question == question:
        return
    raise SweepError(
        f"{path} holds another sweep ({_difference(theirs.question, question)}): give another file, or remove this one"
    )


def _difference(theirs: Mapping[str, object], ours: Mapping[str, object]) -> str:
    """What two sweeps were asked differently."""
    their_grids, our_grids = theirs.get("grids"), ours.get("grids")
    if isinstance(their_grids, list) != isinstance(our_grids, list):
        return "one grid there, several here" if their_grids is None else "several grids there, one here"
    differing = _differing(theirs, ours)
    if isinstance(their_grids, list) and isinstance(our_grids, list) and not differing:
        both = [(t, o) for t, o in zip(their_grids, our_grids, strict=True) if t != o]
        theirs, ours = next((pair for pair in both if _differing(*pair) != ["code"]), both[0])
        differing = _differing(theirs, ours)
    differing = [k for k in differing if k != "code"] or differing  # the code is long, and repeats the others
    parts = "; ".join(f"{k}: {theirs.get(k)!r} there, {ours[k]!r} here" for k in differing[:3])
    return parts or "other prompts or edits, or a function with other code"


def _differing(theirs: Mapping[str, object], ours: Mapping[str, object]) -> list[str]:
    """What two sweeps were asked differently, by name, but for the hash and for grids, which are looked at one by one."""
    return [k for k, v in ours.items() if theirs.get(k) != v and k not in ("digest", "grids")]
