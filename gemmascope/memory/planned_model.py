"""The model that gs.plan is about: its shape and dtypes, found without reading weights or using the network."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from gemmascope.arguments import equals_text
from gemmascope.checkpoints.at_hand.models import at_hand
from gemmascope.checkpoints.device import choose_dtype, parse_dtype, weights_error
from gemmascope.checkpoints.folder import Checkpoint, read_config
from gemmascope.checkpoints.from_transformers import is_gemma
from gemmascope.checkpoints.gguf import is_gguf
from gemmascope.checkpoints.hub import KNOWN_REPOS, suggestion
from gemmascope.checkpoints.source import NANO
from gemmascope.checkpoints.tensor_names import EMBEDDING
from gemmascope.config import PRESETS, GemmaConfig
from gemmascope.errors import CheckpointError, DeviceError
from gemmascope.model.model import Model
from gemmascope.streaming.packed import NORMS, TensorSlice
from gemmascope.streaming.store import Store, is_store

# A hub id of Google's, or the end of one.
PRESET_NAME = re.compile(
    r"(?:(?:google/)?gemma-(?:2-(?!3-)|(?=3-)))?(?P<model>(?P<size>2b|9b|27b|3-(?:270m|1b|4b|12b|27b))(?:-it|-pt)?)"
)

_PLAIN = {"bf16": torch.bfloat16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class PlannedModel:
    """A model that may be loaded.

    Attributes:
        name: Its name.
        config: Its shape.
        stored: The dtype of the stored weights, or of those that are not int8.
        computed: The dtype that gs.load computes in by default.
        int8: Whether the weights are int8.
        folder: Its folder; None if it has none here.
    """

    name: str
    config: GemmaConfig
    stored: torch.dtype
    computed: torch.dtype
    int8: bool = False
    folder: Path | None = None


@dataclass(frozen=True)
class Formats:
    """Number formats: whether the weights are int8, the dtype of the stored weights, and the dtype to compute in."""

    int8: bool
    stored: torch.dtype
    dtype: torch.dtype

    @property
    def weights(self) -> str:
        """ "int8", or the stored dtype's name."""
        return "int8" if self.int8 else str(self.stored).removeprefix("torch.")


def find_planned_model(source: object) -> PlannedModel:
    """The model that a source names. Raises CheckpointError, with the known sources, for an unknown one."""
    if isinstance(source, Model):
        return PlannedModel(source.name, source.config, _stored(source), source.dtype, _in_int8(source))
    if is_gemma(source):
        return PlannedModel(
            type(source).__name__, GemmaConfig.from_dict(source.config.to_dict()), source.dtype, source.dtype
        )
    if source is None or equals_text(source, "nano"):
        return _of_folder(NANO, "nano")
    if not isinstance(source, (str, os.PathLike)):
        raise CheckpointError(f"cannot plan for a {type(source).__name__}; {_known()}")
    path = Path(source).expanduser()
    if (path.is_dir() and source != "") or (path.is_file() and is_gguf(path)):
        return _of_folder(path, str(source))
    if preset := PRESET_NAME.fullmatch(str(source).lower()):
        return PlannedModel(str(source), PRESETS[preset["size"]], torch.bfloat16, torch.bfloat16)
    raise CheckpointError(
        f"{str(source)!r} is no folder that exists and no model that is known.{suggestion(str(source))} {_known()}"
        + (f".{here}" if (here := at_hand(str(source))) else "")
    )


def find_formats(source: PlannedModel, weights: object, dtype: str | torch.dtype) -> Formats:
    """The requested formats, or the source's own. Raises DeviceError for formats that are not offered."""
    named = parse_dtype(dtype)
    if equals_text(weights, "auto"):
        return Formats(source.int8, source.stored, named or source.computed)
    if equals_text(weights, "int8"):
        return Formats(True, source.stored, named or source.computed)
    if not isinstance(weights, str) or weights not in _PLAIN:
        raise weights_error(weights, f"'int8', {' or '.join(map(repr, _PLAIN))}")
    if source.int8:
        raise DeviceError(
            f"{source.name!r} holds int8 weights: give 'auto' or 'int8', or plan for the checkpoint they came from"
        )
    return Formats(False, _PLAIN[weights], named or _PLAIN[weights])


def _known() -> str:
    return (
        f"Known without a network are {', '.join(map(repr, (*KNOWN_REPOS, *PRESETS, 'nano')))}; "
        "for another model give the folder of its config.json, or the model itself"
    )


def _of_folder(folder: Path, name: str) -> PlannedModel:
    """The model in a folder: an int8 store, a checkpoint, or a config.json alone."""
    if is_store(folder):
        store = Store(folder)
        computed = choose_dtype("auto", store.dtype_name, {store.dtype})
        return PlannedModel(name, store.config, store.dtype, computed, int8=True, folder=folder)
    if folder.is_file():
        with Checkpoint(folder) as checkpoint:
            return PlannedModel(name, checkpoint.config, torch.float32, torch.float32, folder=folder)
    config, dtype_name = read_config(folder)
    try:
        with Checkpoint(folder) as checkpoint:
            stored = {name: one.dtype for name, one in checkpoint.stored.items()}
    except CheckpointError:  # the weights are missing or incomplete
        stored = {}
    computed = choose_dtype("auto", dtype_name, set(stored.values()))
    return PlannedModel(name, config, stored.get(EMBEDDING, computed), computed, folder=folder)


def _in_int8(model: Model) -> bool:
    return any(piece.dtype == torch.int8 for piece in _packed(model))


def _stored(model: Model) -> torch.dtype:
    """The dtype of a model's stored layers, or of their norms if the layers are int8."""
    return next((piece.dtype for piece in _packed(model) if piece.name in NORMS), model.dtype)


def _packed(model: Model) -> list[TensorSlice]:
    """The tensors in a packed layer of a model; empty if its layers are not packed."""
    layers = getattr(model.network.layer_source, "packed", ())
    return list(layers[0].slices) if layers else []
