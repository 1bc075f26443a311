"""What is planned for: a source's shape and number formats, found without reading a weight and without a network."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gemmascope.arguments import equals_text
from gemmascope.checkpoints.device import asked_dtype, choose_dtype, not_offered
from gemmascope.checkpoints.folder import Checkpoint, read_config
from gemmascope.checkpoints.from_transformers import is_gemma
from gemmascope.checkpoints.hub import KNOWN, suggestion
from gemmascope.checkpoints.source import NANO
from gemmascope.checkpoints.tensor_names import EMBEDDING
from gemmascope.config import PRESETS, GemmaConfig
from gemmascope.errors import CheckpointError, DeviceError
from gemmascope.model.model import Model
from gemmascope.streaming.packed import NORMS, TensorSlice
from gemmascope.streaming.store import Store, is_store

_PLAIN = {"bf16": torch.bfloat16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Source:
    """A model that may be loaded. stored: the dtype of its weights as they lie there, or of what is not int8 of them.

    computed: the dtype that gs.load computes in unless another is asked for.
    """

    name: str
    config: GemmaConfig
    stored: torch.dtype
    computed: torch.dtype
    int8: bool = False
    folder: Path | None = None


@dataclass(frozen=True)
class Formats:
    """Number formats: of the weights where they lie, of the others if they are int8, and what is computed in."""

    int8: bool
    stored: torch.dtype
    dtype: torch.dtype

    @property
    def weights(self) -> str:
        return "int8" if self.int8 else str(self.stored).removeprefix("torch.")


def find_source(given: Any) -> Source:
    """The source that is named. CheckpointError for one that is not known, with those that are."""
    if isinstance(given, Model):
        return Source(given.name, given.config, _stored(given), given.dtype, _in_int8(given))
    if is_gemma(given):
        return Source(type(given).__name__, GemmaConfig.from_dict(given.config.to_dict()), given.dtype, given.dtype)
    if given is None or equals_text(given, "nano"):
        return _of_folder(NANO, "nano")
    if not isinstance(given, (str, os.PathLike)):
        raise CheckpointError(f"cannot plan for a {type(given).__name__}; {_known()}")
    path = Path(given).expanduser()
    if path.is_dir() and given != "":
        return _of_folder(path, str(given))
    if preset := re.fullmatch(r"(?:(?:google/)?gemma-2-)?(2b|9b|27b)(?:-it)?", str(given).lower()):
        return Source(str(given), PRESETS[preset[1]], torch.bfloat16, torch.bfloat16)
    raise CheckpointError(
        f"{str(given)!r} is no folder that exists and no model that is known.{suggestion(str(given))} {_known()}"
    )


def find_formats(source: Source, weights: Any, dtype: str | torch.dtype) -> Formats:
    """The formats that were asked for, or the source's. DeviceError for those that are not offered."""
    asked = asked_dtype(dtype)
    if equals_text(weights, "auto"):
        return Formats(source.int8, source.stored, asked or source.computed)
    if equals_text(weights, "int8"):
        return Formats(True, source.stored, asked or source.computed)
    if not isinstance(weights, str) or weights not in _PLAIN:
        raise not_offered(weights, f"'int8', {' or '.join(map(repr, _PLAIN))}")
    if source.int8:
        raise DeviceError(
            f"{source.name!r} holds int8 weights: give 'auto' or 'int8', or plan for the checkpoint they came from"
        )
    return Formats(False, _PLAIN[weights], asked or _PLAIN[weights])


def _known() -> str:
    return (
        f"Known without a network are {', '.join(map(repr, (*KNOWN, *PRESETS, 'nano')))}; "
        "for another model give the folder of its config.json, or the model itself"
    )


def _of_folder(folder: Path, name: str) -> Source:
    """A store, a checkpoint's folder, or one that has its config.json alone."""
    if is_store(folder):
        store = Store(folder)
        computed = choose_dtype("auto", store.dtype_name, {store.dtype})
        return Source(name, store.config, store.dtype, computed, int8=True, folder=folder)
    config, named = read_config(folder)
    try:
        with Checkpoint(folder) as checkpoint:
            stored = {name: one.dtype for name, one in checkpoint.stored.items()}
    except CheckpointError:  # the weights are not there, or not whole
        stored = {}
    computed = choose_dtype("auto", named, set(stored.values()))
    return Source(name, config, stored.get(EMBEDDING, computed), computed, folder=folder)


def _in_int8(model: Model) -> bool:
    return any(piece.dtype == torch.int8 for piece in _packed(model))


def _stored(model: Model) -> torch.dtype:
    """What a model's layers lie in, or their norms if they are int8."""
    return next((piece.dtype for piece in _packed(model) if piece.name in NORMS), model.dtype)


def _packed(model: Model) -> list[TensorSlice]:
    """The tensors of a layer of a model whose layers are packed; none for another."""
    layers = getattr(model.network.layer_source, "packed", ())
    return list(layers[0].pieces) if layers else []
