"""The one way to write a file: aside first and then renamed, so that a write that breaks leaves what was there whole.

A link is followed and stays a link. A file keeps its mode; a new one has 0666 less the umask. Because the file is a new one,
another hard link to the old one keeps the old content. Pipes, terminals and devices are written to and never replaced.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from gemmascope.errors import FileError, GemmascopeError
from gemmascope.files.asides import replace_file
from gemmascope.files.paths import is_full, user_path, why_not_made, why_not_written

Content = str | bytes | memoryview | Iterable[bytes | memoryview]

_DESCRIPTOR = re.compile(r"/dev/(stdin|stdout|stderr)|/(?:dev|proc/(?:self|thread-self|\d+))/fd/(\d+)")
_STANDARD = {"stdin": 0, "stdout": 1, "stderr": 2}


def write_file(
    given: Any,
    content: Content,
    *,
    error: type[GemmascopeError] = FileError,
    full: type[GemmascopeError] | None = None,
    allow_pipe: bool = False,
) -> None:
    """Write a file, whole or not at all.

    Args:
        given: The path as a user typed it.
        content: A text, written as UTF-8, or bytes, or several pieces of bytes, made as they are written. What making them
            raises goes on, and the file is as it was.
        error: The class to raise.
        full: The class for a full disk, if it is another.
        allow_pipe: Whether a pipe or a device is written to; else it is refused.

    Raises:
        error: The path is none, or the file cannot be written: says why, and what to do.
    """
    path = _asked(given, error)
    with explain_os_errors(path, error, full):
        if not _leads_through(path):
            target = _target(path)
            replace_file(target, _pieces(content), _mode_there(target))
        elif allow_pipe:
            with _passage(path) as passage:
                for piece in _pieces(content):
                    passage.write(piece)
        else:
            raise error(f"cannot write {path}: it is a pipe or a device, and this must be a file that can be read again")


def require_writable(given: Any, *, error: type[GemmascopeError] = FileError) -> None:
    """error for a path that write_file would refuse, as far as that can be seen without writing."""
    path = _asked(given, error)
    with explain_os_errors(path, error):
        if _leads_through(path):
            return
        target = _target(path)
        _mode_there(target)
        if not os.path.isdir(os.path.dirname(target)):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        if not os.access(os.path.dirname(target), os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "Permission denied")


@contextmanager
def explain_os_errors(path: Path, error: type[GemmascopeError], full: type[GemmascopeError] | None = None) -> Iterator[None]:
    """Turns the system's errors of writing a file into the package's own."""
    try:
        yield
    except GemmascopeError:  # some are OSErrors, too
        raise
    except OSError as reason:
        kind = full if full is not None and is_full(reason) else error
        raise kind(f"cannot write {path}: {why_not_written(path, reason)}") from reason


def _asked(given: Any, error: type[GemmascopeError]) -> Path:
    path = user_path(given, error=error)
    if os.fspath(given).endswith(("/", os.sep)) and not os.path.isdir(path):  # pathlib drops it
        raise error(f"cannot write {given}: it ends like a folder; name a file in it")
    return path


def _pieces(content: Content) -> Iterable[bytes | memoryview]:
    if isinstance(content, str):
        return [content.encode("utf-8", errors="backslashreplace")]  # half of a surrogate pair has no UTF-8
    return [content] if isinstance(content, (bytes, memoryview)) else content


# -- pipes and devices --


def _passage(path: Path) -> BinaryIO:
    """A pipe, a terminal or an open descriptor, to be written to."""
    number = _descriptor(path)
    if number is None:
        return path.open("wb")
    for stream in (sys.stdout, sys.stderr):  # what was printed before comes before
        with suppress(AttributeError, ValueError):
            stream.flush()
    return os.fdopen(os.dup(number), "wb")


def _leads_through(path: Path) -> bool:
    """Whether a path is no file, neither one that is there nor a new one. OSError for what nobody can write to."""
    if _descriptor(path) is not None:
        return True
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "Is a directory")
    if stat.S_ISBLK(mode):
        raise OSError(errno.EINVAL, "it is a disk, and no file on it")
    if stat.S_ISSOCK(mode):
        raise OSError(errno.ENXIO, "it is a socket, which is no file to write to")
    return not stat.S_ISREG(mode)


def _descriptor(path: Path) -> int | None:
    """The number of the open file that a path names, such as /dev/stdout. It has a place of its own, which is kept."""
    text = os.fspath(path)
    for _ in range(40):
        if found := _DESCRIPTOR.fullmatch(text):
            return _STANDARD[found[1]] if found[1] else int(found[2])
        if not os.path.islink(text):
            return None
        text = os.path.join(os.path.dirname(text), os.readlink(text))
    raise OSError(errno.ELOOP, "Too many levels of symbolic links")


# -- files --


def _target(path: Path) -> str:
    """The file that is written: what a link leads to, though it may not be there. Not of the current folder's whims."""
    whole = os.path.join(os.getcwd(), path)
    return os.path.realpath(whole) if os.path.islink(whole) else whole


def _mode_there(target: str) -> int | None:
    """The mode of the file that is there; None for none. PermissionError for one that may not be written."""
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        return None
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, "Permission denied")
    return stat.S_IMODE(mode)


def make_folder(given: Any, *, error: type[GemmascopeError] = FileError, full: type[GemmascopeError] | None = None) -> Path:
    """A folder, made with those around it unless it is there. error if it cannot be made."""
    path = user_path(given, error=error, what="a folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise error(f"{path} is a file; give a folder") from None
    except OSError as reason:
        kind = full if full is not None and is_full(reason) else error
        raise kind(f"the folder {path} cannot be made: {why_not_made(path, reason)}") from reason
    return path
