"""The two small files of a store: manifest.json, what was asked of which model, and shards.jsonl, what is finished.

A line of shards.jsonl is written when its shard is on the disk, so a store that was killed is read, and continued, up to its
last line. A last line that a crash cut off is dropped.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gemmascope.errors import StoreError
from gemmascope.files.json_reader import read_json
from gemmascope.files.sealed_lines import opened, sealed
from gemmascope.files.writing import write_file
from gemmascope.model.model import Model
from gemmascope.stores.spec import ArraySpec, StoreSpec

FORMAT = "gemmascope.store.1"
MANIFEST, SHARDS = "manifest.json", "shards.jsonl"

_ADVICE = "Harvest it again into another folder, or take the file from a copy"


@dataclass(frozen=True)
class Manifest:
    """What a store is of.

    model: its name, and source, what gs.load can load it from again. fingerprint: as Model.fingerprint. n_layers, kinds and
    context: of the model. spec: what was asked.
    """

    model: str
    source: str | None
    fingerprint: str
    n_layers: int
    kinds: tuple[str, ...]
    context: int
    spec: StoreSpec

    @classmethod
    def of(cls, model: Model, spec: StoreSpec) -> Manifest:
        config = model.config
        return cls(model.name, model.source, model.fingerprint, model.n_layers, tuple(config.kinds), config.context, spec)

    def write(self, folder: Path) -> None:
        """Write manifest.json."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=1)
        write_file(folder / MANIFEST, text + "\n", error=StoreError)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a store. StoreError if there is none, or it is damaged."""
    path = folder / MANIFEST
    if not os.path.isdir(folder):
        there = "it is a file" if os.path.exists(folder) else "there is no such folder"
        raise StoreError(f"{folder} is not a store that can be read: {there}. gs.harvest(..., out=FOLDER) writes one")
    if not path.exists():
        raise StoreError(f"{folder} is not a store: it has no {MANIFEST}. gs.harvest(..., out=FOLDER) writes one")
    data: dict[str, Any] = read_json(path, error=StoreError)
    if data.get("format") != FORMAT:
        raise StoreError(f"{path} is not of a store that this version of gemmascope reads (format {FORMAT})")
    try:
        known = {name: data[name] for name in Manifest.__dataclass_fields__}
        return Manifest(**{**known, "kinds": tuple(data["kinds"]), "spec": StoreSpec.from_data(data["spec"])})
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path} is damaged: {type(error).__name__} {error}. {_ADVICE}") from error


def differences(there: Manifest, here: Manifest) -> list[str]:
    """What two harvests were asked differently, in words. A change from long='error' or empty='error' is none: no text of
    the finished shards was longer, or empty.
    """
    found = []
    if there.fingerprint != here.fingerprint:
        same = there.model == here.model
        found.append(
            f"another state of the model {there.model!r}: its weights, tokenizer or edits changed"
            if same
            else f"model: {there.model!r} there, {here.model!r} here"
        )
    theirs, ours = there.spec.as_data(), here.spec.as_data()
    for name, value in ours.items():
        if theirs[name] == value or (name in ("long", "empty") and "error" in (theirs[name], value)):
            continue
        given = (_names(there.spec.arrays), _names(here.spec.arrays)) if name == "arrays" else (theirs[name], value)
        found.append(f"{name}: {given[0]!r} there, {given[1]!r} here")
    return found


def _names(arrays: tuple[ArraySpec, ...]) -> str:
    return ", ".join(array.name for array in arrays)


@dataclass(frozen=True)
class ShardLine:
    """A finished shard, or the end of the texts.

    file: its name; "" at the end of the texts. n_bytes and sha256: of the file. n_rows and n_runs: in it. n_texts: how many
    texts were read for it, and n_skipped: how many of them were left out. texts: a digest of them. n_tokens: of its runs,
    `<bos>` included. n_outliers: the rows left out as such.
    """

    file: str
    n_bytes: int
    sha256: str
    n_rows: int
    n_runs: int
    n_texts: int
    n_skipped: int
    texts: str
    n_tokens: int
    n_outliers: int


@dataclass(frozen=True)
class ShardList:
    """The lines of shards.jsonl, where the last whole line ends, and its checksum."""

    lines: tuple[ShardLine, ...] = ()
    size: int = 0
    checksum: str = ""


def line_of(line: ShardLine, previous: str) -> tuple[bytes, str]:
    """A line with its newline, and its checksum. previous: the checksum of the line before; "" for the first."""
    return sealed(asdict(line), previous)


def read_shards(folder: Path) -> ShardList:
    """The finished shards of a store. StoreError for a damaged line."""
    path = folder / SHARDS
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    lines: list[ShardLine] = []
    size, checksum = 0, ""
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):  # what follows the last newline was cut off
        name = f"line {number} of {path}"
        data, checksum = opened(line, checksum, name, error=StoreError, advice=_ADVICE)
        size += len(line) + 1
        try:
            lines.append(ShardLine(**data))  # type: ignore[arg-type]
        except TypeError as error:
            raise StoreError(f"{name} is damaged: {error}. {_ADVICE}") from error
    return ShardList(tuple(lines), size, checksum)
