"""How much host memory there is to use: what is free, within what a container and this process may take.

The one place that asks the operating system about memory. psutil knows Linux, macOS and Windows. A container's limit is
in the files of its control groups, which psutil does not read: without them a budget would be of the host's memory, and
the kernel would end the process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from gemmascope.errors import warn

# What is taken to be free where nobody can say: as much as a small laptop has.
UNKNOWN = 2 * 2**30

# Version 1 of control groups writes "no limit" as the largest number of whole pages.
_NONE_V1 = 2**62


def available_bytes() -> int:
    """Host memory that this process can still take, in bytes. Where that cannot be measured: UNKNOWN, with a warning."""
    found = measured_bytes()
    if found is None:
        warn(f"free memory cannot be measured here: {UNKNOWN / 2**30:.0f} GiB are assumed. Say memory= to use more, or less")
        return UNKNOWN
    return found


def measured_bytes(root: Path = Path("/")) -> int | None:
    """Host memory that this process can still take, in bytes: the least of what is free, what its container's limit leaves
    and what its own limit (ulimit -v) leaves. None where what is free cannot be measured.

    root: where the files of the system are; another folder in tests.
    """
    free = _free()
    return None if free is None else max(0, min([free, *_left_in_container(root), *_left_to_process()]))


def _free() -> int | None:
    import psutil

    try:
        return int(psutil.virtual_memory().available)
    except Exception:  # psutil's errors are of many kinds, and a number is wanted whatever they are
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf, macOS not this number
        return None


def _left_to_process() -> list[int]:
    """What a limit of this process's address space leaves, where there is one."""
    if sys.platform == "win32":
        return []
    try:
        import resource

        import psutil

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit == resource.RLIM_INFINITY:
            return []
        return [limit - int(psutil.Process().memory_info().vms)]
    except Exception:  # no limit is known
        return []


def _left_in_container(root: Path) -> list[int]:
    """What each control group of this process leaves, from its own up to the outermost that is seen here."""
    cgroups = _text(root / "proc/self/cgroup") or ""
    mounted = root / "sys/fs/cgroup"
    left: list[int] = []
    for line in cgroups.splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            for base in (mounted, mounted / "unified"):
                left += [one for folder in _up(base, path) for one in _left_v2(folder)]
        elif "memory" in controllers.split(","):
            left += [one for folder in _up(mounted / "memory", path) for one in _left_v1(folder)]
    return left


def _up(base: Path, path: str) -> Iterator[Path]:
    """The folders of a group and of those around it. A container often sees its own group as the outermost."""
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    for n in range(len(parts), -1, -1):
        yield base.joinpath(*parts[:n])


def _left_v2(folder: Path) -> list[int]:
    limits = [limit for name in ("memory.max", "memory.high") if (limit := _number(folder / name)) is not None]
    used = _number(folder / "memory.current")
    if not limits or used is None:
        return []
    return [min(limits) - (used - _counted(folder, "inactive_file"))]


def _left_v1(folder: Path) -> list[int]:
    limit, used = _number(folder / "memory.limit_in_bytes"), _number(folder / "memory.usage_in_bytes")
    if limit is None or limit >= _NONE_V1 or used is None:
        return []
    return [limit - (used - _counted(folder, "total_inactive_file"))]


def _counted(folder: Path, name: str) -> int:
    """Bytes of files that the kernel keeps in memory and gives back when memory is wanted: they are as good as free."""
    for line in (_text(folder / "memory.stat") or "").splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdigit():
            return int(value)
    return 0


def _number(path: Path) -> int | None:
    """The number in a file; None where there is no file, or no number in it, such as "max"."""
    text = (_text(path) or "").strip()
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
