"""Replacing a file in one step: a temporary file beside it is written and then renamed. Clears abandoned temporary files."""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import re
import secrets
import stat
import time
import weakref
from collections.abc import Iterable
from contextlib import suppress
from io import FileIO
from typing import BinaryIO

# The end of a temporary file's name.
SUFFIX = ".part"

# File systems allow 255 bytes in a name; a temporary file adds 32 to its target's.
_LONGEST_STEM = 200

# Temporary files of another machine, whose processes cannot be checked, count as abandoned after this many seconds.
_ABANDONED_AFTER = 86_400


def replace_file(target: str, pieces: Iterable[bytes | memoryview], mode: int | None) -> None:
    """Write a temporary file and rename it to the target. mode: the target's mode; None if the target is new."""
    _clear_abandoned(target)
    temporary = _TemporaryFile(target)
    try:
        try:
            temporary.write(pieces, mode)
            _copy_owner(target, temporary.path)
            _rename(temporary.path, target)
        finally:
            temporary.remove()
    finally:  # once more, because an interrupt may arrive just before the line above
        temporary.remove()


class _TemporaryFile:
    """A file beside the target, under a name no other call uses.

    Whatever interrupts the call, the file is removed when this object is collected or the process exits.
    """

    def __init__(self, target: str) -> None:
        name = f"{_prefix(target)}{_machine()}-{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}"
        self.path = os.path.join(os.path.dirname(target), name)
        self._file: BinaryIO | None = None
        self._finalizer = weakref.finalize(self, _unlink, self.path, os.getpid())
        _IN_PROGRESS[name] = self

    def write(self, pieces: Iterable[bytes | memoryview], mode: int | None) -> None:
        """Write the pieces and flush them to the disk. mode: the file's mode; None for the default of a new file."""
        initial = 0o666 if mode is None else mode & 0o777
        self._file = open(self.path, "xb", opener=lambda name, flags: os.open(name, flags, initial))  # noqa: SIM115
        for piece in pieces:
            self._file.write(piece)
        self._file.flush()
        sync(self._file)
        self._file.close()
        if mode is not None:
            os.chmod(self.path, mode)

    def remove(self) -> None:
        """Remove the file unless it was renamed. Safe to call repeatedly."""
        if self._file is not None:
            with suppress(OSError):  # closing a file on a full disk fails again
                self._file.close()
        _unlink(self.path, os.getpid())
        self._finalizer.detach()


# The temporary files this process is writing, by name, so that no thread mistakes another's for an abandoned one.
_IN_PROGRESS: weakref.WeakValueDictionary[str, _TemporaryFile] = weakref.WeakValueDictionary()


def _unlink(path: str, owner: int) -> None:
    if os.getpid() == owner:  # a forked process must not remove what its parent is writing
        with suppress(OSError):
            os.unlink(path)


def sync(file: BinaryIO | FileIO) -> None:
    """Flush a file's bytes to the disk, on file systems that support it."""
    try:
        os.fsync(file.fileno())
    except OSError as reason:
        if reason.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Flush the names in a folder to the disk, where the system can."""
    if os.name == "nt":  # Windows opens no folders
        return
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _rename(temporary: str, target: str) -> None:
    """Rename, with retries on Windows, where renaming fails while another process has the target open."""
    for pause in (0.01, 0.05, 0.2) if os.name == "nt" else ():
        with suppress(PermissionError):
            return os.replace(temporary, target)
        time.sleep(pause)
    return os.replace(temporary, target)


def _copy_owner(target: str, temporary: str) -> None:
    """Keep the existing file's owner where the system allows it: root may save over a user's file."""
    chown = getattr(os, "chown", None)
    with suppress(OSError):
        old, new = os.stat(target), os.stat(temporary)
        if chown is not None and (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
            chown(temporary, old.st_uid, old.st_gid)
            os.chmod(temporary, stat.S_IMODE(old.st_mode))  # changing the owner clears some mode bits


# -- abandoned temporary files --


def _prefix(target: str) -> str:
    """The beginning of the names of a target's temporary files."""
    name = os.path.basename(target)
    if len(os.fsencode(name)) > _LONGEST_STEM:
        name = f"{name[:40]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"
    return f".{name}."


def _machine() -> str:
    """Eight letters that identify this machine or container, within which a process id can be checked."""
    namespace = ""
    with suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{platform.node()} {namespace}".encode()).hexdigest()[:8]


_TEMPORARY_NAME = re.compile(r"(?:([0-9a-f]{8})-(\d+)-[0-9a-f]{8}|(\d+))" + re.escape(SUFFIX))


def _clear_abandoned(target: str) -> None:
    """Remove this target's temporary files whose processes were killed while writing."""
    prefix = _prefix(target)
    with suppress(OSError), os.scandir(os.path.dirname(target)) as entries:
        for entry in entries:
            if entry.name.startswith(prefix) and (match := _TEMPORARY_NAME.fullmatch(entry.name[len(prefix) :])):
                with suppress(OSError):
                    if _is_abandoned(entry, match[1], int(match[2] or match[3])):
                        os.unlink(entry.path)


def _is_abandoned(entry: os.DirEntry[str], machine: str | None, process: int) -> bool:
    """Whether nobody is writing this temporary file any more. When in doubt, it stays."""
    changed = entry.stat(follow_symlinks=False).st_mtime
    if machine not in (None, _machine()):
        return time.time() - changed > _ABANDONED_AFTER
    if process == os.getpid():
        return entry.name not in _IN_PROGRESS
    return not _is_alive(process, changed)


def _is_alive(process: int, since: float) -> bool:
    """Whether a process is alive that could have written at this time. The system reuses process ids."""
    import psutil

    try:
        running = psutil.Process(process)
        return bool(running.status() != psutil.STATUS_ZOMBIE and running.create_time() <= since + 60)
    except psutil.NoSuchProcess:
        return False
    except (psutil.Error, OSError, OverflowError):
        return True
