"""The folder of a model's source: nano, a folder, a GGUF file, or a repository on the hub."""

from __future__ import annotations

import os
from pathlib import Path

from gemmascope.arguments import equals_text, short_repr
from gemmascope.checkpoints.at_hand.models import at_hand
from gemmascope.checkpoints.at_hand.places import NANO as NANO
from gemmascope.checkpoints.gguf import is_gguf
from gemmascope.checkpoints.hub import fetch, is_hub_id, suggestion
from gemmascope.config_json import relative_of
from gemmascope.errors import CheckpointError

_SOURCES = (
    "a folder in the transformers layout, a GGUF file, a hub id (owner/name), 'nano', or a transformers Gemma2ForCausalLM "
    "or Gemma3ForCausalLM"
)


def resolve_source(source: object, revision: str | None = None) -> tuple[Path, str]:
    """The folder of a source, or its GGUF file, downloaded if the source is a hub id, and the model's name.

    Raises CheckpointError if the source does not exist, or if it has no revisions and one is given.
    """
    folder, name = _resolve(source, revision)
    if revision is not None and not (isinstance(source, str) and is_hub_id(source) and folder != Path(source).expanduser()):
        raise CheckpointError(
            f"revision={short_repr(revision)} was given, and {name!r} is {folder}: only a hub id has revisions"
        )
    return folder, name


def _resolve(source: object, revision: str | None) -> tuple[Path, str]:
    if source is None or equals_text(source, "nano"):
        return NANO, "nano"
    if not isinstance(source, (str, os.PathLike)):
        config = getattr(source, "config", None)
        relative = relative_of(getattr(config, "model_type", None), [kind.__name__ for kind in type(source).__mro__])
        kind = f", which is {relative}" if relative else ""
        raise CheckpointError(f"cannot load a {type(source).__name__}{kind}; a source is {_SOURCES}")
    path = Path(os.path.expanduser(source))
    if os.path.isdir(path) and source != "":  # Path("") is the current folder; nobody means that
        return hub_snapshot(path), str(source)
    if os.path.isfile(path) and is_gguf(path):
        return path, path.stem
    if os.path.isfile(path):
        raise CheckpointError(f"{path} is a file; {_advice(path)}")
    if path.suffix.lower() == ".gguf":  # before the hub: a file in a folder reads like owner/name
        raise CheckpointError(f"there is no file {str(source)!r}. {_beside(path)}.{at_hand(str(source))}")
    if isinstance(source, str) and is_hub_id(source):
        return _fetch(source, revision), source
    text = str(source)
    raise CheckpointError(
        f"{text!r} is no folder that exists and no hub id.{suggestion(text)} A source is {_SOURCES}"
        + (f".{here}" if (here := at_hand(text)) else "")
    )


def _beside(path: Path) -> str:
    """What an error about a GGUF file that does not exist says of its folder."""
    if not path.parent.is_dir():
        return f"Its folder does not exist either: {str(path.parent)!r}"
    names = sorted(each.name for each in path.parent.glob("*.gguf"))
    if not names:
        return "Its folder holds no GGUF file"
    return f"GGUF files in its folder: {', '.join(names[:5])}{' and more' if names[5:] else ''}"


def _fetch(repo: str, revision: str | None) -> Path:
    try:
        return fetch(repo, revision)
    except CheckpointError as error:
        if isinstance(error.__cause__, OSError) and (here := at_hand(repo)):  # the hub does not give it
            raise CheckpointError(f"{error}.{here}") from error.__cause__
        raise


def hub_snapshot(folder: Path) -> Path:
    """The snapshot inside a folder of the hub's cache (models--owner--name); any other folder is returned as it is.

    The snapshot is the one that refs/main names, or else the only one. Raises CheckpointError if there are several.
    """
    snapshots = folder / "snapshots"
    if os.path.lexists(folder / "config.json") or not os.path.isdir(snapshots):
        return folder
    try:
        paths = sorted(path for path in snapshots.iterdir() if path.is_dir())
        main = (folder / "refs" / "main").read_text(encoding="utf-8").strip() if (folder / "refs" / "main").is_file() else ""
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} is a folder of the hub's cache that cannot be read: {error}") from error
    named = [path for path in paths if path.name == main] or paths
    if len(named) == 1:
        return named[0]
    advice = f"give one of its snapshots: {', '.join(str(path) for path in paths[:4])}" if paths else "it holds no snapshot"
    raise CheckpointError(f"{folder} is a folder of the hub's cache; {advice}")


def _advice(path: Path) -> str:
    """What to do about a file that is no source."""
    if path.suffix == ".gguf":
        return "its name ends in .gguf, and it does not begin as GGUF files do: fetch it again"
    if path.suffix == ".npz":
        return "give the folder of a model; a dictionary of features is loaded by gs.load_sae"
    return "give the folder that holds it, with its config.json"
