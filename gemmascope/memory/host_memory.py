"""How much host memory this process can still use, within its own limit and its container's.

psutil reports free memory on Linux, macOS and Windows, but ignores a container's limit, which is in the files of its control
groups. A budget beyond that limit would get the process killed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from gemmascope.errors import warn

# The memory assumed to be free where it cannot be measured: that of a small laptop.
UNKNOWN = 2 * 2**30

# Version 1 of control groups writes "no limit" as the largest number of whole pages.
_NO_LIMIT = 2**62


def available_bytes() -> int:
    """Host memory that this process can still use, in bytes. Warns and returns UNKNOWN where it cannot be measured."""
    measured = measured_bytes()
    if measured is None:
        warn(f"free memory cannot be measured here: {UNKNOWN / 2**30:.0f} GiB are assumed. Say memory= to use more, or less")
        return UNKNOWN
    return measured


def measured_bytes(root: Path = Path("/")) -> int | None:
    """Host memory that this process can still use, in bytes; None where it cannot be measured.

    The smallest of the free memory, what the container's limit leaves, and what the process's own limit (ulimit -v) leaves.

    root: the root of the system's files; another folder in tests.
    """
    free = _free()
    return None if free is None else max(0, min([free, *_left_in_container(root), *_left_to_process()]))


def _free() -> int | None:
    import psutil

    try:
        return int(psutil.virtual_memory().available)
    except Exception:  # psutil raises many kinds of errors; the next way may still work
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf, and macOS has no such name
        return None


def _left_to_process() -> list[int]:
    """What this process's limit on address space leaves, if it has one."""
    if sys.platform == "win32":
        return []
    try:
        import resource

        import psutil

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit == resource.RLIM_INFINITY:
            return []
        return [limit - int(psutil.Process().memory_info().vms)]
    except Exception:  # the limit is unknown
        return []


def _left_in_container(root: Path) -> list[int]:
    """What each control group of this process leaves, from its own to the outermost one visible here."""
    cgroups = _text(root / "proc/self/cgroup") or ""
    mounted = root / "sys/fs/cgroup"
    n_bytes_left: list[int] = []
    for line in cgroups.splitlines():
        hierarchy, controllers, path = [*line.split(":", 2), "", ""][:3]
        if hierarchy == "0" and not controllers:
            for base in (mounted, mounted / "unified"):
                n_bytes_left += [n_bytes for folder in _up(base, path) for n_bytes in _left_v2(folder)]
        elif "memory" in controllers.split(","):
            n_bytes_left += [n_bytes for folder in _up(mounted / "memory", path) for n_bytes in _left_v1(folder)]
    return n_bytes_left


def _up(base: Path, path: str) -> Iterator[Path]:
    """The folders of a group and its ancestors. A container often sees its own group as the root."""
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    for n in range(len(parts), -1, -1):
        yield base.joinpath(*parts[:n])


def _left_v2(folder: Path) -> list[int]:
    limits = [limit for name in ("memory.max", "memory.high") if (limit := _number(folder / name)) is not None]
    used = _number(folder / "memory.current")
    if not limits or used is None:
        return []
    return [min(limits) - (used - _reclaimable(folder, "inactive_file"))]


def _left_v1(folder: Path) -> list[int]:
    limit, used = _number(folder / "memory.limit_in_bytes"), _number(folder / "memory.usage_in_bytes")
    if limit is None or limit >= _NO_LIMIT or used is None:
        return []
    return [limit - (used - _reclaimable(folder, "total_inactive_file"))]


def _reclaimable(folder: Path, name: str) -> int:
    """Bytes of cached files, which the kernel frees when memory runs short."""
    for line in (_text(folder / "memory.stat") or "").splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdigit():
            return int(value)
    return 0


def _number(path: Path) -> int | None:
    """The number in a file; None if there is no file, or no number in it, such as "max"."""
    text = (_text(path) or "").strip()
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
