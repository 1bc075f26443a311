"""gs.models: which models are on this machine already; and naming them in an error about one that is not."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from gemmascope.checkpoints.at_hand.places import (
    NANO,
    Machine,
    hub_cache,
    llama_cpp_folders,
    lm_studio_folders,
    ollama_folders,
)
from gemmascope.checkpoints.at_hand.search import Search
from gemmascope.checkpoints.at_hand.table import ModelTable
from gemmascope.errors import CheckpointError
from gemmascope.files.paths import user_path

# Levels below the current folder, and below one that is given or that a program keeps.
_HERE, _GIVEN = 2, 4
_NAMED = 4


def models(folder: str | os.PathLike[str] | None = None) -> ModelTable:
    """List the models at hand: those of Gemma 2 and 3 that are on this machine, wherever a program put them.

    Looked at are nano; checkpoints and GGUF files in the current folder and two levels below; the Hugging Face hub's cache;
    LM Studio's folders of models; Ollama's models, by its manifests; and llama.cpp's cache. The variables that move these
    folders are honoured: HF_HOME, HF_HUB_CACHE, OLLAMA_MODELS, LLAMA_CACHE, XDG_CACHE_HOME, LOCALAPPDATA. Only headers are
    read: what the table lists has all its tensors in the right shapes, and their values are not looked at.

    Args:
        folder: A folder to look into as well, four levels deep. None: no other.

    Returns:
        A table: one row for each model that gs.load takes, with what to pass to it. `broken` has those that it would
        refuse, each with the reason; other architectures are counted in `left_out`.

    Raises:
        CheckpointError: The folder is not there.

    Examples:
        >>> gs.models()[0].load
        'nano'
    """
    search = Search()
    search.folder_of_model(NANO, "nano", "package", "nano")
    if folder is not None:
        root = user_path(folder, error=CheckpointError, what="a folder")
        if not os.path.isdir(root):
            raise CheckpointError(f"{root} is no folder: give one to look for models in")
        search.below(root, "folder", _GIVEN)
    machine = Machine.this()
    search.hub_cache(hub_cache())
    for path in lm_studio_folders(machine):
        search.below(path, "LM Studio", _GIVEN)
    for path in ollama_folders(machine):
        search.ollama(path)
    for path in llama_cpp_folders(machine):
        search.below(path, "llama.cpp", _GIVEN)
    search.below(Path.cwd(), "folder", _HERE)
    order = ["package", "folder"]
    found = sorted(search.found, key=lambda row: order.index(row.where) if row.where in order else len(order))
    return ModelTable(
        tuple(row for row in found if not row.problem),
        tuple(row for row in found if row.problem),
        tuple(search.left_out),
        tuple(search.notes),
    )


def at_hand(name: str) -> str:
    """A sentence for an error about a model of this name that is not there, with a space in front: what is at hand instead.

    Models with a similar name come first. Empty if nothing but nano is at hand.
    """
    try:
        rows = [row for row in models() if row.load not in ("nano", name)]
    except OSError:  # the current folder was removed, say; the error about the model matters more
        return ""
    if not rows:
        return ""
    plain = _plain(name)

    def nearness(other: str) -> float:
        return (plain in other or other in plain) + difflib.SequenceMatcher(None, plain, other).ratio()

    # What resembles the name comes first.
    rows.sort(key=lambda row: -nearness(_plain(row.name)))
    named = ", ".join(repr(row.load) if row.load == row.name else f"{row.load!r} ({row.name})" for row in rows[:_NAMED])
    more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    return f" At hand {'is' if len(rows) == 1 else 'are'} {named}{more}; gs.models() lists what can be loaded"


def _plain(name: str) -> str:
    """The letters and digits of the last part of a name."""
    return re.sub(r"[^a-z0-9]", "", re.split(r"[/\\]", name.rstrip("/\\"))[-1].lower())
