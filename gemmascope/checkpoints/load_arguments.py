"""What gs.load was asked for: kept with the model, so that the code that repeats a run can say it again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from gemmascope.arguments import equals_text, shown
from gemmascope.errors import CheckpointError
from gemmascope.files.paths import user_path
from gemmascope.legible import legibly


class InMemory(str):
    """Stands for an object that was given, which no code can name again: <GemmaTokenizer in memory>, by its class."""

    __slots__ = ()

    @legibly
    def __repr__(self) -> str:
        return f"<{self!s} in memory>"


def asked_of(
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    weights: str = "auto",
    memory: int | str | None = None,
    cache: str | os.PathLike[str] | None = None,
    tokenizer: Any = None,
    revision: str | None = None,
) -> dict[str, Any]:
    """The arguments of gs.load that differ from its defaults, as plain values: what is given again loads the same model."""
    given = {
        "device": _said(device),
        "dtype": _said(dtype),
        "weights": None if equals_text(weights, "auto") else weights,
        "memory": memory,
        "cache": None if cache is None else os.fspath(user_path(cache, error=CheckpointError, what="a folder")),
        "tokenizer": None if tokenizer is None else _tokenizer(tokenizer),
        "revision": revision,
    }
    return {name: value for name, value in given.items() if value is not None}


def _said(given: Any) -> str | None:
    """A device or a dtype as text; None for "auto". What is neither is refused by whoever reads it."""
    text = str(given) if isinstance(given, (str, torch.device, torch.dtype)) else shown(given)
    return None if text == "auto" else text.removeprefix("torch.")


def _tokenizer(given: Any) -> str:
    if isinstance(given, str):
        return given
    return str(Path(given)) if isinstance(given, os.PathLike) else InMemory(type(given).__name__)
