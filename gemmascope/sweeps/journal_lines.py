"""The lines of a journal: JSON with checksums (files/sealed_lines.py).

The first line holds what the sweep was asked, the others hold cells.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, TypeGuard

from gemmascope.errors import GemmascopeError, SweepError
from gemmascope.files.json_reader import parse_json
from gemmascope.files.sealed_lines import Line, is_sealed
from gemmascope.files.sealed_lines import opened as open_line
from gemmascope.files.sealed_lines import sealed as sealed
from gemmascope.sweeps.metadata import SweepMetadata
from gemmascope.sweeps.sets.numbers import SetQuestion
from gemmascope.values import Array

FORMAT = "gemmascope.sweep.3"
FORMAT_OF_SETS = "gemmascope.sweep-set.1"
_EARLIER_FORMATS = ("gemmascope.sweep.1", "gemmascope.sweep.2")

# A grid of more cells than this, and of a thousand times as many as the sweep has, is damage. 2**24 cells are 128 MB.
_MAX_CELLS = 2**24

_WHAT_TO_DO = "Run the sweep again into another file, or take the file from a copy"


class SweepNumbers(Protocol):
    """The parts of a SweepResult, or of several grids, that a file holds. values: of each pair, or of each grid and pair."""

    @property
    def question(self) -> SweepMetadata | SetQuestion: ...
    @property
    def values(self) -> Array | Sequence[Array]: ...
    @property
    def base_metric(self) -> Array: ...
    @property
    def source_metric(self) -> Array: ...
    @property
    def finished(self) -> Array: ...


def opened(line: bytes, previous: str, name: str) -> tuple[Line, str]:
    """The content of a line, and its checksum. SweepError, with the line's name, if it is not as it was written."""
    return open_line(line, previous, name, error=SweepError, advice=_WHAT_TO_DO)


# -- the first line --


@dataclass(frozen=True)
class Head:
    """The first line of a file. question: the sweep's metadata. saved: how many cells SweepResult.save wrote."""

    question: dict[str, object]
    n_pairs: int
    saved: int | None = None

    @classmethod
    def of(cls, result: SweepNumbers, saved: int | None = None) -> Head:
        return cls(asdict(result.question), len(result.values), saved)

    def as_line(self) -> Line:
        file_format = FORMAT_OF_SETS if "grids" in self.question else FORMAT
        line = {"format": file_format, "n_pairs": self.n_pairs, "question": self.question}
        return line if self.saved is None else {**line, "saved": self.saved}


def read_head(line: bytes, path: Path) -> tuple[Head, str]:
    """A file's first line, and its checksum. SweepError if it is not a sweep's."""
    content: object
    if is_sealed(line):
        content, checksum = opened(line, "", f"line 1 of {path}")
    else:
        try:
            content, checksum = parse_json(line, path, error=SweepError, finite=False), ""
        except SweepError as error:
            raise SweepError(f"{path} is not a sweep that can be read: {error}") from error
    file_format = content.get("format") if isinstance(content, dict) else None
    if file_format in _EARLIER_FORMATS:
        raise SweepError(
            f"{path} was written by gemmascope 0.1 (format {file_format}), whose lines have no checksums and whose "
            "fingerprints of models saw a part of the weights: run the sweep again, into another file"
        )
    if not isinstance(content, dict) or file_format not in (FORMAT, FORMAT_OF_SETS):
        raise SweepError(f"{path} is not a sweep of this version of gemmascope (format {FORMAT})")
    if not checksum:
        raise SweepError(f"line 1 of {path} is damaged: it has no checksum. {_WHAT_TO_DO}")
    if fault := _fault_of_set(content) if file_format == FORMAT_OF_SETS else _fault(content):
        raise SweepError(f"{path} is not a sweep that can be read: {fault}")
    return Head(content["question"], content["n_pairs"], content.get("saved")), checksum


