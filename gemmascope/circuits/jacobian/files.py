"""Files of Jacobian lenses: safetensors that gemmascope writes, and the published ones, which torch.save wrote.

A published file is a pickle {"J": {layer: float16 [d_model, d_model]}, "n_prompts", "source_layers", "d_model"}. It is read
with weights_only: no code in it runs.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gemmascope.arguments import finite_number, is_whole, short_repr, whole_number
from gemmascope.circuits.jacobian.settings import FitSettings
from gemmascope.errors import LensError
from gemmascope.files.json_reader import parse_json, refuse_pointer
from gemmascope.files.writing import write_file

VERSION = 1
KEY, PREFIX = "gemmascope.jacobian_lens", "J."
SUFFIXES = (".safetensors", ".pt")


@dataclass(frozen=True)
class LensFile:
    """What a file holds. matrices: {layer: [d_model, d_model]}, float32 on the CPU. texts: a digest of the texts of a fit,
    and how many were looked at, from which it can go on.
    """

    matrices: dict[int, Tensor]
    n_texts: int
    model: str | None = None
    fingerprint: str | None = None
    changes: tuple[float, ...] = ()
    settings: FitSettings | None = None
    n_seen: int = 0
    texts: str | None = None


def write_lens(
    path: str | os.PathLike[str],
    matrices: Mapping[int, Tensor],
    n_texts: int,
    model: str | None,
    fingerprint: str | None,
    changes: Sequence[float],
    settings: FitSettings | None,
    *,
    n_seen: int = 0,
    texts: str | None = None,
) -> None:
    """Write a lens, whole or not at all. FileError if the file cannot be written."""
    from safetensors.torch import save

    about = {
        "version": VERSION,
        "n_texts": n_texts,
        "model": model,
        "fingerprint": fingerprint,
        "changes": list(changes),
        "settings": None if settings is None else vars(settings),
        "n_seen": n_seen,
        "texts": texts,
    }
    tensors = {f"{PREFIX}{layer}": matrix.contiguous() for layer, matrix in matrices.items()}
    write_file(path, save(tensors, {KEY: json.dumps(about)}))


def read_lens_file(path: Path) -> LensFile:
    """What a file of either format holds. LensError, which names the file, for one that cannot be read."""
    if not path.is_file():
        raise LensError(f"there is no file {path}")
    refuse_pointer(path, error=LensError)
    found = _read_published(path) if path.suffix == ".pt" else _read_safetensors(path)
    sizes = {matrix.shape for matrix in found.matrices.values()}
    if not sizes or len(sizes) > 1 or any(len(size) != 2 or size[0] != size[1] or not size[0] for size in sizes):
        shapes = ", ".join(map(str, map(tuple, sizes))) or "none"
        raise LensError(f"{path}: a lens has square matrices of one size; it has {shapes}")
    for layer, matrix in found.matrices.items():
        if not bool(matrix.isfinite().all()):
            raise LensError(f"{path}: the matrix of layer {layer} holds NaN or infinity")
    return found


@contextmanager
def _explain(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except LensError:
        raise
    except pickle.UnpicklingError as error:
        raise LensError(
            f"{path} is a pickle of more than tensors and numbers, which could run code: it is not read"
        ) from error
    except Exception as error:  # torch, zipfile, pickle and safetensors raise some dozen kinds between them
        raise LensError(f"{path} is no {what} that can be read: {error}. Fetch it again") from error


def _read_safetensors(path: Path) -> LensFile:
    from safetensors import safe_open

    with _explain(path, "safetensors file"), safe_open(path, framework="pt") as file:
        metadata = (file.metadata() or {}).get(KEY)
        if metadata is None:
            raise LensError(f"{path} is no Jacobian lens: gs.fit_jacobian_lens(..., out=) and JacobianLens.save write one")
        about = parse_json(metadata, path, error=LensError)
        names = [name for name in file.keys() if name.startswith(PREFIX)]  # noqa: SIM118 (a safe_open has no __iter__)
        matrices = {_layer(name.removeprefix(PREFIX), path): file.get_tensor(name).float() for name in names}
    version = about.get("version") if isinstance(about, dict) else None
    if version != VERSION:
        raise LensError(f"{path} has version {short_repr(version)}; this gemmascope reads version {VERSION}")
    with _explain(path, "Jacobian lens"):
        settings = about["settings"]
        return LensFile(
            matrices=dict(sorted(matrices.items())),
            n_texts=whole_number(about["n_texts"], "n_texts", least=1, error=LensError),
            model=_text(about["model"], "model", path),
            fingerprint=_text(about["fingerprint"], "fingerprint", path),
            changes=tuple(finite_number(change, "a change", error=LensError) for change in about["changes"]),
            settings=None
            if settings is None
            else FitSettings(**{k: whole_number(v, k, error=LensError) for k, v in settings.items()}),
            n_seen=whole_number(about["n_seen"], "n_seen", least=0, error=LensError),
            texts=_text(about["texts"], "texts", path),
        )


def _read_published(path: Path) -> LensFile:
    with _explain(path, "file of torch.save"):
        content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or not isinstance(content.get("J"), dict):
        keys = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        running = " It is the state of a run that was not finished" if "jacobian_sum" in keys else ""
        raise LensError(
            f"{path} is no Jacobian lens: it lacks J, the matrices by layer, and holds {short_repr(keys)}.{running}"
        )
    matrices = {}
    for layer, matrix in content["J"].items():
        if not isinstance(matrix, Tensor) or not matrix.is_floating_point():
            raise LensError(f"{path}: the matrix of layer {layer} is {type(matrix).__name__}, no tensor of numbers")
        matrices[_layer(layer, path)] = matrix.float()
    width = content.get("d_model")
    if width is not None and any(len(matrix) != width for matrix in matrices.values()):
        raise LensError(f"{path} says d_model {short_repr(width)}, and its matrices have another size")
    n_texts = content.get("n_prompts", 1)
    return LensFile(dict(sorted(matrices.items())), whole_number(n_texts, "n_prompts", least=1, error=LensError))


def _layer(value: object, path: Path) -> int:
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    if not is_whole(value) or int(value) < 0:
        raise LensError(f"{path} has a matrix of layer {short_repr(value)}; layers are counted from 0")
    return int(value)


def _text(value: object, name: str, path: Path) -> str | None:
    if value is not None and not isinstance(value, str):
        raise LensError(f"{path}: {name} is a text; it is {short_repr(value)}")
    return value
