"""Where a dictionary lies: a params.npz of a source, and what its folders say of it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gemmascope.checkpoints.hub import fetch_file, files_of, is_hub_id
from gemmascope.errors import DictionaryError
from gemmascope.sae.catalogue import PARAMS, Entry, Suite, choose

NANO = Path(__file__).parent / "nano"

_SOURCES = (
    "'nano', a hub id such as 'google/gemma-scope-2b-pt-res', a copy of such a repository, or a folder with params.npz"
)


@dataclass(frozen=True)
class Found:
    """A file, and what its path says: None where it says nothing. name: of the repository or folder that was asked for."""

    path: Path
    name: str
    suite: Suite | None
    entry: Entry | None


@dataclass(frozen=True)
class DictionaryRequest:
    """Which dictionary of a repository is meant. None: whichever there is, if there is one."""

    layer: int | str | None = None
    width: int | str | None = None
    l0: int | str | None = None


def locate(source: object, asked: DictionaryRequest, revision: str | None = None) -> Found:
    """The file that a source and a choice mean, fetched if it is on the hub. DictionaryError with what there is."""
    if isinstance(source, str) and source == "nano":
        if revision is not None:
            raise DictionaryError("revision= is of a hub id, and 'nano' has none: leave it out")
        return _in_folder(NANO, "nano", asked)
    if not isinstance(source, (str, os.PathLike)):
        raise DictionaryError(f"cannot load a {type(source).__name__}; a source is {_SOURCES}")
    path = Path(os.path.expanduser(source))
    if revision is not None and (os.path.exists(path) or not is_hub_id(str(source))):
        raise DictionaryError(
            f"revision={revision!r} was given, and only a hub id has revisions; the source is {str(source)!r}"
        )
    if os.path.isfile(path):
        return _alone(path, str(source), asked)
    if os.path.isdir(path) and source != "":
        return (
            _alone(path / PARAMS, str(source), asked) if (path / PARAMS).is_file() else _in_folder(path, str(source), asked)
        )
    if isinstance(source, str) and is_hub_id(source):
        return _on_hub(source, asked, revision)
    raise DictionaryError(f"{str(source)!r} is no folder that exists and no hub id. A source is {_SOURCES}")


def _on_hub(repo: str, asked: DictionaryRequest, revision: str | None) -> Found:
    entries = [entry for path in files_of(repo, revision) if (entry := Entry.of(path))]
    entry = choose(entries, repo, asked.layer, asked.width, asked.l0)
    return Found(fetch_file(repo, entry.path, revision), repo, Suite.of(repo), entry)


def _in_folder(folder: Path, name: str, asked: DictionaryRequest) -> Found:
    paths = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob(PARAMS)))
    # The folders around one that was given count too: .../layer_20 given, or .../layer_20/width_16k.
    entries = {entry: folder / path for path in paths if (entry := Entry.of((folder.resolve() / path).as_posix()))}
    entry = choose(entries, name, asked.layer, asked.width, asked.l0)
    return Found(entries[entry], name, _suite(folder), entry)


def _alone(path: Path, name: str, asked: DictionaryRequest) -> Found:
    """A file by itself: what its path says must be what was asked for."""
    entry = Entry.of(path.resolve().as_posix())
    if entry is not None:
        choose([entry], name, asked.layer, asked.width, asked.l0)
    return Found(path, name, _suite(path), entry)


def _suite(path: Path) -> Suite | None:
    """What the folders of a path say of the suite: a copy's own name, or the hub cache's."""
    return next((suite for part in _names(path) if (suite := Suite.of(part))), None)


def _names(path: Path) -> Iterator[str]:
    for part in reversed(path.resolve().parts):
        yield re.sub(r"^models--", "", part)