def _fault_of_set(head: Line) -> str | None:
    """As _fault, for several grids, of which each has as many pairs."""
    question, n_rows, saved = head.get("question"), head.get("n_pairs"), head.get("saved", 0)
    grids = question.get("grids") if isinstance(question, dict) else None
    if (
        not isinstance(question, dict)
        or not isinstance(grids, list)
        or not grids
        or not _is_count(n_rows)
        or not _is_count(saved)
    ):
        return "it has no question"
    names = [question.get("sites"), question.get("metrics")]
    if not all(isinstance(listed, list) and all(isinstance(name, str) for name in listed) for listed in names):
        return "its question's sites and metrics are no lists of texts"
    if n_rows % len(grids) or len(grids) != math.prod(len(listed) or 1 for listed in names if isinstance(listed, list)):
        return f"its question has {len(grids)} grids, which do not fit its sites, metrics and pairs"
    faults = (_fault({"question": grid, "n_pairs": n_rows // len(grids)}) for grid in grids)
    return next(filter(None, faults), None)


def _fault(head: Line) -> str | None:
    """Why a first line cannot be a sweep's; None if it can. Checked before memory is taken for the cells."""
    question, n_pairs, saved = head.get("question"), head.get("n_pairs"), head.get("saved", 0)
    if not _is_count(n_pairs) or n_pairs < 1 or not _is_count(saved):
        return f"n_pairs is a whole number from 1; it has {n_pairs!r}"
    if not isinstance(question, dict):
        return "it has no question"
    for name in ("model", "fingerprint", "site", "metric", "into", "code", "digest"):
        if not isinstance(question.get(name), str):
            return f"its question's {name} is no text"
    for name, allowed in (("kinds", ("local", "global")), ("tokens", None)):
        texts = question.get(name)
        if not isinstance(texts, list) or not all(isinstance(x, str) and (not allowed or x in allowed) for x in texts):
            return f"its question's {name} are no list of texts"
    if question["into"] not in ("clean", "corrupt") or not isinstance(question.get("has_source"), bool):
        return "its question does not say which run is patched"
    if not isinstance(question.get("estimate"), (str, type(None))):
        return "its question's estimate is no text"
    return _grid_fault(question, n_pairs, len(question["kinds"]), len(question["tokens"]))


def _grid_fault(question: Line, n_pairs: int, n_layers: int, n_pos: int) -> str | None:
    axes, n_cells = question.get("axes"), question.get("n_cells")
    if not isinstance(axes, dict) or not axes or not _is_count(n_cells):
        return "its question has no axes, or no number of cells"
    sizes = {"layer": n_layers, **dict.fromkeys(("pos", "q_pos", "k_pos"), n_pos)}
    for name, numbers in axes.items():
        size = sizes.get(name, 2**20)  # the file does not say how many heads the model has
        if not isinstance(numbers, list) or not numbers or not all(_is_count(n) and n < size for n in numbers):
            return f"the numbers along its axis {name[:40]!r} are not those of a grid"
        if len(set(numbers)) < len(numbers):
            return f"its axis {name[:40]!r} has a number twice"
    total = n_pairs * math.prod(map(len, axes.values()))
    if n_cells > total or (total > _MAX_CELLS and total > 1000 * n_cells):
        return f"{n_pairs:,} pairs make {total:,} cells, and it says that {n_cells:,} have a value"
    return None


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and value >= 0


# -- the cells --


def cells_line(result: SweepNumbers, cells: list[tuple[int, int]]) -> Line:
    """Cells, (pair, number), with their metric, and the baselines of their pairs."""
    pairs = sorted({pair for pair, _ in cells})
    return {
        "cells": [[pair, number, float(result.values[pair].flat[number])] for pair, number in cells],
        "baselines": [[pair, float(result.base_metric[pair]), float(result.source_metric[pair])] for pair in pairs],
    }


def fill(result: SweepNumbers, line: Line, name: str) -> None:
    """Fill a result with the cells of a line. SweepError, with the line's name, for cells that are not of its grid."""
    try:
        for pair, number, value in _cells(line.get("cells"), [of_pair.size for of_pair in result.values]):
            present = result.values[pair].flat[number]
            if math.isnan(value) or not (math.isnan(present) or present == value):
                raise ValueError(f"cell {number} of pair {pair} is NaN, or there twice with two metrics")
            result.values[pair].flat[number] = value
        for pair, base, source in _baselines(line.get("baselines")):
            result.base_metric[pair], result.source_metric[pair] = base, source
    except (ValueError, KeyError, TypeError, IndexError, OverflowError, GemmascopeError) as error:
        raise SweepError(f"{name} is damaged: {error}. {_WHAT_TO_DO}") from error


def _cells(cells: object, sizes: Sequence[int]) -> Iterator[tuple[int, int, float]]:
    """The cells of a line: the number of their pair, their own, and their metric. sizes: how many cells each pair has."""
    if not isinstance(cells, list):
        raise ValueError("it has no cells")
    for cell in cells:
        if not isinstance(cell, list) or len(cell) != 3:
            raise ValueError("a cell is not a pair, a number and a metric")
        pair, number, value = cell
        if not _is_count(pair) or not _is_count(number) or pair >= len(sizes) or number >= sizes[pair]:
            raise ValueError(f"it names cell {number!r:.40} of pair {pair!r:.40}, and there are {sizes[0]} of {len(sizes)}")
        if type(value) not in (int, float):
            raise ValueError(f"the metric of cell {number} is {value!r:.40}")
        yield pair, number, float(value)


def _baselines(baselines: object) -> Iterator[tuple[int, float, float]]:
    if not isinstance(baselines, list):
        raise ValueError("it has no baselines")
    for pair, base, source in baselines:
        if not _is_count(pair) or not all(type(x) in (int, float) for x in (base, source)):
            raise ValueError(f"a baseline is {[pair, base, source]!r:.60}")
        yield pair, base, source
