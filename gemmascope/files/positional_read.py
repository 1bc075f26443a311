"""Reading bytes at an offset of a file, on every system. Not every system has pread, so each read opens the file itself."""

from __future__ import annotations

import os
from io import FileIO
from pathlib import Path

# The unit of reads that bypass the page cache, in bytes.
PAGE = 4096


def read_into(path: Path, offset: int, target: memoryview, n_bytes: int, *, direct: bool = False) -> int:
    """Fill a buffer with a file's bytes from an offset on. Safe to call from many threads.

    Args:
        path: The file.
        offset: Where to begin.
        target: The buffer. With direct, it consists of whole pages, and may be written up to the end of the last one.
        n_bytes: How many bytes to read.
        direct: Whether to bypass the page cache, where the system and the file system support it.

    Returns:
        How many bytes were read: fewer than n_bytes if the file ends before.

    Raises:
        OSError: The file cannot be read.
    """
    with _opened(path, direct) as file:
        file.seek(offset)
        done = 0
        while done < n_bytes and (count := file.readinto(target[done:])):
            done += count
    return done


def _opened(path: Path, direct: bool) -> FileIO:
    flag = getattr(os, "O_DIRECT", 0) if direct else 0
    if flag:
        try:
            return open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | flag))
        except OSError:  # the file system does not support it
            pass
    return path.open("rb", buffering=0)
