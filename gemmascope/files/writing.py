"""Writing files, whole or not at all: a write that fails leaves the old file as it was.

Links are followed and stay links. An existing file keeps its mode; a new one gets 0666 less the umask. The new content is a
new file, so another hard link to the old one keeps the old content. Pipes, terminals and devices are written to directly.
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
from typing import BinaryIO

from gemmascope.errors import FileError, GemmascopeError
from gemmascope.files.paths import is_full, user_path, why_not_made, why_not_written
from gemmascope.files.replace import replace_file

Content = str | bytes | memoryview | Iterable[bytes | memoryview]

_DESCRIPTOR = re.compile(r"/dev/(stdin|stdout|stderr)|/(?:dev|proc/(?:self|thread-self|\d+))/fd/(\d+)")
_STANDARD = {"stdin": 0, "stdout": 1, "stderr": 2}


def write_file(
    path: str | os.PathLike[str],
    content: Content,
    *,
    error: type[GemmascopeError] = FileError,
    full: type[GemmascopeError] | None = None,
    allow_pipe: bool = False,
) -> None:
    """Write a file, whole or not at all.

    Args:
        path: The path as a user typed it.
        content: Text, which is written as UTF-8; bytes; or pieces of bytes, produced while they are written. If producing
            them raises an exception, it is passed on and the old file stays.
        error: The class to raise.
        full: The class to raise for a full disk; None for `error`.
        allow_pipe: Whether the path may be a pipe or a device.

    Raises:
        error: The path is not one, or the file cannot be written. The message says why, and what to do.
    """
    checked = _file_path(path, error)
    with explain_os_errors(checked, error, full):
        if not _is_pipe_or_device(checked):
            target = _target(checked)
            replace_file(target, _pieces(content), _existing_mode(target))
        elif allow_pipe:
            with _open_pipe(checked) as pipe:
                for piece in _pieces(content):
                    pipe.write(piece)
        else:
            raise error(f"cannot write {checked}: it is a pipe or a device, and this must be a file that can be read again")


def require_writable(path: str | os.PathLike[str], *, error: type[GemmascopeError] = FileError) -> None:
    """Raises error for a path that write_file would refuse, as far as that can be known without writing."""
    checked = _file_path(path, error)
    with explain_os_errors(checked, error):
        if _is_pipe_or_device(checked):
            return
        target = _target(checked)
        _existing_mode(target)
        if not os.path.isdir(os.path.dirname(target)):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        if not os.access(os.path.dirname(target), os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "Permission denied")


@contextmanager
def explain_os_errors(path: Path, error: type[GemmascopeError], full: type[GemmascopeError] | None = None) -> Iterator[None]:
    """Turns the system's errors from writing a file into this package's own."""
    try:
        yield
    except GemmascopeError:  # FileError is an OSError too
        raise
    except OSError as reason:
        kind = full if full is not None and is_full(reason) else error
        raise kind(f"cannot write {path}: {why_not_written(path, reason)}") from reason


def _file_path(path: str | os.PathLike[str], error: type[GemmascopeError]) -> Path:
    checked = user_path(path, error=error)
    if os.fspath(path).endswith(("/", os.sep)) and not os.path.isdir(checked):  # pathlib drops the separator
        raise error(f"cannot write {path}: it ends like a folder; name a file in it")
    return checked


def _pieces(content: Content) -> Iterable[bytes | memoryview]:
    if isinstance(content, str):
        return [content.encode("utf-8", errors="backslashreplace")]  # a lone surrogate has no UTF-8
    return [content] if isinstance(content, (bytes, memoryview)) else content


# -- pipes and devices --


def _open_pipe(path: Path) -> BinaryIO:
    """A pipe, a terminal or an open file descriptor, opened for writing."""
    number = _descriptor(path)
    if number is None:
        return path.open("wb")
    for stream in (sys.stdout, sys.stderr):  # text printed earlier must come first
        with suppress(AttributeError, ValueError):
            stream.flush()
    return os.fdopen(os.dup(number), "wb")


def _is_pipe_or_device(path: Path) -> bool:
    """Whether a path is something other than a file, existing or new. Raises OSError if it cannot be written at all."""
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
    """The file descriptor that a path such as /dev/stdout names; None for any other path."""
    text = os.fspath(path)
    for _ in range(40):
        if match := _DESCRIPTOR.fullmatch(text):
            return _STANDARD[match[1]] if match[1] else int(match[2])
        if not os.path.islink(text):
            return None
        text = os.path.join(os.path.dirname(text), os.readlink(text))
    raise OSError(errno.ELOOP, "Too many levels of symbolic links")


# -- files --


def _target(path: Path) -> str:
    """The absolute path of the file to write: for a link, the file it leads to, which need not exist."""
    absolute = os.path.join(os.getcwd(), path)
    return os.path.realpath(absolute) if os.path.islink(absolute) else absolute


def _existing_mode(target: str) -> int | None:
    """The mode of an existing file; None if there is none. Raises PermissionError for a read-only file."""
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        return None
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, "Permission denied")
    return stat.S_IMODE(mode)


def make_folder(
    path: str | os.PathLike[str], *, error: type[GemmascopeError] = FileError, full: type[GemmascopeError] | None = None
) -> Path:
    """Create a folder and its parents, unless it exists. Raises error if it cannot be created."""
    folder = user_path(path, error=error, what="a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise error(f"{folder} is a file; give a folder") from None
    except OSError as reason:
        kind = full if full is not None and is_full(reason) else error
        raise kind(f"the folder {folder} cannot be made: {why_not_made(folder, reason)}") from reason
    return folder
