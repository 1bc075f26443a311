"""Files that are written aside and then renamed: a write that breaks leaves what was there before whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# How the name of a file that is being written ends.
PART = ".part"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside this one to write to, which takes its place when the block ends, and is removed if it fails."""
    aside = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
