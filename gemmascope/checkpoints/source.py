"""Where a model lies: the folder of a source."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gemmascope.arguments import equals_text, shown
from gemmascope.checkpoints.folder import gguf_advice
from gemmascope.checkpoints.hub import fetch, is_hub_id, suggestion
from gemmascope.errors import CheckpointError

NANO = Path(__file__).parent.parent / "nano" / "checkpoint"

_SOURCES = "a folder in the transformers layout, a hub id (owner/name), 'nano', or a transformers Gemma2ForCausalLM"


def resolve_source(source: Any, revision: str | None = None) -> tuple[Path, str]:
    """The folder of a source, fetched if it is a hub id, and the name that its model goes by.

    CheckpointError for a source that is not there, and for a revision of something that has none.
    """
    found, name = _located(source, revision)
    if revision is not None and not (isinstance(source, str) and is_hub_id(source) and found != Path(source).expanduser()):
        raise CheckpointError(f"revision={shown(revision)} was given, and {name!r} is {found}: only a hub id has revisions")
    return found, name


def _located(source: Any, revision: str | None) -> tuple[Path, str]:
    if source is None or equals_text(source, "nano"):
        return NANO, "nano"
    if not isinstance(source, (str, os.PathLike)):
        raise CheckpointError(f"cannot load a {type(source).__name__}; a source is {_SOURCES}")
    path = Path(os.path.expanduser(source))
    if os.path.isdir(path) and source != "":  # Path("") is the current folder; nobody means that
        return in_hub_cache(path), str(source)
    if os.path.isfile(path):
        raise CheckpointError(f"{path} is a file; {_advice(path)}")
    if isinstance(source, str) and is_hub_id(source):
        return fetch(source, revision), source
    raise CheckpointError(
        f"{str(source)!r} is no folder that exists and no hub id.{suggestion(str(source))} A source is {_SOURCES}"
    )


def in_hub_cache(folder: Path) -> Path:
    """The snapshot within, of a folder of the hub's cache (models--owner--name); any other folder as it is.

    The snapshot is the one that refs/main names, or the only one. CheckpointError where there are several.
    """
    snapshots = folder / "snapshots"
    if os.path.lexists(folder / "config.json") or not os.path.isdir(snapshots):
        return folder
    try:
        there = sorted(path for path in snapshots.iterdir() if path.is_dir())
        main = (folder / "refs" / "main").read_text(encoding="utf-8").strip() if (folder / "refs" / "main").is_file() else ""
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} is a folder of the hub's cache that cannot be read: {error}") from error
    named = [path for path in there if path.name == main] or there
    if len(named) == 1:
        return named[0]
    said = f"give one of its snapshots: {', '.join(str(path) for path in there[:4])}" if there else "it holds no snapshot"
    raise CheckpointError(f"{folder} is a folder of the hub's cache; {said}")


def _advice(path: Path) -> str:
    """What to give instead of a file."""
    if path.suffix == ".gguf":
        return gguf_advice(path.parent, path.name)
    if path.suffix == ".npz":
        return "give the folder of a model; a dictionary of features is loaded by gs.load_sae"
    return "give the folder that holds it, with its config.json"
