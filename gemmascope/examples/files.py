"""Top examples in files: safetensors with metadata in JSON, and a checksum over both."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from gemmascope.errors import ExamplesError
from gemmascope.examples.group import UnitExamples
from gemmascope.examples.settings import ExampleSettings
from gemmascope.files.json_reader import parse_json
from gemmascope.files.paths import user_path
from gemmascope.files.writing import write_file
from gemmascope.values import Array

# A JSON object, whose values are checked as they are read.
Json = Mapping[str, Any]

VERSION = 1
_KEY = "gemmascope.examples"
_FIELDS = ("kind", "site", "layer", "name", "measure")


def save_examples(
    path: str | os.PathLike[str],
    each: Sequence[UnitExamples],
    vocab: Mapping[int, str],
    settings: ExampleSettings,
    about: Mapping[str, object],
) -> None:
    """Write examples to a file, whole or not at all. about: the model, its fingerprint, and the number of rows."""
    from safetensors.numpy import save

    arrays: dict[str, Array] = {}
    groups = []
    for number, group in enumerate(each):
        arrays |= {f"{number}.{name}": np.ascontiguousarray(group.data[name].values) for name in group.data.variables}
        dims = {str(name): list(map(str, group.data[name].dims)) for name in group.data.variables}
        groups.append({**{name: getattr(group, name) for name in _FIELDS}, "dims": dims})
        arrays |= {f"{number}.text.{text}": np.ascontiguousarray(ids) for text, ids in group.texts.items()}
    metadata: dict[str, object] = {
        "version": VERSION,
        **about,
        "settings": asdict(settings),
        "vocab": {str(token): text for token, text in vocab.items()},
        "groups": groups,
    }
    metadata["sha256"] = _checksum(metadata, arrays)
    write_file(path, save(arrays, {_KEY: json.dumps(metadata)}))


def read_examples(path: str | os.PathLike[str]) -> tuple[Json, list[UnitExamples], ExampleSettings]:
    """The metadata, groups and settings of a file. ExamplesError if it is none, is damaged, or of another version."""
    path = user_path(path, error=ExamplesError, what="top examples")
    metadata, arrays = _read(path)
    if metadata.get("version") != VERSION:
        raise ExamplesError(
            f"{path} has version {metadata.get('version')!r} of the format, and this gemmascope reads {VERSION}"
        )
    if metadata.get("sha256") != _checksum(metadata, arrays):
        raise ExamplesError(f"{path} is damaged: its checksum is not that of what it holds. Find the examples again")
    try:
        settings = dict(metadata["settings"])
        made = ExampleSettings(**{**settings, "around": tuple(settings["around"])})
        groups = [_group(number, about, arrays) for number, about in enumerate(metadata["groups"])]
        return {**metadata, "vocab": {int(k): str(v) for k, v in metadata["vocab"].items()}}, groups, made
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ExamplesError(f"{path} holds no top examples that can be read: {type(error).__name__}: {error}") from error


def _group(number: int, about: Json, arrays: Mapping[str, Array]) -> UnitExamples:
    import xarray

    dims = about["dims"]
    variables = {name: (tuple(of), arrays[f"{number}.{name}"]) for name, of in dims.items()}
    coords = {name: variables.pop(name) for name in ("unit", "offset")}
    data = xarray.Dataset(variables, coords, {"long_name": about["measure"]})
    prefix = f"{number}.text."
    texts = {int(name.removeprefix(prefix)): ids for name, ids in arrays.items() if name.startswith(prefix)}
    kind, site, layer, name, measure = (about[name] for name in _FIELDS)
    return UnitExamples(kind, site, layer, name, measure, data, dict(sorted(texts.items())))


def _read(path: Path) -> tuple[Json, dict[str, Array]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ExamplesError(f"there is no file {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(_KEY)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise ExamplesError(f"{path} cannot be read as top examples: {error}") from error
    metadata = None if text is None else parse_json(text, path, error=ExamplesError)
    if not isinstance(metadata, dict):
        raise ExamplesError(f"{path} holds no top examples: TopExamples.save writes such a file")
    return metadata, arrays


def _checksum(metadata: Mapping[str, object], arrays: Mapping[str, Array]) -> str:
    """A digest of the metadata but for the digest itself, and of every array."""
    digest = hashlib.sha256(json.dumps({k: v for k, v in metadata.items() if k != "sha256"}, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"\n{name} {array.dtype} {list(array.shape)}\n".encode() + array.tobytes())
    return digest.hexdigest()
