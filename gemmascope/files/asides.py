"""Files beside the one that is to be written, which take its place once they are whole; and those that were left over."""

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
from typing import BinaryIO

# How the name of a file that is being written ends.
PART = ".part"

# A name may have 255 bytes, of which an aside's own parts take 32.
_LONGEST_STEM = 200

# After so many seconds what another machine left behind counts as given up: its processes cannot be asked for.
_GIVEN_UP = 86_400


def replace_file(target: str, pieces: Iterable[bytes | memoryview], mode: int | None) -> None:
    """Write a file aside, and put it in the place of the one that is there. mode: of that one; None where there is none."""
    _clear_left_overs(target)
    aside = _Aside(target)
    try:
        try:
            aside.fill(pieces, mode)
            _take_owner(target, aside.path)
            _rename(aside.path, target)
        finally:
            aside.remove()
    finally:  # again, because an interrupt may have come in the line before
        aside.remove()


class _Aside:
    """A file beside the one that is to be written, of a name that no other call has.

    It is removed at the latest when this object goes, or the process ends: whatever interrupts the orderly way.
    """

    def __init__(self, target: str) -> None:
        name = f"{_prefix(target)}{_machine()}-{os.getpid()}-{secrets.token_hex(4)}{PART}"
        self.path = os.path.join(os.path.dirname(target), name)
        self._file: BinaryIO | None = None
        self._finalizer = weakref.finalize(self, _unlink, self.path, os.getpid())
        _UNDER_WAY[name] = self

    def fill(self, pieces: Iterable[bytes | memoryview], mode: int | None) -> None:
        """Write the pieces to it and to the disk. mode: its mode; None for that of a new file."""
        first = 0o666 if mode is None else mode & 0o777
        self._file = open(self.path, "xb", opener=lambda name, flags: os.open(name, flags, first))  # noqa: SIM115
        for piece in pieces:
            self._file.write(piece)
        self._file.flush()
        sync(self._file)
        self._file.close()
        if mode is not None:
            os.chmod(self.path, mode)

    def remove(self) -> None:
        """As often as one likes; nothing where the file has taken its place."""
        if self._file is not None:
            with suppress(OSError):  # a full disk says so once more
                self._file.close()
        _unlink(self.path, os.getpid())
        self._finalizer.detach()


# The asides that this process is writing, by name: no thread takes another's for a left-over.
_UNDER_WAY: weakref.WeakValueDictionary[str, _Aside] = weakref.WeakValueDictionary()


def _unlink(path: str, owner: int) -> None:
    if os.getpid() == owner:  # a forked process must not remove what its parent is writing
        with suppress(OSError):
            os.unlink(path)


def sync(file: BinaryIO) -> None:
    """Have a file's bytes on the disk. File systems without that are left to their ways."""
    try:
        os.fsync(file.fileno())
    except OSError as reason:
        if reason.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise


def _rename(aside: str, target: str) -> None:
    """Put a file in another's place. On Windows that fails for a moment while somebody opens it."""
    for pause in (0.01, 0.05, 0.2) if os.name == "nt" else ():
        with suppress(PermissionError):
            return os.replace(aside, target)
        time.sleep(pause)
    return os.replace(aside, target)


def _take_owner(target: str, aside: str) -> None:
    """Keep the owner of the file that is there, where the system lets us: root may save a user's file."""
    chown = getattr(os, "chown", None)
    with suppress(OSError):
        there, ours = os.stat(target), os.stat(aside)
        if chown is not None and (there.st_uid, there.st_gid) != (ours.st_uid, ours.st_gid):
            chown(aside, there.st_uid, there.st_gid)
            os.chmod(aside, stat.S_IMODE(there.st_mode))  # a change of owner clears some bits


# -- left-overs --


def _prefix(target: str) -> str:
    """How the names of a file's asides begin."""
    name = os.path.basename(target)
    if len(os.fsencode(name)) > _LONGEST_STEM:
        name = f"{name[:40]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"
    return f".{name}."


def _machine() -> str:
    """Eight letters for this machine, or this container: within it a process's number tells whether it is alive."""
    space = ""
    with suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:8]


_LEFT = re.compile(r"(?:([0-9a-f]{8})-(\d+)-[0-9a-f]{8}|(\d+))" + re.escape(PART))


def _clear_left_overs(target: str) -> None:
    """Remove the asides of this file whose processes were ended in the middle."""
    prefix = _prefix(target)
    with suppress(OSError), os.scandir(os.path.dirname(target)) as entries:
        for entry in entries:
            if entry.name.startswith(prefix) and (found := _LEFT.fullmatch(entry.name[len(prefix) :])):
                with suppress(OSError):
                    if _is_left(entry, found[1], int(found[2] or found[3])):
                        os.unlink(entry.path)


def _is_left(entry: os.DirEntry[str], machine: str | None, process: int) -> bool:
    """Whether nobody writes this aside any more. In doubt it stays."""
    changed = entry.stat(follow_symlinks=False).st_mtime
    if machine not in (None, _machine()):
        return time.time() - changed > _GIVEN_UP
    if process == os.getpid():
        return entry.name not in _UNDER_WAY
    return not _lives(process, changed)


def _lives(process: int, since: float) -> bool:
    """Whether a process is alive that may have written at this time: numbers are given again."""
    import psutil

    try:
        found = psutil.Process(process)
        return bool(found.status() != psutil.STATUS_ZOMBIE and found.create_time() <= since + 60)
    except psutil.NoSuchProcess:
        return False
    except (psutil.Error, OSError, OverflowError):
        return True
