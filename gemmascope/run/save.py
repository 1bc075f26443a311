"""Traces in files: a safetensors file whose metadata is JSON, with a checksum over both. No pickle."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypedDict, cast

import torch
from torch import Tensor

from gemmascope.edits.edit import BoundEdit, Edit
from gemmascope.edits.kinds import Ablate, AblateDirection, Add, Custom, Knockout, Patch, Scale
from gemmascope.errors import GemmascopeError, SiteError, TraceError, warn
from gemmascope.files.json_reader import parse_json
from gemmascope.files.paths import user_path
from gemmascope.files.writing import write_file
from gemmascope.model.model import Model
from gemmascope.model.modes import computes
from gemmascope.run.recorded import RecordedRun
from gemmascope.sites import SITES, SiteKey, find

VERSION = 2

# The edits that a file can hold.
SAVED = (Patch, Ablate, AblateDirection, Add, Scale, Knockout)

_KEY = "gemmascope.trace"

_KEPT = "kept."  # before the site and the layer, in the name of a tensor

# The names of dtypes in safetensors files.
_CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


class EditJson(TypedDict, total=False):
    """An edit in a file. What it writes is a tensor of the file."""

    kind: str
    site: str
    layer: int | None
    pos: list[int]
    head: list[int]
    q_pos: list[int]
    k_pos: list[int]
    factor: float
    value: float


class Metadata(TypedDict, total=False):
    """The metadata of a file: the model's name, and digests of its weights with and without the tokenizer."""

    version: int
    model: str
    fingerprint: str
    network: str
    edits: list[EditJson]
    sha256: str


class SavedRun(NamedTuple):
    """The token ids, the stream, the edits and the kept sites of a run."""

    ids: Tensor
    stream: list[Tensor]
    edits: list[BoundEdit]
    kept: dict[SiteKey, Tensor]


@computes
def save_trace(trace: RecordedRun, path: str | os.PathLike[str]) -> None:
    """See Trace.save. Writes a temporary file and renames it, so that an interrupted write leaves the old file intact."""
    for part in trace.model.weights.parts:  # the file names the present weights as those of the run
        trace.require_weights(part)
    tensors = {"ids": trace.ids, **{f"stream.{i}": x for i, x in enumerate(trace.residuals)}}
    tensors |= {_kept_name(site, layer): value for (site, layer), value in trace.kept_values.items()}
    edits = []
    for i, bound in enumerate(trace.bound_edits):
        edits.append(_describe(bound))
        if isinstance(bound.values, Tensor):
            tensors[f"edit.{i}"] = bound.values
    fingerprint, network = trace.model.fingerprints()
    metadata: Metadata = {"version": VERSION, "model": trace.model.name, "fingerprint": fingerprint, "network": network}
    metadata["edits"] = edits
    metadata["sha256"] = checksum(metadata, tensors)
    write_file(path, _file_chunks(metadata, tensors), error=TraceError)


def read_run(path: str | os.PathLike[str], model: Model) -> SavedRun:
    """A saved run, on the model's device. TraceError as in open_trace."""
    path = user_path(path, error=TraceError, what="a trace")
    metadata, tensors = _read(path)
    _check(metadata, tensors, path, model)
    ids = tensors["ids"].to(model.device)
    stream = [tensors[f"stream.{i}"].to(model.device) for i in range(model.n_layers + 1)]
    edits = [_bind(described, tensors.get(f"edit.{i}"), model, ids, path) for i, described in enumerate(metadata["edits"])]
    if not all(bool(torch.isfinite(x).all()) for x in stream):
        warn(f"the residual stream in {path} holds NaN or infinity: the run that was saved did")
    kept = {key: tensors[name].to(model.device) for name in tensors if (key := _kept_key(name, model)) is not None}
    return SavedRun(ids, stream, edits, kept)


# -- the file --


def _kept_name(site: str, layer: int | None) -> str:
    return f"{_KEPT}{site}" if layer is None else f"{_KEPT}{site}.{layer}"


def _kept_key(name: str, model: Model) -> SiteKey | None:
    """The site and layer of a kept value, by its tensor's name in the file; None for another tensor. SiteError if none."""
    if not name.startswith(_KEPT):
        return None
    site, _, layer = name.removeprefix(_KEPT).partition(".")
    return find((site, int(layer) if layer.isdecimal() else None), model.n_layers).key


