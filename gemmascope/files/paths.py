"""Paths as users type them, and readable reasons for the system's refusals."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from gemmascope.arguments import short_repr
from gemmascope.errors import GemmascopeError

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


def user_path(path: str | os.PathLike[str], *, error: type[GemmascopeError], what: str = "a file") -> Path:
    """The path that a user typed, with "~" expanded to the home folder.

    Args:
        path: A string, a pathlib.Path or another os.PathLike.
        error: The class to raise.
        what: What the path is of, for the error.

    Raises:
        error: The path is of another type, is empty, or holds characters that no path can: a NUL or a lone surrogate.
    """
    try:
        text = os.fspath(path)
    except TypeError:
        raise error(f"the path of {what} is a text or a pathlib.Path; given {short_repr(path)}") from None
    if not isinstance(text, str):
        raise error(f"the path of {what} is a text, not {type(text).__name__}; given {short_repr(text)}")
    if not text or "\0" in text:
        raise error(
            f"the path of {what} {'is empty' if not text else 'holds a NUL, which no path can'}: given {short_repr(text)}"
        )
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise error(f"the path of {what} cannot be a file's name on this system: given {short_repr(text)}") from None
    return Path(os.path.expanduser(text))


def is_full(reason: OSError) -> bool:
    """Whether the disk, or the user's quota, is full."""
    return reason.errno in _FULL


def why_not_written(path: Path, reason: OSError) -> str:
    """Why a file could not be written, and what to do. Never mentions the temporary file that was written in its place."""
    target = os.path.realpath(path) if os.path.islink(path) else os.fspath(path)
    folder, linked = os.path.dirname(target) or ".", f"it is a link to {target}; " if os.path.islink(path) else ""
    if os.path.isdir(target):
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
        return f"{linked}{_forbidden(target, folder)}"
    return f"{linked}{reason.strerror or type(reason).__name__}"


def _forbidden(target: str, folder: str) -> str:
    if os.path.exists(target) and not os.access(target, os.W_OK):
        return "it is read-only: change its mode, or give another name"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"you may not write in the folder {folder}: give another one"
    return "the system does not allow it (Permission denied). If another program has it open, close it there, and try again"


def why_not_made(path: Path, reason: OSError) -> str:
    """Why a folder could not be made, and what to do."""
    existing = os.fspath(path)
    while existing and not os.path.lexists(existing) and os.path.dirname(existing) != existing:
        existing = os.path.dirname(existing)
    existing = existing or "."
    if is_full(reason):
        return "the disk is full: make room on it, or give a folder on another one"
    if reason.errno == errno.ENAMETOOLONG:
        return "a name in it is too long for this file system"
    if not os.path.isdir(existing):
        return f"{existing} is a {'link that leads nowhere' if os.path.islink(existing) else 'file and no folder'}"
    if reason.errno == errno.EROFS or not os.access(existing, os.W_OK | os.X_OK):
        return f"you may not write in {existing}: give another folder"
    return f"{reason.strerror or type(reason).__name__} in {existing}: give another folder"
