"""The small model that the tests of gs.check look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from checkpoints import checkpoint

SHAPE: dict[str, Any] = {"max_position_embeddings": 128, "intermediate_size": 64, "head_dim": 16}


def small_folder(path: Path) -> Path:
    """A random Gemma 2 of two layers, in float32, without a tokenizer."""
    checkpoint("lg", **SHAPE).save_pretrained(path / "model")
    return path / "model"
