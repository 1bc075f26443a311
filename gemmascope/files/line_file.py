"""Files that grow line by line as something is computed: one writer at a time, each line whole or not at all.

Lines are those of sealed_lines.py: JSON with a checksum of itself and of the lines before it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, ClassVar

from gemmascope.errors import FileError, GemmascopeError
from gemmascope.files.locking import lock, unlock
from gemmascope.files.paths import user_path, why_not_written
from gemmascope.files.sealed_lines import Line, sealed
from gemmascope.files.writing import explain_os_errors, require_writable


class LineFile:
    """A file that lines are appended to; none before it is opened.

    Attributes:
        what: What it holds, for errors: "sweep".
        error: The class of its errors.
        stopped: The class to raise for a file that takes no more lines.
    """

    what: ClassVar[str] = "file"
    error: ClassVar[type[GemmascopeError]] = FileError
    stopped: ClassVar[type[GemmascopeError]] = FileError

    def __init__(self) -> None:
        self.path: Path | None = None
        self._file: BinaryIO | None = None
        self._size, self._checksum = 0, ""

    def start(self, out: str | os.PathLike[str]) -> bool:
        """Open and lock a file, which is made if there is none. Returns whether it was made.

        Raises:
            error: It cannot be written, is no plain file, or another process or thread is writing to it.
        """
        path = user_path(out, error=self.error, what=f"a {self.what}")
        if os.path.isdir(path):
            raise self.error(f"{path} is not a {self.what} that can be read: it is a folder; name a file in it")
        require_writable(out, error=self.error)
        if os.path.exists(path) and not path.is_file():
            raise self.error(
                f"cannot write {path}: it is a pipe or a device, and this must be a file that can be read again"
            )
        with explain_os_errors(path, self.error):
            is_new = not path.exists()
            self.path, self._file = path, path.open("ab+", buffering=0)
        if not lock(self._file, wait=False):
            raise self.error(f"another {self.what} is writing to {path}: let it end, or give another file")
        return is_new

    def close(self) -> None:
        """Unlock and close the file. May be called again."""
        if self._file is not None:
            unlock(self._file)
            self._file.close()
            self._file = None

    def begin(self, head: bytes, checksum: str, is_new: bool) -> None:
        """Write the first line in place of all that the file has. A new file is removed if it does not take it."""
        assert self._file is not None
        assert self.path is not None
        try:
            with explain_os_errors(self.path, self.error):
                self._file.truncate(0)
                self._append(head)
                self._size, self._checksum = len(head), checksum
                is_new = False
        finally:
            if is_new:
                self.close()
                self.path.unlink(missing_ok=True)

    def go_on(self, content: bytes, size: int, checksum: str) -> None:
        """Go on after the first `size` bytes of the content that the file has; what a crash left after them is cut off."""
        assert self._file is not None
        assert self.path is not None
        self._size, self._checksum = size, checksum
        with explain_os_errors(self.path, self.error):
            if not content[: self._size].endswith(b"\n"):  # a first line that lacks only its newline
                self._append(b"\n")
                self._size += 1
            self._file.truncate(self._size)  # drop a line that was cut off, so that the next one starts a line

    def add(self, content: Line) -> None:
        """Append a line.

        Raises:
            stopped: The file does not take it, for example on a full disk. It then ends with the line before.
        """
        line, checksum = sealed(content, self._checksum)
        self._require_unchanged()
        try:
            self._append(line)
        except OSError as error:
            assert self.path is not None
            raise self.stopped(why_not_written(self.path, error)) from error
        self._size, self._checksum = self._size + len(line), checksum

    def _append(self, line: bytes) -> None:
        """Write at the end. A write that fails part of the way is undone."""
        assert self._file is not None
        n_written = 0
        try:
            while n_written < len(line):
                n_written += self._file.write(line[n_written:])
        except BaseException:
            with suppress(OSError):
                self._file.truncate(self._size)
            raise

    def _require_unchanged(self) -> None:
        """Raises stopped for a file that something else removed, replaced or wrote to since the last line."""
        assert self._file is not None
        assert self.path is not None
        try:
            own, at_path = os.fstat(self._file.fileno()), os.stat(self.path)
        except OSError:
            raise self.stopped(f"it was removed, or moved, while the {self.what} ran") from None
        if (own.st_dev, own.st_ino) != (at_path.st_dev, at_path.st_ino):
            raise self.stopped(f"another file was put in its place while the {self.what} ran")
        if own.st_size != self._size:
            raise self.stopped(f"something else wrote to it while the {self.what} ran")
