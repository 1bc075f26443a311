"""Finding a dictionary's file: inside the package, in a folder or on the hub, by what the user says of it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gemmascope.checkpoints.hub import fetch_file, files_of, is_hub_id
from gemmascope.errors import CheckpointError, DictionaryError
from gemmascope.sae.catalogue import CANONICAL, PARAMS, DictionaryRequest, Entry, Suite
from gemmascope.sae.formats import circuit_tracer, dictionary_learning, saelens
from gemmascope.sae.formats.listing import (
    DICTIONARY_LEARNING,
    GEMMA_SCOPE,
    SAELENS,
    TRANSCODER,
    choose_held,
    held_in,
    unknown_format,
)
from gemmascope.sae.published import CROSS_LAYER, UNREAD, find_published, is_release, published, releases
from gemmascope.sites import did_you_mean

NANO = Path(__file__).parent / "nano"
# The dictionaries inside the package, by the source that load_sae takes.
OWN = {"nano": NANO, "nano-transcoders": Path(__file__).parent / "nano_transcoders"}

_SOURCES = (
    "'nano', a hub id such as 'google/gemma-scope-2b-pt-res', a copy of such a repository, or a folder with params.npz"
)
_MORE_SOURCES = (
    "; or a release of SAELens, such as 'gemma-scope-2b-pt-res-canonical', or a folder that SAELens, dictionary_learning or "
    "circuit-tracer wrote"
)


# Files that say the format of their folder.
_WRITTEN = {saelens.WEIGHTS: SAELENS, saelens.CONFIG: SAELENS, dictionary_learning.WEIGHTS: DICTIONARY_LEARNING}
_PATTERNS = (
    PARAMS,
    *_WRITTEN,
    dictionary_learning.CONFIG,
    circuit_tracer.CONFIG,
    "layer_*.safetensors",
    "W_enc_*.safetensors",
)


@dataclass(frozen=True)
class DictionaryFile:
    """The file of a dictionary, or the folder that its library wrote.

    name: its repository or folder, as the user gave it. suite, entry: from its path, where it has them. format: how to read
    it. layer: the layer that the path of a transcoder names.
    """

    path: Path
    name: str
    suite: Suite | None = None
    entry: Entry | None = None
    format: str = GEMMA_SCOPE
    layer: int | None = None


@dataclass(frozen=True)
class _Listing:
    """The files of a folder or repository. paths: relative to it. get: the path on this machine, fetched if need be."""

    name: str
    paths: Sequence[str]
    get: Callable[[str], Path]
    suite: Suite | None


def find_dictionary(
    source: object, request: DictionaryRequest, revision: str | None = None, sae_id: str | None = None
) -> DictionaryFile:
    """The file of a source that a request means, fetched if it is on the hub. DictionaryError that lists the choices.

    Args:
        source: What the user named.
        request: The layer, width and L0 of a params.npz; the layer alone of other formats.
        revision: Of a hub id.
        sae_id: The dictionary's path in the source, or SAELens' name of it.
    """
    if isinstance(source, str) and source in OWN:
        if revision is not None:
            raise DictionaryError(f"revision= is of a hub id, and {source!r} has none: leave it out")
        return _choose(_of_folder(OWN[source], source), request, sae_id)
    if not isinstance(source, (str, os.PathLike)):
        raise DictionaryError(f"cannot load a {type(source).__name__}; a source is {_SOURCES}")
    path = Path(os.path.expanduser(source))
    if isinstance(source, str) and not os.path.exists(path) and (is_release(source) or source in UNREAD):
        return _of_release(source, request, revision, sae_id)
    if revision is not None and (os.path.exists(path) or not is_hub_id(str(source))):
        raise DictionaryError(
            f"revision={revision!r} was given, and only a hub id has revisions; the source is {str(source)!r}"
        )
    if os.path.isfile(path):
        if sae_id is not None:
            raise DictionaryError(f"{path} is one file, and sae_id={sae_id!r} was given: leave it out, or give the folder")
        return _single_file(path, str(source), request)
    if os.path.isdir(path) and source != "":
        inner = path / sae_id if sae_id is not None and os.path.exists(path / sae_id) else path
        if os.path.isfile(inner):
            return _single_file(inner, str(source), request)
        if (inner / PARAMS).is_file():
            return _single_file(inner / PARAMS, str(source), request)
        return _choose(_of_folder(inner, str(source)), request, None if inner != path else sae_id)
    if isinstance(source, str) and is_hub_id(source):
        return _choose(_on_hub(source, revision), request, sae_id)
    near = did_you_mean(source, releases()) if isinstance(source, str) and source and os.sep not in source else ""
    raise DictionaryError(
        f"{str(source)!r} is no folder that exists and no hub id.{near} A source is {_SOURCES}{_MORE_SOURCES}"
    )


def _choose(listing: _Listing, request: DictionaryRequest, sae_id: str | None) -> DictionaryFile:
    """The dictionary of a listing that is meant."""
    # Entries are read from the whole path, because a folder may itself be .../layer_20 or .../layer_20/width_16k.
    entries = {entry: path for path in listing.paths if (entry := Entry.of(path))}
    if entries:
        entry = _requested(request, sae_id, listing.name).choose(entries, listing.name)
        return DictionaryFile(listing.get(entries[entry]), listing.name, listing.suite, entry)
    held = held_in(listing.paths)
    if not held:
        raise unknown_format(listing.name, listing.paths)
    for name in ("width", "l0"):
        if getattr(request, name) is not None:
            raise DictionaryError(
                f"{listing.name} does not tell its dictionaries apart by {name}: leave it out, and give sae_id"
            )
    one = choose_held(held, listing.name, sae_id, request.layer)
    path = [listing.get(file) for file in one.files][-1]
    is_file = one.format == TRANSCODER
    return DictionaryFile(path if is_file else path.parent, listing.name, format=one.format, layer=one.layer)


def _requested(request: DictionaryRequest, sae_id: str | None, name: str) -> DictionaryRequest:
    """The request with what an id says, such as "layer_20/width_16k/average_l0_71"."""
    if sae_id is None:
        return request
    entry = Entry.of(f"{sae_id.rstrip('/')}/{PARAMS}")
    if entry is None:
        raise DictionaryError(
            f"{name} has no {sae_id!r}: its ids have the form 'layer_20/width_16k/average_l0_71', or '.../canonical'"
        )
    for part in ("layer", "width", "l0"):
        if getattr(request, part) not in (None, getattr(entry, part)):
            raise DictionaryError(f"sae_id={sae_id!r} says {part} {getattr(entry, part)!r}, and {part}= another: give one")
    return replace(request, layer=entry.layer, width=entry.width, l0=entry.l0)


def _of_release(release: str, request: DictionaryRequest, revision: str | None, sae_id: str | None) -> DictionaryFile:
    """A dictionary by the names that SAELens gives. The list tells an id that is not there before anything is fetched."""
    rows = [row for row in published() if row.release == release]
    if sae_id is not None or not rows:
        row = find_published(release, sae_id or "")
        if row.format == CROSS_LAYER:
            raise DictionaryError(f"{release!r} is a cross-layer transcoder: gs.load_cross_layer({row.repo!r}) reads it")
        return _choose(_on_hub(row.repo, revision), request, row.path)
    if rows[0].format == CROSS_LAYER:
        raise DictionaryError(f"{release!r} is a cross-layer transcoder: gs.load_cross_layer({rows[0].repo!r}) reads it")
    if release.endswith(f"-{CANONICAL}") and request.l0 is None:
        request = replace(request, l0=CANONICAL)
    if Suite.of(release) is None:
        ids = [row for row in rows if request.layer in (None, row.layer)]
        if len(ids) != 1:
            given = "" if request.layer is None else f" of layer {request.layer!r}"
            few = ", ".join(repr(row.sae_id) for row in (ids or rows)[:6])
            raise DictionaryError(f"{release!r} has {len(ids)} dictionaries{given}: say which, by sae_id, such as {few}")
        return _choose(_on_hub(ids[0].repo, revision), replace(request, layer=None), ids[0].path)
    return _choose(_on_hub(rows[0].repo, revision), request, None)


def _on_hub(repo: str, revision: str | None) -> _Listing:
    try:
        paths = files_of(repo, revision)
    except CheckpointError as error:
        known = sorted({row.repo for row in published()})
        near = did_you_mean(repo, known) if repo not in known else ""
        raise CheckpointError(f"{error}{near.replace('Did you mean', 'Among dictionaries, did you mean')}") from error
    return _Listing(repo, paths, lambda path: fetch_file(repo, path, revision), Suite.of(repo))


def _of_folder(folder: Path, name: str) -> _Listing:
    absolute = folder.resolve()
    found = sorted({path for pattern in _PATTERNS for path in folder.rglob(pattern) if path.is_file()})
    if any(path.name == PARAMS for path in found):
        paths = [(absolute / path.relative_to(folder)).as_posix() for path in found]
    else:
        paths = [path.relative_to(folder).as_posix() for path in found]
    return _Listing(name, paths, lambda path: folder / Path(path), _suite(folder))


def _single_file(path: Path, name: str, request: DictionaryRequest) -> DictionaryFile:
    """A file by itself. DictionaryError if its path says that it is another dictionary than the request means."""
    layer = circuit_tracer.layer_of(path.name)
    if layer is not None:
        return DictionaryFile(path, name, format=TRANSCODER, layer=layer)
    if path.name in _WRITTEN:
        return DictionaryFile(path.parent, name, format=_WRITTEN[path.name])
    entry = Entry.of(path.resolve().as_posix())
    if entry is not None:
        request.choose([entry], name)
    return DictionaryFile(path, name, _suite(path), entry)


def _suite(path: Path) -> Suite | None:
    """The suite of the nearest folder that is named like a repository, in a copy or in the hub's cache."""
    names = (re.sub(r"^models--", "", part) for part in reversed(path.resolve().parts))
    return next((suite for name in names if (suite := Suite.of(name))), None)
