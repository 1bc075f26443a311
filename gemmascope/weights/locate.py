"""Where a model lies: the folder of a source."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gemmascope.errors import CheckpointError
from gemmascope.weights.hub import fetch, is_hub_id, suggestion

NANO = Path(__file__).parent.parent / "nano" / "checkpoint"

_SOURCES = "a folder in the transformers layout, a hub id (owner/name), 'nano', or a transformers Gemma2ForCausalLM"


def locate(source: Any, revision: str | None = None) -> tuple[Path, str]:
    """The folder of a source, fetched if it is a hub id, and the name that its model goes by.

    CheckpointError for a source that is not there, and for a revision of something that has none.
    """
    found, name = _located(source, revision)
    if revision is not None and not (isinstance(source, str) and is_hub_id(source) and found != Path(source).expanduser()):
        raise CheckpointError(f"revision={revision!r} was given, and {name!r} is {found}: only a hub id has revisions")
    return found, name


def _located(source: Any, revision: str | None) -> tuple[Path, str]:
    if source is None or source == "nano":
        return NANO, "nano"
    if not isinstance(source, (str, os.PathLike)):
        raise CheckpointError(f"cannot load a {type(source).__name__}; a source is {_SOURCES}")
    path = Path(source).expanduser()
    if path.is_dir() and source != "":  # Path("") is the current folder; nobody means that
        return path, str(source)
    if path.is_file():
        raise CheckpointError(f"{path} is a file; give the folder that holds it, with its config.json")
    if isinstance(source, str) and is_hub_id(source):
        return fetch(source, revision), source
    raise CheckpointError(
        f"{str(source)!r} is no folder that exists and no hub id.{suggestion(str(source))} A source is {_SOURCES}"
    )
