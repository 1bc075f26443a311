"""Reading JSON files: damaged, hostile or ambiguous content is an error that names the file."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from gemmascope.errors import CheckpointError, GemmascopeError

# Python's parser and repr fail at some thousand levels, depending on the caller's depth. No file read here needs 20.
MAX_DEPTH = 100
# Configurations, indices and manifests take kilobytes; a tokenizer.json some 40 MB.
MAX_BYTES = 2**28
# The beginning of the pointer that git-lfs leaves in place of a large file.
_POINTER = b"version https://git-lfs"


class _Refused(ValueError):
    """A JSON text that Python would parse but this module does not accept."""


def parse_json(
    text: str | bytes | bytearray, source: object, *, error: type[GemmascopeError] = CheckpointError, finite: bool = True
) -> Any:
    """The value of a JSON text.

    Args:
        text: The JSON, as text or as UTF-8.
        source: Where it comes from, for the error: a path, or a phrase such as "line 3 of sweep.jsonl".
        error: The class to raise.
        finite: Whether to refuse NaN, Infinity and numbers too large for a float.

    Raises:
        error: The text is not JSON or not UTF-8, is nested more than MAX_DEPTH levels deep, or has a duplicate key.
    """
    try:
        decoded = text if isinstance(text, str) else bytes(text).decode("utf-8")
        if decoded.startswith("\ufeff"):
            raise _Refused("it begins with a byte order mark: save it as UTF-8 without one")
        constant, number = (_no_constant, _finite_float) if finite else (None, None)
        value = json.loads(decoded, object_pairs_hook=_object, parse_constant=constant, parse_float=number)
        _require_shallow(value)
    except RecursionError:
        raise error(f"{source} cannot be read as JSON: it is nested too deeply") from None
    except UnicodeDecodeError as reason:
        raise error(f"{source} cannot be read as JSON: it is not UTF-8 ({reason.reason} at byte {reason.start})") from reason
    except ValueError as reason:
        raise error(f"{source} cannot be read as JSON: {reason}") from reason
    return value


def read_json(path: Path, *, error: type[GemmascopeError] = CheckpointError) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        error: The file cannot be read, parse_json refuses it, or it holds something other than an object.
    """
    content = parse_json(read_bytes(path, MAX_BYTES, error=error), path, error=error)
    if not isinstance(content, dict):
        raise error(f"{path} holds a JSON {type(content).__name__}, not an object")
    return content


def read_bytes(path: Path, largest: int, *, error: type[GemmascopeError] = CheckpointError) -> bytes:
    """The bytes of a small file. Raises error if it cannot be read, is a git-lfs pointer, or is larger than `largest`."""
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


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise _Refused(f"it names {twice[:80]!r} twice")
    return content


def _require_shallow(value: object) -> None:
    """Refuses a value nested more than MAX_DEPTH levels, so that later code can recurse over it."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(MAX_DEPTH):
        inner = (each for outer in level for each in (outer.values() if isinstance(outer, dict) else outer))
        level = [each for each in inner if isinstance(each, (dict, list))]
        if not level:
            return
    raise _Refused("it is nested too deeply")


def is_regular_file(path: Path, *, error: type[GemmascopeError] = CheckpointError) -> bool:
    """Whether there is a file of this name. Raises error for a folder, a device or a broken link of that name."""
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
    """Raises error if a file of any size is a git-lfs pointer, or cannot be read."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_POINTER))
    except OSError as reason:
        raise error(f"{path} cannot be read: {_why(path, reason)}") from reason
    if start == _POINTER:
        raise error(_pointer(path))


def _pointer(path: Path) -> str:
    return f"{path} is a git-lfs pointer, not the file itself: run `git lfs pull` in {path.parent}"
