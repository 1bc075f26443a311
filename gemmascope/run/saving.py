"""Traces in files: safetensors for the numbers, JSON in its header for the words. No pickle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gemmascope.errors import TraceError
from gemmascope.model.model import Model
from gemmascope.replacing import replacing
from gemmascope.run.bound import BoundEdit
from gemmascope.run.default import model_or_nano
from gemmascope.run.edits import Ablate, Add, Custom, Edit, Knockout, Patch, Scale
from gemmascope.run.projection import AblateDirection
from gemmascope.run.trace import Trace

VERSION = 1

# The edits that a file can hold.
SAVED = (Patch, Ablate, AblateDirection, Add, Scale, Knockout)


def save_trace(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Write a trace to a file, aside first and then renamed, so that a broken write leaves the old file whole.

    Raises TraceError for a trace with an edit by a function, which is no data, and for a place that cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = Path(path)
    tensors = {"ids": trace.ids, **{f"stream.{i}": x.contiguous() for i, x in enumerate(trace.stream)}}
    described = []
    for i, bound in enumerate(trace.bound_edits):
        described.append(_describe(bound))
        if isinstance(bound.values, Tensor):  # a trace has no other: a feed is a sweep's
            tensors[f"edit.{i}"] = bound.values.contiguous()
    about = {"version": VERSION, "model": trace.model.name, "fingerprint": trace.model.fingerprint, "edits": described}
    try:
        with replacing(path) as aside:
            save_file({k: v.clone() for k, v in tensors.items()}, aside, metadata={"gemmascope.trace": json.dumps(about)})
    except (SafetensorError, OSError) as error:
        why = error if path.parent.is_dir() else f"there is no folder {path.parent}"
        raise TraceError(f"cannot write {path}: {why}") from error


def open_trace(path: str | os.PathLike[str], *, model: Model | None = None) -> Trace:
    """The trace that t.save(path) wrote. model: the one that wrote it; None means nano.

    Raises TraceError for a file that is no trace, and for another model than the one that wrote it, naming both.
    """
    model = model_or_nano(model)
    about, tensors = _read(Path(path))
    try:
        _check(about, path, model)
        ids = tensors["ids"].to(model.device)
        stream = [tensors[f"stream.{i}"].to(model.device) for i in range(model.n_layers + 1)]
        edits = [_rebuild(d, tensors.get(f"edit.{i}")).bind(model, ids) for i, d in enumerate(about["edits"])]
    except KeyError as error:
        raise TraceError(f"{path} is a damaged trace: it has no {error}") from error
    return Trace(model, ids, stream, edits)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise TraceError(f"{path} is a folder; give the file" if path.is_dir() else f"there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("gemmascope.trace", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise TraceError(f"{path} is not a trace, or a part of one: {error}") from error
    if not isinstance(about, dict):
        raise TraceError(f"{path} is a safetensors file, but no trace: it was not written by Trace.save")
    return about, tensors


def _check(about: dict[str, Any], path: Any, model: Model) -> None:
    if about["version"] != VERSION:
        raise TraceError(
            f"{path} is a trace of format {about['version']}; this version of gemmascope reads format {VERSION}"
        )
    if about["fingerprint"] != model.fingerprint:
        raise TraceError(
            f"{path} was written by the model {about['model']!r} ({about['fingerprint']}) and is opened with {model.name!r} "
            f"({model.fingerprint}), which has other weights, shape or dtype: pass model= the one that wrote it"
        )


def _describe(bound: BoundEdit) -> dict[str, Any]:
    """An edit as JSON, its positions as numbers; what it writes goes to a tensor of its own."""
    edit = bound.edit
    if isinstance(edit, Custom):
        raise TraceError(
            f"a trace with an edit by a function cannot be saved: {edit!r}. Save the values, and patch them instead"
        )
    if type(edit) not in SAVED:
        raise TraceError(
            f"a trace with this edit cannot be saved, because the file would not hold what it needs: {edit!r}. Save what it "
            f"writes, t[{bound.address.site.name!r}, {bound.address.layer}], and patch that instead"
        )
    names = ("head", "q_pos", "k_pos") if bound.address.site.is_edges else ("pos", "head")
    places = {name: place.tolist() for name, place in zip(names, bound.places, strict=False)}
    kind = "Patch" if isinstance(edit, Ablate) and isinstance(edit.value, str) else type(edit).__name__
    extra = {"factor": edit.factor} if isinstance(edit, Scale) else {"value": edit.value} if kind == "Ablate" else {}  # type: ignore[attr-defined]
    return {"kind": kind, "site": bound.address.site.name, "layer": bound.address.layer, **places, **extra}


def _rebuild(described: dict[str, Any], values: Tensor | None) -> Edit:
    kinds: dict[str, type[Edit]] = {kind.__name__: kind for kind in SAVED}
    arguments = dict(described)
    kind = kinds[arguments.pop("kind")]
    if kind is Patch:
        arguments["source"] = values
    if kind is Add:
        arguments["vector"] = values if values is not None else torch.zeros(())
    if kind is AblateDirection and values is not None:
        arguments["vector"] = values.flatten(0, -2)[0]  # written as it was laid out for the places: the same at each
    edit: Edit = kind(**arguments)
    return edit
