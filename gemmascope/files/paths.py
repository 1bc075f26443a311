"""Paths as users type them, and why the system refused one, in words."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

from gemmascope.arguments import shown
from gemmascope.errors import GemmascopeError

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


def user_path(given: Any, *, error: type[GemmascopeError], what: str = "a file") -> Path:
    """The path that a user typed, "~" being the home folder.

    Args:
        given: A text, a pathlib.Path or another os.PathLike of a text.
        error: The class to raise.
        what: What the path names, for the error.

    Raises:
        error: It is of another type, or empty, or holds a NUL or a half of a surrogate pair, which no path can.
    """
    try:
        text = os.fspath(given)
    except TypeError:
        raise error(f"the path of {what} is a text or a pathlib.Path; given {shown(given)}") from None
    if not isinstance(text, str):
        raise error(f"the path of {what} is a text, not {type(text).__name__}; given {shown(text)}")
    if not text or "\0" in text:
        raise error(
            f"the path of {what} {'is empty' if not text else 'holds a NUL, which no path can'}: given {shown(text)}"
        )
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise error(f"the path of {what} cannot be a file's name on this system: given {shown(text)}") from None
    return Path(os.path.expanduser(text))


def is_full(reason: OSError) -> bool:
    """Whether a disk, or what a user may take of it, is full."""
    return reason.errno in _FULL


def why_not_written(path: Path, reason: OSError) -> str:
    """Why a file could not be written, and what to do. Names no other file, such as the one that is written aside."""
    place = os.path.realpath(path) if os.path.islink(path) else os.fspath(path)
    folder, linked = os.path.dirname(place) or ".", f"it is a link to {place}; " if os.path.islink(path) else ""
    if os.path.isdir(place):
        return f"{linked}Is a directory; name a file in it"
    if is_full(reason):
        return "the disk is full: make room on it, or write to another one. What was there before is as it was"
    if reason.errno == errno.ENAMETOOLONG:
        return "the name is too long for this file system: take a shorter one"
    if reason.errno == errno.EROFS:
        return f"{linked}the file system is read-only: write to another folder"
    if reason.errno == errno.ELOOP:
        return "it is a link that leads back to itself"
    if not os.path.isdir(folder):
        if os.path.exists(folder):
            return f"{linked}{folder} is a file and no folder"
        return f"{linked}there is no folder {folder}: make it first"
    if isinstance(reason, PermissionError):
        return f"{linked}{_forbidden(place, folder)}"
    return f"{linked}{reason.strerror or type(reason).__name__}"


def _forbidden(place: str, folder: str) -> str:
    if os.path.exists(place) and not os.access(place, os.W_OK):
        return "it is read-only: change its mode, or give another name"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"you may not write in the folder {folder}: give another one"
    return "the system does not allow it (Permission denied). If another program has it open, close it there, and try again"


def why_not_made(path: Path, reason: OSError) -> str:
    """Why a folder could not be made, and what to do."""
    there = os.fspath(path)
    while there and not os.path.lexists(there) and os.path.dirname(there) != there:
        there = os.path.dirname(there)
    there = there or "."
    if is_full(reason):
        return "the disk is full: make room on it, or give a folder on another one"
    if reason.errno == errno.ENAMETOOLONG:
        return "a name in it is too long for this file system"
    if not os.path.isdir(there):
        return f"{there} is a link that leads nowhere" if os.path.islink(there) else f"{there} is a file and no folder"
    if reason.errno == errno.EROFS or not os.access(there, os.W_OK | os.X_OK):
        return f"you may not write in {there}: give another folder"
    return f"{reason.strerror or type(reason).__name__} in {there}: give another folder"
