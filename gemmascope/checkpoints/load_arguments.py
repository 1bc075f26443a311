"""The arguments that a model was loaded with, kept so that the code that repeats a run can name them again."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from gemmascope.arguments import equals_text, short_repr
from gemmascope.errors import CheckpointError
from gemmascope.files.paths import user_path
from gemmascope.legible import prints_legibly


class InMemory(str):
    """Stands for an object that no code can name, by its class: <GemmaTokenizer in memory>."""

    __slots__ = ()

    @prints_legibly
    def __repr__(self) -> str:
        return f"<{self!s} in memory>"


def load_arguments(**arguments: object) -> dict[str, object]:
    """The arguments of gs.load that differ from its defaults ("auto" and None), as plain values that load the same model."""
    plain = {name: _plain(name, value) for name, value in arguments.items() if value is not None}
    return {name: value for name, value in plain.items() if not equals_text(value, "auto")}


def _plain(name: str, value: object) -> object:
    if name == "cache" and isinstance(value, (str, os.PathLike)):
        return os.fspath(user_path(value, error=CheckpointError, what="a folder"))
    if name == "tokenizer" and not isinstance(value, str):
        return str(Path(value)) if isinstance(value, os.PathLike) else InMemory(type(value).__name__)
    if name in ("device", "dtype"):
        text = str(value) if isinstance(value, (str, torch.device, torch.dtype)) else short_repr(value)  # refused later
        return text.removeprefix("torch.")
    return value
