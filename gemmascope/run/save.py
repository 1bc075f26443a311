"""Traces in files: safetensors for the numbers, JSON in its header for the words, a checksum over both. No pickle."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gemmascope.edits.ablate_direction import AblateDirection
from gemmascope.edits.bound import BoundEdit
from gemmascope.edits.edit import Ablate, Add, Custom, Edit, Knockout, Patch, Scale
from gemmascope.errors import GemmascopeError, TraceError, warn
from gemmascope.files.json_reader import parse_json
from gemmascope.files.paths import user_path
from gemmascope.files.writing import write_file
from gemmascope.loading.default import model_or_nano
from gemmascope.model.model import Model
from gemmascope.model.modes import computes
from gemmascope.run.trace import Trace

VERSION = 2

# The edits that a file can hold.
SAVED = (Patch, Ablate, AblateDirection, Add, Scale, Knockout)

_KEY = "gemmascope.trace"

# What safetensors calls a tensor's numbers.
_CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@computes
def save_trace(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Write a trace to a file, aside first and then renamed, so that a broken write leaves the old file whole.

    Raises TraceError for a trace with an edit by a function, which is no data, and for a place that cannot be written.
    """
    for part in trace.model.weights.parts:  # what the file vouches for is what ran
        trace.require_weights(part)
    tensors = {"ids": trace.ids, **{f"stream.{i}": x for i, x in enumerate(trace.residuals)}}
    described = []
    for i, bound in enumerate(trace.bound_edits):
        described.append(_describe(bound))
        if isinstance(bound.values, Tensor):  # a trace has no other: a feed is a sweep's
            tensors[f"edit.{i}"] = bound.values
    whole, network = trace.model.fingerprints()
    about: dict[str, Any] = {"version": VERSION, "model": trace.model.name, "fingerprint": whole, "network": network}
    about["edits"] = described
    about["sha256"] = checksum(about, tensors)
    write_file(path, _file_of(about, tensors), error=TraceError)


@computes
def open_trace(path: str | os.PathLike[str], *, model: Model | None = None) -> Trace:
    """The trace that t.save(path) wrote.

    Args:
        path: The file, "~" being the home folder.
        model: The one that wrote it; None means nano.

    Raises:
        TraceError: The file is no trace, or a damaged one, or another model than this wrote it: names both.
    """
    model = model_or_nano(model)
    path = user_path(path, error=TraceError, what="a trace")
    about, tensors = _read(path)
    _check(about, tensors, path, model)
    ids = tensors["ids"].to(model.device)
    stream = [tensors[f"stream.{i}"].to(model.device) for i in range(model.n_layers + 1)]
    edits = [_bound(described, tensors.get(f"edit.{i}"), model, ids, path) for i, described in enumerate(about["edits"])]
    if not all(bool(torch.isfinite(x).all()) for x in stream):
        warn(f"the residual stream in {path} holds NaN or infinity: the run that was saved did")
    return Trace(model, ids, stream, edits)


# -- the file --


def checksum(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """A digest of all that a file says, but for itself: its words, and every tensor's name, kind, shape and bytes."""
    found = hashlib.sha256(json.dumps({k: v for k, v in about.items() if k != "sha256"}, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(_bytes_of(tensor))
    return found.hexdigest()


def _file_of(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """A safetensors file, piece by piece: no second copy of the whole is held."""
    header: dict[str, Any] = {"__metadata__": {_KEY: json.dumps(about)}}
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # wide numbers first: all are aligned
    start = 0
    for name in names:
        tensor = tensors[name]
        if tensor.dtype not in _CODES:
            raise TraceError(f"a trace with numbers of {tensor.dtype} cannot be saved")
        stop = start + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for name in names:
        yield _bytes_of(tensors[name])


def _bytes_of(tensor: Tensor) -> memoryview:
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    if not os.path.isfile(path):
        folder = f"{path} is a folder; give the file"
        raise TraceError(folder if os.path.isdir(path) else f"there is no file {path}")
    try:
        with path.open("rb"):  # the library's own error does not say what is wrong
            pass
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error.strerror}") from error
    try:
        with safe_open(path, framework="pt") as file:
            said = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError, AttributeError, KeyError) as error:
        raise TraceError(f"{path} is not a trace, or a part of one: {error}") from error
    about = None if said is None else parse_json(said, path, error=TraceError)
    if not isinstance(about, dict):
        raise TraceError(f"{path} is a safetensors file, but no trace: it was not written by Trace.save")
    return about, tensors


# -- what a file may say --


def _check(about: dict[str, Any], tensors: dict[str, Tensor], path: Path, model: Model) -> None:
    """TraceError for a file of another version, a damaged one, and one that another model wrote."""
    if about.get("version") == 1:
        raise TraceError(
            f"{path} is a trace of format 1, which gemmascope 0.1 wrote: it has no checksum, and does not say for certain "
            "which model it is of. Run the prompt again, and save it anew"
        )
    wanted = {"version": int, "model": str, "fingerprint": str, "edits": list, "sha256": str}
    for name, kind in wanted.items():
        if name not in about or type(about[name]) is not kind:
            raise TraceError(f"{path} is a damaged trace: it has no {name!r}")
    if about["version"] != VERSION:
        raise TraceError(
            f"{path} is a trace of format {about['version']}; this version of gemmascope reads format {VERSION}"
        )
    if about["sha256"] != checksum(about, tensors):
        raise TraceError(f"{path} is a damaged trace: its checksum is not that of what it holds. Run the prompt again")
    whole, network = model.fingerprints()
    if about["fingerprint"] != whole:
        differs = "another tokenizer" if about.get("network") == network else "other weights, configuration or dtype"
        raise TraceError(
            f"{path} was written by the model {about['model']!r} ({about['fingerprint']}) and is opened with {model.name!r} "
            f"({whole}), which has {differs}: pass model= the one that wrote it"
        )
    if why := _unlike(tensors, model):
        raise TraceError(f"{path} is a damaged trace: {why}")


def _unlike(tensors: dict[str, Tensor], model: Model) -> str | None:
    """Why these tensors are no run of the model; None if they are."""
    for name in ("ids", *(f"stream.{i}" for i in range(model.n_layers + 1))):
        if name not in tensors:
            return f"it has no {name!r}"
    ids, first, size = tensors["ids"], tensors["stream.0"], model.config.vocab_size
    if ids.dtype != torch.int64 or ids.dim() != 1 or not len(ids):
        return f"its ids are {ids.dtype} of shape {list(ids.shape)}, not a row of whole numbers"
    if not 0 <= int(ids.min()) <= int(ids.max()) < size:
        return f"its ids go from {int(ids.min())} to {int(ids.max())}, and the vocabulary has {size}"
    for i in range(model.n_layers + 1):
        x = tensors[f"stream.{i}"]
        if tuple(x.shape) != (len(ids), model.config.d_model) or x.dtype != first.dtype or not x.is_floating_point():
            return (
                f"stream.{i} is {x.dtype} of shape {list(x.shape)}; {len(ids)} positions of {model.config.d_model} are right"
            )
    return None


# -- edits --


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


def _bound(described: Any, values: Tensor | None, model: Model, ids: Tensor, path: Path) -> BoundEdit:
    """An edit as it was. TraceError for a description of none."""
    try:
        return _rebuild(described, values).bind(model, ids)
    except KeyError as error:
        raise TraceError(f"{path} is a damaged trace: it has no {error}") from error
    except (GemmascopeError, ValueError, TypeError, AttributeError, IndexError, RuntimeError, OverflowError) as error:
        raise TraceError(f"{path} is a damaged trace: one of its edits is none: {error}") from error


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
