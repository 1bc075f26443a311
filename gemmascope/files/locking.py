"""Locks on open files, between processes and between threads. Closing the file releases the lock, however a process ends."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

# Windows locks bytes, which others then cannot read, so this locks one far beyond the end of any file.
_FAR = 2**62


def lock(file: IO[str] | IO[bytes], *, wait: bool) -> bool:
    """Lock an open file. Returns False if another process holds the lock and wait is False.

    Where the system or the file system has no locks, this returns True and keeps nobody out.
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
def file_lock(path: Path) -> Iterator[None]:
    """Holds the lock of a file, creating the file if need be. Waits, with a message, while another process has the lock."""
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
    finally:  # once more: an interrupt may arrive just before the line above, and its traceback keeps the file open
        file.close()


def unlock(file: IO[str] | IO[bytes]) -> None:
    """Release a lock, which a forked process may share."""
    with suppress(ImportError, OSError, ValueError):  # ValueError: the file is already closed
        import fcntl

        fcntl.flock(file, fcntl.LOCK_UN)


def _lock_byte(file: IO[str] | IO[bytes], wait: bool) -> bool:
    try:
        import msvcrt
    except ImportError:
        return True
    windows: Any = msvcrt  # mypy knows its functions on Windows only
    while True:
        position = file.tell()
        file.seek(_FAR)
        try:
            windows.locking(file.fileno(), windows.LK_NBLCK, 1)
            return True
        except OSError:
            if not wait:
                return False
            time.sleep(0.2)
        finally:
            file.seek(position)