def checksum(metadata: Mapping[str, object], tensors: Mapping[str, Tensor]) -> str:
    """A digest of the metadata but for the digest itself, and of every tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(json.dumps({k: v for k, v in metadata.items() if k != "sha256"}, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def _file_chunks(metadata: Metadata, tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """A safetensors file chunk by chunk, so that memory never holds a second copy of it."""
    header: dict[str, object] = {"__metadata__": {_KEY: json.dumps(metadata)}}
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # wide dtypes first keeps all aligned
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


def _read(path: Path) -> tuple[Metadata, dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    if not os.path.isfile(path):
        folder = f"{path} is a folder; give the file"
        raise TraceError(folder if os.path.isdir(path) else f"there is no file {path}")
    try:
        with path.open("rb"):  # the error of safetensors does not name the cause
            pass
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error.strerror}") from error
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError, AttributeError, KeyError) as error:
        raise TraceError(f"{path} is not a trace, or a part of one: {error}") from error
    metadata = None if text is None else parse_json(text, path, error=TraceError)
    if not isinstance(metadata, dict):
        raise TraceError(f"{path} is a safetensors file, but no trace: it was not written by Trace.save")
    return cast(Metadata, metadata), tensors


# -- checks of a file --


def _check(metadata: Metadata, tensors: dict[str, Tensor], path: Path, model: Model) -> None:
    """TraceError for a file of another version, a damaged file, and one that another model wrote."""
    if metadata.get("version") == 1:
        raise TraceError(
            f"{path} is a trace of format 1, which gemmascope 0.1 wrote: it has no checksum, and does not say for certain "
            "which model it is of. Run the prompt again, and save it anew"
        )
    required = {"version": int, "model": str, "fingerprint": str, "edits": list, "sha256": str}
    for name, kind in required.items():
        if type(metadata.get(name)) is not kind:
            raise TraceError(f"{path} is a damaged trace: it has no {name!r}")
    if metadata["version"] != VERSION:
        raise TraceError(
            f"{path} is a trace of format {metadata['version']}; this version of gemmascope reads format {VERSION}"
        )
    if metadata["sha256"] != checksum(metadata, tensors):
        raise TraceError(f"{path} is a damaged trace: its checksum is not that of what it holds. Run the prompt again")
    fingerprint, network = model.fingerprints()
    if metadata["fingerprint"] != fingerprint:
        same = metadata.get("network") == network
        differs = "another tokenizer, or other edits that it keeps" if same else "other weights, configuration or dtype"
        raise TraceError(
            f"{path} was written by the model {metadata['model']!r} ({metadata['fingerprint']}) and is opened with "
            f"{model.name!r} ({fingerprint}), which has {differs}: pass model= the one that wrote it"
        )
    if why := _mismatch(tensors, model):
        raise TraceError(f"{path} is a damaged trace: {why}")


def _mismatch(tensors: dict[str, Tensor], model: Model) -> str | None:
    """Why these tensors cannot be a run of the model; None if they can."""
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
    return _mismatch_of_kept(tensors, model, len(ids))


def _mismatch_of_kept(tensors: dict[str, Tensor], model: Model, n_pos: int) -> str | None:
    for name, value in tensors.items():
        try:
            key = _kept_key(name, model)
        except SiteError as error:
            return f"it kept {name!r}, which is no site: {error}"
        if key is None:
            continue
        shape = [model.config.size_of(axis, n_pos) for axis in SITES[key[0]].axes]
        if list(value.shape) != shape or not value.is_floating_point():
            return f"{name} is {value.dtype} of shape {list(value.shape)}; {shape} is right"
    return None


# -- edits --


def _describe(bound: BoundEdit) -> EditJson:
    """An edit as JSON, its positions as numbers. What it writes is stored as a tensor."""
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
    described = {"kind": kind, "site": bound.address.site.name, "layer": bound.address.layer, **places, **extra}
    return cast(EditJson, described)


def _bind(described: EditJson, values: Tensor | None, model: Model, ids: Tensor, path: Path) -> BoundEdit:
    """The edit, bound to its run again. TraceError if the description is not one of an edit."""
    try:
        return _rebuild(described, values).bind(model, ids)
    except KeyError as error:
        raise TraceError(f"{path} is a damaged trace: it has no {error}") from error
    except (GemmascopeError, ValueError, TypeError, AttributeError, IndexError, RuntimeError, OverflowError) as error:
        raise TraceError(f"{path} is a damaged trace: one of its edits is none: {error}") from error


def _rebuild(described: EditJson, values: Tensor | None) -> Edit:
    kinds: dict[str, type[Edit]] = {kind.__name__: kind for kind in SAVED}
    arguments: dict[str, object] = {name: value for name, value in described.items() if name != "kind"}
    kind = kinds[described["kind"]]
    if kind is Patch:
        arguments["source"] = values
    if kind is Add:
        arguments["vector"] = values if values is not None else torch.zeros(())
    if kind is AblateDirection and values is not None:
        arguments["vector"] = values.flatten(0, -2)[0]  # stored for every place, the same at each
    return kind(**arguments)  # type: ignore[arg-type]
