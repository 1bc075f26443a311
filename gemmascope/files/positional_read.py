"""Reading bytes at a place of a file, on every system: pread is not everywhere, so each read has a file of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

# What the disk reads at once, where the page cache is passed by.
PAGE = 4096


def read_into(path: Path, offset: int, target: memoryview, n_bytes: int, *, direct: bool = False) -> int:
    """Fill a buffer with the bytes of a file from an offset on, and return how many there were: fewer where it ends.

    Safe in many threads at once. Raises OSError.

    Args:
        path: The file.
        offset: Where to begin.
        target: The buffer. With direct, whole pages of memory; up to the last page's end may be written.
        n_bytes: How many bytes are wanted.
        direct: Past the page cache, where the system and the file system know how.
    """
    with _opened(path, direct) as file:
        file.seek(offset)
        done = 0
        while done < n_bytes and (count := file.readinto(target[done:])):
            done += count
    return done


def _opened(path: Path, direct: bool) -> Any:
    flag = getattr(os, "O_DIRECT", 0) if direct else 0
    if flag:
        try:
            return open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | flag))
        except OSError:  # the file system does not know how
            pass
    return path.open("rb", buffering=0)
