"""The checkpoint of a training: one safetensors file, replaced whole, from which a training goes on to the same numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gemmascope.errors import DictionaryError, GemmascopeError
from gemmascope.files.json_reader import is_regular_file, parse_json
from gemmascope.files.writing import write_file

FILE = "training.safetensors"
FORMAT = "gemmascope.training.1"


@dataclass(frozen=True)
class Checkpoint:
    """A training between two steps. tensors: all its numbers, by name. about: its recipe, rows and step."""

    tensors: dict[str, Tensor]
    about: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with "prefix.", without it."""
        return {n.removeprefix(f"{prefix}."): t for n, t in self.tensors.items() if n.startswith(f"{prefix}.")}

    def write(self, folder: Path) -> None:
        """Replace the file. A kill leaves the old one or the new one."""
        tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in self.tensors.items()}
        about = {"format": FORMAT, "about": json.dumps(self.about)}
        write_file(folder / FILE, save(tensors, about), error=DictionaryError)


def read_checkpoint(folder: Path) -> Checkpoint | None:
    """The checkpoint in a folder; None if there is none. DictionaryError for a file that is damaged, or something else."""
    path = folder / FILE
    if not is_regular_file(path, error=DictionaryError):
        return None
    advice = "Remove it to begin anew, or give another folder"
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise DictionaryError(f"{path} is no checkpoint of this version of gs.train_sae. {advice}")
            about = parse_json(metadata["about"].encode(), path, error=DictionaryError)
            # Memory of their own: the file is replaced while they are in use.
            tensors = {name: torch.clone(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except GemmascopeError:
        raise
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise DictionaryError(f"{path} is damaged: {error}. {advice}") from error
    return Checkpoint(tensors, about)
