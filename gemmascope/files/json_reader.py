"""JSON from files, read in one place: what is damaged, hostile or ambiguous is an error that names the file."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from gemmascope.errors import CheckpointError, GemmascopeError

# Python's parser and its repr stop at some thousand levels, at a depth that depends on the caller. No file here needs 20.
DEEPEST = 100
# Configurations, indices and manifests take kilobytes; a tokenizer.json some 40 MB.
LARGEST = 2**28
# What a file begins with that git-lfs left in the place of a large one.
_POINTER = b"version https://git-lfs"


class _Refused(ValueError):
    """Why a JSON text is not taken, although Python would parse it."""


def parse_json(
    text: str | bytes | bytearray, where: object, *, error: type[GemmascopeError] = CheckpointError, finite: bool = True
) -> Any:
    """The value of a JSON text.

    Args:
        text: The JSON, as text or as UTF-8.
        where: What it was read from, such as a path or "line 3 of sweep.jsonl", for the error.
        error: The class to raise.
        finite: Whether NaN, Infinity and numbers too large for a float are refused.

    Raises:
        error: It is no JSON, no UTF-8, nested more than DEEPEST levels deep, or names a key twice.
    """
    try:
        decoded = text if isinstance(text, str) else bytes(text).decode("utf-8")
        if decoded.startswith("\ufeff"):
            raise _Refused("it begins with a byte order mark: save it as UTF-8 without one")
        numbers: dict[str, Any] = {"parse_constant": _no_constant, "parse_float": _finite_float} if finite else {}
        value = json.loads(decoded, object_pairs_hook=_object, **numbers)
        _require_shallow(value)
    except RecursionError:
        raise error(f"{where} cannot be read as JSON: it is nested too deeply") from None
    except UnicodeDecodeError as reason:
        raise error(f"{where} cannot be read as JSON: it is not UTF-8 ({reason.reason} at byte {reason.start})") from reason
    except ValueError as reason:
        raise error(f"{where} cannot be read as JSON: {reason}") from reason
    return value


def read_json(path: Path, *, error: type[GemmascopeError] = CheckpointError) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        error: The file cannot be read, is no JSON that parse_json takes, or holds something else than an object.
    """
    content = parse_json(read_bytes(path, LARGEST, error=error), path, error=error)
    if not isinstance(content, dict):
        raise error(f"{path} holds a JSON {type(content).__name__}, not an object")
    return content


def read_bytes(path: Path, largest: int, *, error: type[GemmascopeError] = CheckpointError) -> bytes:
    """The bytes of a small file. error for one that cannot be read, is a git-lfs pointer, or has more than `largest`."""
    if os.path.isdir(path):  # Path.is_dir raises where the folder around it may not be entered
        raise error(f"{path} is a folder; a file of this name is expected there")
    try:
        with path.open("rb") as file:
            content = file.read(largest + 1)
    except (OSError, ValueError) as reason:
        raise error(f"{path} cannot be read: {_why(path, reason)}") from reason
    if content.startswith(_POINTER):
        raise error(_pointer(path))
    if len(content) > largest:
        raise error(f"{path} has more than {largest:,} bytes: that is no such file, and it is not read")
    return content


def _why(path: Path, reason: Exception) -> str:
    if os.path.islink(path) and not os.path.exists(path):
        return f"it is a link to {os.readlink(path)}, which is not there"
    return reason.strerror or str(reason) if isinstance(reason, OSError) else str(reason)


def _no_constant(name: str) -> float:
    raise _Refused(f"it holds {name}, which is no number of JSON")


def _finite_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _Refused(f"it holds {text[:40]}, which is too large for a number")
    return number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise _Refused(f"it names {twice[:80]!r} twice")
    return made


def _require_shallow(value: Any) -> None:
    """_Refused for a value nested more than DEEPEST levels: what walks over it later is then safe."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(DEEPEST):
        inner = (each for outer in level for each in (outer.values() if isinstance(outer, dict) else outer))
        level = [each for each in inner if isinstance(each, (dict, list))]
        if not level:
            return
    raise _Refused("it is nested too deeply")


def is_regular_file(path: Path, *, error: type[GemmascopeError] = CheckpointError) -> bool:
    """Whether a file of this name is there. error for a folder, a device or a link that leads nowhere in its place."""
    if os.path.isfile(path):
        return True
    if not os.path.lexists(path):
        return False
    if os.path.isdir(path):
        raise error(f"{path} is a folder; a file of this name is expected there")
    if os.path.islink(path):
        raise error(f"{path} is a link to {os.readlink(path)}, which is not there or no file: fetch it again")
    raise error(f"{path} is no regular file")


def refuse_pointer(path: Path, *, error: type[GemmascopeError] = CheckpointError) -> None:
    """error if a file, however large it should be, is the git-lfs pointer that stands for it, or cannot be read."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_POINTER))
    except OSError as reason:
        raise error(f"{path} cannot be read: {_why(path, reason)}") from reason
    if start == _POINTER:
        raise error(_pointer(path))


def _pointer(path: Path) -> str:
    return f"{path} is a git-lfs pointer, not the file itself: run `git lfs pull` in {path.parent}"
