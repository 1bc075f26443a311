"""gs.load_jacobian_lens: a Jacobian lens from the package, a file, a folder or the hub."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from gemmascope.arguments import short_repr, true_or_false
from gemmascope.checkpoints.device import choose_device
from gemmascope.checkpoints.hub import fetch_file, files_of, is_hub_id
from gemmascope.circuits.jacobian.files import SUFFIXES, read_lens_file
from gemmascope.circuits.jacobian.lens import JacobianLens
from gemmascope.errors import LensError
from gemmascope.model.model import Model
from gemmascope.model.modes import computes

NANO = Path(__file__).parents[1] / "nano" / "jacobian_lens.safetensors"


@computes
def load_jacobian_lens(
    source: str | os.PathLike[str] = "nano",
    file: str | None = None,
    *,
    model: Model | None = None,
    device: str | torch.device = "auto",
    any_model: bool = False,
    revision: str | None = None,
) -> JacobianLens:
    """Load a Jacobian lens.

    Read are the safetensors that gemmascope writes, and the published files (.pt), which hold float16 matrices by layer. No
    code in them runs.

    Args:
        source: "nano", the lens inside the package; a file; a folder; or a hub id such as "neuronpedia/jacobian-lens".
        file: Which file of a folder or hub id, by its path there. None takes the only one; of several, the only one whose
            path names the model.
        model: The model that it is for, to have it checked at once. None checks it when it is first used.
        device: The device of its matrices. "auto" means that of model if it is given, else CUDA if there is a GPU, else the
            CPU.
        any_model: Whether it may be used with models that it was not fitted on, if the shapes fit. A published file does not
            say its weights, so only its shape is compared.
        revision: The branch, tag or commit of a hub id; None means the default branch.

    Returns:
        The lens, in float32.

    Raises:
        LensError: For a source or file that is not there, a file that is no lens, or a model that it does not fit.
        CheckpointError: If fetching fails.

    Examples:
        >>> gs.load_jacobian_lens("nano")
        JacobianLens(gs.load_jacobian_lens('nano'): layers 0 to 4 of nano, d_model 128, over ...)
    """
    any_model = true_or_false(any_model, "any_model", error=LensError)
    for name, value in (("file", file), ("revision", revision)):
        if value is not None and not isinstance(value, str):
            raise LensError(f"{name} is a text; given {short_repr(value)}")
    if model is not None and not isinstance(model, Model):
        raise LensError(f"model is what gs.load returns; given {short_repr(model)}")
    found = read_lens_file(_find(source, file, model, revision))
    arguments = [repr(str(source)), *([] if file is None else [repr(file)])]
    arguments += [f"revision={revision!r}"] * (revision is not None) + ["any_model=True"] * any_model
    lens = JacobianLens(
        found.matrices,
        found.n_texts,
        found.model,
        found.fingerprint,
        found.changes,
        found.settings,
        call=f"gs.load_jacobian_lens({', '.join(arguments)})",
        any_model=any_model,
    )
    if model is not None:
        lens.require_fit(model)
    return lens.to(model.device if model is not None and str(device) == "auto" else choose_device(device))


def _find(source: object, file: str | None, model: Model | None, revision: str | None) -> Path:
    """The path of the lens that is meant, fetched if it is on the hub."""
    if not isinstance(source, (str, os.PathLike)):
        raise LensError(f"a source is 'nano', a file, a folder or a hub id; given {short_repr(source)}")
    path = Path(os.path.expanduser(source))
    on_hub = isinstance(source, str) and source != "nano" and not os.path.exists(path) and is_hub_id(source)
    if revision is not None and not on_hub:
        raise LensError(f"revision={revision!r} was given, and only a hub id has revisions; the source is {str(source)!r}")
    if isinstance(source, str) and source == "nano":
        return NANO
    if path.is_file():
        return path
    if path.is_dir() and source != "":
        paths = sorted(one.relative_to(path).as_posix() for one in path.rglob("*") if one.suffix in SUFFIXES)
        return _chosen(paths, str(source), file, model, lambda name: path / name)
    if on_hub:
        name = str(source)
        paths = [one for one in files_of(name, revision) if one.endswith(SUFFIXES)]
        return _chosen(paths, name, file, model, lambda one: fetch_file(name, one, revision))
    raise LensError(
        f"{str(source)!r} is no file or folder that exists and no hub id; a source is 'nano', a file of gemmascope's, a "
        "published one (.pt), or a hub id such as 'neuronpedia/jacobian-lens'"
    )


def _chosen(paths: Sequence[str], source: str, file: str | None, model: Model | None, get: Callable[[str], Path]) -> Path:
    """The file that is meant, of those of a folder or repository."""
    if file is not None:
        if file not in paths:
            raise LensError(f"{source} has no lens {file!r}; it has {_few(paths)}")
        return get(file)
    candidates = paths
    if len(paths) > 1 and model is not None:
        short = model.name.rstrip("/").rsplit("/", 1)[-1].lower()
        candidates = [one for one in paths if short in one.lower().split("/")] or [
            one for one in paths if short in one.lower()
        ]
    if len(candidates) != 1:
        hint = "say which, by file=" if candidates or not paths else "none is named after the model: say which, by file="
        raise LensError(f"{source} has {len(candidates)} lenses that fit; {hint}; it has {_few(candidates or paths)}")
    return get(candidates[0])


def _few(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - 6} more" if len(paths) > 6 else ""
    return (", ".join(map(repr, paths[:6])) or "none") + more
