"""The cache of int8 weights: a store for the numbers of a checkpoint, and which folders have these numbers.

A store is found by the numbers that it was made from, so a checkpoint that was touched, moved or copied is not quantised
again. Each store lists the folders that it was found for, and how their files looked, so that a second load reads none of
them. A store that stands for no folder any more is removed, unless a model still reads it.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import weakref
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

from gemmascope.checkpoints.folder import Checkpoint, require_tied
from gemmascope.errors import BudgetError, CheckpointError
from gemmascope.files.json_reader import read_json
from gemmascope.files.locking import lock, unlock
from gemmascope.files.paths import user_path
from gemmascope.files.writing import explain_os_errors, write_file
from gemmascope.streaming.convert import alone, convert, identity_of, outdated_beside
from gemmascope.streaming.store import Store, is_store, is_whole, read_manifest

# In each store of the cache: the folders that have its numbers, and how the files there looked.
SOURCES = ".sources.json"

# How the names of files begin that say: a model of this process reads the store. Each is locked as long as that is so.
_HOLD = ".in-use-"

# What Windows takes for a device, whatever follows after a dot.
_DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(10))}


def cache_folder(cache: str | os.PathLike[str] | None, name: str, identity: str) -> Path:
    """Where a checkpoint's int8 weights are kept: GEMMASCOPE_CACHE or ~/.cache/gemmascope, unless a folder is given."""
    if cache is not None:
        return user_path(cache, error=CheckpointError, what="a folder")
    base = os.environ.get("GEMMASCOPE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "gemmascope"
    return Path(base).expanduser() / "int8" / f"{_plain(Path(name).name)}-{identity[:16]}"


def _plain(name: str) -> str:
    """A name that every file system takes as that of a folder, with room for what follows it."""
    plain = "".join(c if c.isalnum() or c in "-._" else "-" for c in name)[:80] or "model"
    return f"_{plain}" if plain.split(".")[0].upper() in _DEVICES else plain


def cached_store(checkpoint: Checkpoint, name: str, cache: str | os.PathLike[str] | None) -> Store:
    """The store of a checkpoint in the cache, made now if there is none. Its configuration and tokenizer are the source's.

    Raises:
        CheckpointError: The checkpoint cannot be quantised, or changed meanwhile; the folder given holds something else.
        BudgetError: The disk has too little room.
    """
    source, look = os.path.realpath(checkpoint.folder), look_of(checkpoint)
    target = _known(cache, name, source, look) or _made(checkpoint, name, cache, source)
    if look_of(checkpoint) != look:
        raise CheckpointError(f"{checkpoint.folder} changed while it was read: load it again")
    _refresh(target, checkpoint.folder, source, look)
    if cache is None:
        _forget_outdated(target, source)
    return Store(target, checkpoint.folder)


def look_of(checkpoint: Checkpoint) -> str:
    """What changes whenever a file of a checkpoint's weights may have: names, sizes, and times of the last changes."""
    found = hashlib.sha256()
    for path in sorted({stored.shard for stored in checkpoint.stored.values()}):
        about = path.stat()
        found.update(repr((path.name, about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino)).encode())
    return found.hexdigest()


def _known(cache: str | os.PathLike[str] | None, name: str, source: str, look: str) -> Path | None:
    """The store that was found before for this folder, if the files there look as they did then."""
    places = [cache_folder(cache, name, "")] if cache is not None else _stores(cache_folder(None, name, "").parent)
    for place in places:
        if sources_of(place).get(source) == look and _whole(place) is not None:
            return place
    return None


def _made(checkpoint: Checkpoint, name: str, cache: str | os.PathLike[str] | None, source: str) -> Path:
    """The store of a checkpoint's numbers: one that is there, or a new one."""
    identity = identity_of(checkpoint)
    target = cache_folder(cache, name, identity)
    if cache is None:
        target = next((place for place in _stores(target.parent) if _whole(place) == identity), target)
    if not is_whole(target, identity):
        require_tied(checkpoint)
        with alone(target):
            if not is_whole(target, identity):  # another process may have made it meanwhile
                if cache is None:  # so that a conversion that is interrupted, and never gone on with, is found
                    _note(target, {**sources_of(target), source: ""})
                convert(checkpoint, target, name, identity)
    return target


def _stores(base: Path) -> Iterator[Path]:
    """The stores in the cache."""
    with suppress(OSError):
        yield from (place for place in sorted(base.iterdir()) if is_store(place))


def _whole(place: Path) -> str | None:
    """The identity of a store that is whole; None for any other folder."""
    try:
        identity = str(read_manifest(place)["identity"]) if is_store(place) else None
        return identity if identity is not None and is_whole(place, identity) else None
    except CheckpointError:  # damaged, or of another version: not this one
        return None


# -- which folders a store is of --


def sources_of(place: Path) -> dict[str, str]:
    """The folders that a store was found for, and how they looked."""
    try:
        found = read_json(place / SOURCES) if (place / SOURCES).is_file() else {}
    except CheckpointError:  # damaged: the store is then found by its numbers
        return {}
    return {folder: look for folder, look in found.items() if isinstance(look, str)}


def _refresh(target: Path, folder: Path, source: str, look: str) -> None:
    """Note the folder in its store, and copy what stands beside the weights there if it changed.

    The copies are for those who load the store by itself: this load reads the source's own files.
    """
    if (sources_of(target).get(source) == look and not list(outdated_beside(folder, target))) or not _may_write(target):
        return
    with alone(target):
        for name, content in outdated_beside(folder, target):
            if content is not None:
                write_file(target / name, content, error=CheckpointError, full=BudgetError)
            else:
                with suppress(FileNotFoundError), explain_os_errors(target / name, CheckpointError):
                    (target / name).unlink()
        if (known := sources_of(target)).get(source) != look:
            _note(target, {**known, source: look})


def _may_write(target: Path) -> bool:
    """Whether this user keeps a store up; a cache that others share may only be read."""
    return os.access(target, os.W_OK | os.X_OK)


def _note(place: Path, sources: Mapping[str, str]) -> None:
    write_file(place / SOURCES, json.dumps(sources, indent=1), error=CheckpointError, full=BudgetError)


def _forget_outdated(target: Path, source: str) -> None:
    """Take a folder off the stores of the numbers that it had before; remove those that no folder has any more."""
    for place in _stores(target.parent):
        if place == target or source not in sources_of(place):
            continue
        with suppress(CheckpointError, BudgetError), alone(place):  # of somebody else, or a disk that cannot be written
            left = {folder: look for folder, look in sources_of(place).items() if folder != source}
            if any(os.path.isdir(folder) for folder in left):
                _note(place, left)
            elif not is_in_use(place):
                shutil.rmtree(place, ignore_errors=True)


# -- who reads a store --


def hold(place: Path, owner: object) -> None:
    """Keep a store of the cache from being removed as long as its owner lives, in this process or another."""
    if not (place / SOURCES).is_file():  # not of the cache: nobody removes it
        return
    path = place / f"{_HOLD}{os.getpid()}-{secrets.token_hex(4)}"
    with suppress(OSError):  # a cache that may only be read: whoever keeps it up does not know
        file = path.open("w", encoding="utf-8")
        lock(file, wait=False)
        weakref.finalize(owner, _let_go, file, path, os.getpid())


def _let_go(file: IO[str], path: Path, process: int) -> None:
    if os.getpid() == process:  # a forked process shares the lock, and must leave it
        unlock(file)
        with suppress(OSError):
            path.unlink()
    file.close()


def is_in_use(place: Path) -> bool:
    """Whether a model reads a store. What processes that ended have left is cleared away."""
    return sum(_is_held(path) for path in place.glob(f"{_HOLD}*")) > 0  # all are looked at, so that what is left over goes


def _is_held(path: Path) -> bool:
    try:
        with path.open("r+", encoding="utf-8") as file:
            if not lock(file, wait=False):
                return True
            unlock(file)
        path.unlink()
    except OSError:  # it went meanwhile, or it is another user's
        return os.path.lexists(path)
    return False
