"""Tensors of a dictionary's file, read as data: safetensors, and torch's pickles with nothing but tensors in them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from gemmascope.checkpoints.shards import Shards
from gemmascope.errors import CheckpointError, DictionaryError
from gemmascope.files.json_reader import refuse_pointer

Tensors = dict[str, Tensor]
Axes = Mapping[str, tuple[str, ...]]


def read_safetensors(path: Path) -> Tensors:
    """Every tensor of a safetensors file, on the CPU. DictionaryError, which names the file, if it cannot be read."""
    if not path.is_file():
        raise DictionaryError(f"there is no file {path}")
    try:
        shards = Shards([path])
        try:
            return {name: shards.read(name) for name in shards.stored}
        finally:
            shards.close()
    except CheckpointError as error:
        raise DictionaryError(str(error)) from error


def read_torch(path: Path) -> Tensors:
    """The tensors of a file that torch.save wrote, by name. No code in it runs.

    DictionaryError, which names the file, for one that is damaged, or that holds anything but tensors.
    """
    if not path.is_file():
        raise DictionaryError(f"there is no file {path}")
    refuse_pointer(path, error=DictionaryError)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DictionaryError(
            f"{path} is a pickle of something else than tensors, which could run code, or is damaged: it is not read. Save "
            "state_dict() alone"
        ) from error
    except Exception as error:  # torch, zipfile and pickle raise some dozen kinds between them
        raise DictionaryError(f"{path} is no file of torch.save that can be read: {error}. Fetch it again") from error
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise DictionaryError(f"{path} holds something else than tensors by name: save state_dict() alone")
    return dict(content)


def require_tensors(tensors: Mapping[str, Tensor], axes: Axes, path: object, optional: Sequence[str] = ()) -> None:
    """DictionaryError for tensors that are missing, unknown, no finite numbers, or whose shapes do not fit together.

    Args:
        tensors: What the file holds.
        axes: The names of the axes of each tensor that it may hold.
        path: The file, or what else to call them in the error.
        optional: Those that it need not hold.
    """
    missing = sorted(set(axes) - set(optional) - set(tensors))
    more = sorted(set(tensors) - set(axes))
    if missing or more:
        reasons = [f"it lacks {', '.join(missing)}"] * bool(missing) + [f"it also holds {', '.join(more)}"] * bool(more)
        raise DictionaryError(f"{path} is no dictionary of {', '.join(axes)}: {'; '.join(reasons)}")
    sizes: dict[str, dict[str, int]] = {}
    for name, tensor in tensors.items():
        if tensor.dim() != len(axes[name]) or not tensor.numel():
            expected = ", ".join(axes[name])
            raise DictionaryError(f"{path}: {name} has shape {tuple(tensor.shape)}; it has the axes ({expected})")
        if tensor.is_complex() or tensor.dtype == torch.bool or not bool(tensor.float().isfinite().all()):
            raise DictionaryError(f"{path}: {name} holds NaN or infinity, or no numbers of float32")
        for axis, length in zip(axes[name], tensor.shape, strict=True):
            sizes.setdefault(axis, {})[name] = length
    for axis, by_name in sizes.items():
        if len(set(by_name.values())) > 1:
            lengths = ", ".join(f"{length} in {name}" for name, length in by_name.items())
            raise DictionaryError(f"{path} holds arrays that do not belong together: {axis} is {lengths}")
