"""Finding a dictionary's params.npz: inside the package, in a folder or on the hub."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from gemmascope.checkpoints.hub import fetch_file, files_of, is_hub_id
from gemmascope.errors import DictionaryError
from gemmascope.sae.catalogue import PARAMS, DictionaryRequest, Entry, Suite

NANO = Path(__file__).parent / "nano"

_SOURCES = (
    "'nano', a hub id such as 'google/gemma-scope-2b-pt-res', a copy of such a repository, or a folder with params.npz"
)


@dataclass(frozen=True)
class DictionaryFile:
    """A params.npz. name: its repository or folder, as the user gave it. suite, entry: from its path, where it has them."""

    path: Path
    name: str
    suite: Suite | None
    entry: Entry | None


def find_dictionary(source: object, request: DictionaryRequest, revision: str | None = None) -> DictionaryFile:
    """The file of a source that a request means, fetched if it is on the hub. DictionaryError that lists the choices."""
    if isinstance(source, str) and source == "nano":
        if revision is not None:
            raise DictionaryError("revision= is of a hub id, and 'nano' has none: leave it out")
        return _in_folder(NANO, "nano", request)
    if not isinstance(source, (str, os.PathLike)):
        raise DictionaryError(f"cannot load a {type(source).__name__}; a source is {_SOURCES}")
    path = Path(os.path.expanduser(source))
    if revision is not None and (os.path.exists(path) or not is_hub_id(str(source))):
        raise DictionaryError(
            f"revision={revision!r} was given, and only a hub id has revisions; the source is {str(source)!r}"
        )
    if os.path.isfile(path):
        return _single_file(path, str(source), request)
    if os.path.isdir(path) and source != "":
        if (path / PARAMS).is_file():
            return _single_file(path / PARAMS, str(source), request)
        return _in_folder(path, str(source), request)
    if isinstance(source, str) and is_hub_id(source):
        return _on_hub(source, request, revision)
    raise DictionaryError(f"{str(source)!r} is no folder that exists and no hub id. A source is {_SOURCES}")


def _on_hub(repo: str, request: DictionaryRequest, revision: str | None) -> DictionaryFile:
    entry = request.choose([entry for path in files_of(repo, revision) if (entry := Entry.of(path))], repo)
    return DictionaryFile(fetch_file(repo, entry.path, revision), repo, Suite.of(repo), entry)


def _in_folder(folder: Path, name: str, request: DictionaryRequest) -> DictionaryFile:
    paths = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob(PARAMS)))
    # Entries are read from the whole path, because the folder may itself be .../layer_20 or .../layer_20/width_16k.
    files = {entry: folder / path for path in paths if (entry := Entry.of((folder.resolve() / path).as_posix()))}
    entry = request.choose(files, name)
    return DictionaryFile(files[entry], name, _suite(folder), entry)


def _single_file(path: Path, name: str, request: DictionaryRequest) -> DictionaryFile:
    """A file by itself. DictionaryError if its path says that it is another dictionary than the request means."""
    entry = Entry.of(path.resolve().as_posix())
    if entry is not None:
        request.choose([entry], name)
    return DictionaryFile(path, name, _suite(path), entry)


def _suite(path: Path) -> Suite | None:
    """The suite of the nearest folder that is named like a repository, in a copy or in the hub's cache."""
    names = (re.sub(r"^models--", "", part) for part in reversed(path.resolve().parts))
    return next((suite for name in names if (suite := Suite.of(name))), None)
