"""Locks on open files, between processes and between threads. They go when the file is closed, however its process ends."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

# Windows locks bytes, and others may then not read them: one that no file has.
_FAR = 2**62


def lock(file: IO[Any], *, wait: bool) -> bool:
    """Take the lock of an open file. False if somebody else has it, and wait is False.

    True, too, where the system or the file system has no locks: then nobody is kept out.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return _lock_byte(file, wait)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # no locks on this file system
        return True
    return True


@contextmanager
def held(path: Path) -> Iterator[None]:
    """While this lasts nobody else holds this file, which is made if it is not there, and stays: others wait, and say so."""
    file = path.open("w", encoding="utf-8")
    try:
        try:
            if not lock(file, wait=False):
                print(f"another process is at work in {path.parent}: waiting for it", file=sys.stderr)
                lock(file, wait=True)
            yield
        finally:
            unlock(file)
            file.close()
    finally:  # again, because an interrupt may have come in the line before, and the traceback keeps the file
        file.close()


def unlock(file: IO[Any]) -> None:
    """Let go of the lock, which a forked process may share."""
    with suppress(ImportError, OSError, ValueError):  # ValueError: it is closed already
        import fcntl

        fcntl.flock(file, fcntl.LOCK_UN)


def _lock_byte(file: IO[Any], wait: bool) -> bool:
    try:
        import msvcrt
    except ImportError:
        return True
    system: Any = msvcrt  # what it has is known to mypy on Windows only
    while True:
        place = file.tell()
        file.seek(_FAR)
        try:
            system.locking(file.fileno(), system.LK_NBLCK, 1)
            return True
        except OSError:
            if not wait:
                return False
            time.sleep(0.2)
        finally:
            file.seek(place)
