"""One model that is at hand, and one that is left out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gemmascope.config import PRESETS, GemmaConfig


@dataclass(frozen=True)
class ModelAtHand:
    """A model on this machine, a row of gs.models().

    Attributes:
        name: Its name where it was found, such as "google/gemma-2-2b" or Ollama's "gemma2:2b".
        family: "Gemma 2" or "Gemma 3".
        size: As Google names it, such as "2B"; of another shape its parameters, such as "2M". "" if it cannot be read.
        weights: The format of its weights: "bfloat16", "int8", or the type of most of a GGUF file, such as "Q4_K".
        where: What keeps it: "package", "folder", "Hugging Face", "LM Studio", "Ollama" or "llama.cpp".
        n_bytes: Bytes of its weights on the disk.
        load: What to pass to gs.load.
        path: Its folder or file.
        problem: Why gs.load would refuse it; "" if its headers are right.
    """

    name: str
    family: str
    size: str
    weights: str
    where: str
    n_bytes: int
    load: str
    path: Path
    problem: str = ""


@dataclass(frozen=True)
class LeftOut:
    """A model of another architecture, such as "llama"."""

    architecture: str


def size_label(config: GemmaConfig) -> str:
    """How people call a model of this shape: "2B", "270M"; of no published shape the number of its parameters."""
    for name, preset in PRESETS.items():
        if (preset.n_layers, preset.d_model, preset.d_mlp) == (config.n_layers, config.d_model, config.d_mlp):
            return name.removeprefix("3-").upper()
    n = config.n_params
    return f"{n / 1e9:.1f}B" if n >= 1e9 else f"{n / 1e6:.0f}M" if n >= 1e6 else f"{n / 1e3:.0f}K"
