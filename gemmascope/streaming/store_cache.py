"""The cache of int8 stores.

A store is found by the numbers it was converted from, so a checkpoint that was touched, moved or copied is not quantised
again. Each store lists the folders that it serves and the state of their files, so that the next load need not read them. A
store that no folder uses any more is removed, unless a model still reads it.
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
from gemmascope.streaming.convert import convert, exclusive, identity_of, outdated_companions
from gemmascope.streaming.store import Store, is_store, is_whole, read_manifest

# A file in each store of the cache: the folders that have its numbers, and the signatures of their files.
SOURCES = ".sources.json"

# The prefix of files that mark a store as in use by a process. Each is locked for as long as it is.
_IN_USE = ".in-use-"

# Names that Windows reserves for devices, whatever follows after a dot.
_DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(10))}


def cache_folder(cache: str | os.PathLike[str] | None, name: str, identity: str) -> Path:
    """The folder of a checkpoint's int8 weights, in GEMMASCOPE_CACHE or ~/.cache/gemmascope unless a folder is given."""
    if cache is not None:
        return user_path(cache, error=CheckpointError, what="a folder")
    base = os.environ.get("GEMMASCOPE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "gemmascope"
    return Path(base).expanduser() / "int8" / f"{_folder_name(Path(name).name)}-{identity[:16]}"


def _folder_name(name: str) -> str:
    """A folder name that every file system accepts, short enough for a suffix."""
    plain = "".join(c if c.isalnum() or c in "-._" else "-" for c in name)[:80] or "model"
    return f"_{plain}" if plain.split(".")[0].upper() in _DEVICES else plain


def cached_store(checkpoint: Checkpoint, name: str, cache: str | os.PathLike[str] | None) -> Store:
    """A checkpoint's store in the cache, converted now if there is none. Configuration and tokenizer are the source's.

    Raises:
        CheckpointError: The checkpoint cannot be quantised or changed meanwhile, or the given folder holds other files.
        BudgetError: The disk has too little room.
    """
    source, signature = os.path.realpath(checkpoint.folder), files_signature(checkpoint)
    target = _find(cache, name, source, signature) or _make(checkpoint, name, cache, source)
    if files_signature(checkpoint) != signature:
        raise CheckpointError(f"{checkpoint.folder} changed while it was read: load it again")
    _refresh(target, checkpoint, source, signature)
    if cache is None:
        _forget_outdated(target, source)
    return Store(target, None if checkpoint.gguf is not None else checkpoint.folder)


def files_signature(checkpoint: Checkpoint) -> str:
    """A digest of the names, sizes, times and inodes of a checkpoint's weight files: it changes if they may have changed."""
    digest = hashlib.sha256()
    for path in sorted({stored.shard for stored in checkpoint.stored.values()}):
        status = path.stat()
        digest.update(repr((path.name, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)).encode())
    return digest.hexdigest()


def _find(cache: str | os.PathLike[str] | None, name: str, source: str, signature: str) -> Path | None:
    """The store that lists this folder with the current signature of its files."""
    stores = [cache_folder(cache, name, "")] if cache is not None else _stores(cache_folder(None, name, "").parent)
    for store in stores:
        if sources_of(store).get(source) == signature and _identity(store) is not None:
            return store
    return None


def _make(checkpoint: Checkpoint, name: str, cache: str | os.PathLike[str] | None, source: str) -> Path:
    """The store of a checkpoint's numbers: an existing one, or a new one."""
    identity = identity_of(checkpoint)
    target = cache_folder(cache, name, identity)
    if cache is None:
        target = next((store for store in _stores(target.parent) if _identity(store) == identity), target)
    if not is_whole(target, identity):
        require_tied(checkpoint)
        with exclusive(target):
            if not is_whole(target, identity):  # another process may have converted it meanwhile
                if cache is None:  # so that an interrupted conversion can be found and removed
                    _write_sources(target, {**sources_of(target), source: ""})
                convert(checkpoint, target, name, identity)
    return target


def _stores(base: Path) -> Iterator[Path]:
    """The stores in the cache."""
    with suppress(OSError):
        yield from (folder for folder in sorted(base.iterdir()) if is_store(folder))


def _identity(store: Path) -> str | None:
    """The identity of a complete store; None for any other folder."""
    try:
        identity = read_manifest(store)["identity"] if is_store(store) else None
        return identity if identity is not None and is_whole(store, identity) else None
    except CheckpointError:  # damaged, or of another version
        return None


# -- the folders that a store serves --


def sources_of(store: Path) -> dict[str, str]:
    """The folders that a store serves, and the signatures of their files."""
    try:
        content = read_json(store / SOURCES) if (store / SOURCES).is_file() else {}
    except CheckpointError:  # damaged: the store is then found by its numbers
        return {}
    return {folder: signature for folder, signature in content.items() if isinstance(signature, str)}


def _refresh(target: Path, checkpoint: Checkpoint, source: str, signature: str) -> None:
    """List the folder in its store, and copy its configuration and tokenizer there if they changed.

    The copies are for loading the store by itself: a load of the source reads the source's own files.
    """
    is_listed = sources_of(target).get(source) == signature
    # A GGUF file has everything in itself, so its signature says that nothing changed.
    if is_listed and (checkpoint.gguf is not None or not list(outdated_companions(checkpoint, target))):
        return
    if not _may_write(target):
        return
    with exclusive(target):
        for name, content in outdated_companions(checkpoint, target):
            if content is not None:
                write_file(target / name, content, error=CheckpointError, full=BudgetError)
            else:
                with suppress(FileNotFoundError), explain_os_errors(target / name, CheckpointError):
                    (target / name).unlink()
        if (known := sources_of(target)).get(source) != signature:
            _write_sources(target, {**known, source: signature})


def _may_write(target: Path) -> bool:
    """Whether this user may write to a store; a shared cache may be read-only."""
    return os.access(target, os.W_OK | os.X_OK)


def _write_sources(store: Path, sources: Mapping[str, str]) -> None:
    write_file(store / SOURCES, json.dumps(sources, indent=1), error=CheckpointError, full=BudgetError)


def _forget_outdated(target: Path, source: str) -> None:
    """Take a folder off the stores of its previous numbers, and remove the stores that no folder uses any more."""
    for store in _stores(target.parent):
        if store == target or source not in sources_of(store):
            continue
        with suppress(CheckpointError, BudgetError), exclusive(store):  # it may be another user's, or on a read-only disk
            others = {folder: signature for folder, signature in sources_of(store).items() if folder != source}
            if any(os.path.exists(folder) for folder in others):
                _write_sources(store, others)
            elif not is_in_use(store):
                shutil.rmtree(store, ignore_errors=True)


# -- the models that read a store --


def mark_in_use(store: Path, owner: object) -> None:
    """Keep any process from removing a store of the cache for as long as its owner lives."""
    if not (store / SOURCES).is_file():  # outside the cache nothing is removed
        return
    path = store / f"{_IN_USE}{os.getpid()}-{secrets.token_hex(4)}"
    with suppress(OSError):  # a read-only cache cannot be marked
        file = path.open("w", encoding="utf-8")
        lock(file, wait=False)
        weakref.finalize(owner, _unmark, file, path, os.getpid())


def _unmark(file: IO[str], path: Path, process: int) -> None:
    if os.getpid() == process:  # a forked process shares the lock and must not release it
        unlock(file)
        with suppress(OSError):
            path.unlink()
    file.close()


def is_in_use(store: Path) -> bool:
    """Whether a model reads a store. Removes the marks of processes that have ended."""
    return sum(_is_held(path) for path in store.glob(f"{_IN_USE}*")) > 0  # looks at every mark, to remove the old ones


def _is_held(path: Path) -> bool:
    try:
        with path.open("r+", encoding="utf-8") as file:
            if not lock(file, wait=False):
                return True
            unlock(file)
        path.unlink()
    except OSError:  # it was removed meanwhile, or is another user's
        return os.path.lexists(path)
    return False
