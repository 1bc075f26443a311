"""The lines of a journal: JSON, each with a checksum of itself and of the lines before it.

A line that was changed, left out, doubled or moved is thus seen. The first says what was asked, the others hold cells.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from gemmascope.errors import GemmascopeError, SweepError
from gemmascope.files.json_reader import parse_json

if TYPE_CHECKING:
    from gemmascope.sweeps.result import SweepResult

FORMAT = "gemmascope.sweep.3"
_EARLIER = ("gemmascope.sweep.1", "gemmascope.sweep.2")

_SEALED = re.compile(rb'(\{.*), "sum": "([0-9a-f]{16})"\}', re.DOTALL)

# More cells than this, and a thousand times as many as the sweep says it has, were never laid out. 2**24 cells are 128 MB.
_MOST_CELLS = 2**24


def sealed(content: dict[str, Any], before: str) -> tuple[bytes, str]:
    """A line with its newline, and its checksum. before: the checksum of the line before; "" for the first."""
    text = json.dumps(content)
    found = _sum(text.encode(), before)
    return f'{text[:-1]}, "sum": "{found}"}}\n'.encode(), found


def opened(line: bytes, before: str, where: str) -> tuple[dict[str, Any], str]:
    """What a line says, and its checksum. SweepError, with where, for a line that is not as it was written."""
    found = _SEALED.fullmatch(line.removesuffix(b"\r"))  # a file that went through Windows
    if found is None or _sum(found[1] + b"}", before) != found[2].decode():
        raise SweepError(f"{where} is damaged: its checksum does not fit. {_DO}")
    content = parse_json(found[1] + b"}", where, error=SweepError, finite=False)
    return dict(content), found[2].decode()


_DO = "Run the sweep again into another file, or take the file from a copy"


def _sum(text: bytes, before: str) -> str:
    return hashlib.sha256(before.encode() + text).hexdigest()[:16]


# -- the first line --


def about_of(line: bytes, path: Path) -> tuple[dict[str, Any], str]:
    """What was asked, as a file's first line says it, and the line's checksum. SweepError if that is no sweep's."""
    if line.removesuffix(b"\r").endswith(b'"}') and _SEALED.fullmatch(line.removesuffix(b"\r")):
        about, found = opened(line, "", f"line 1 of {path}")
    else:
        try:
            about, found = parse_json(line, path, error=SweepError, finite=False), ""
        except SweepError as error:
            raise SweepError(f"{path} is not a sweep that can be read: {error}") from error
    kind = about.get("format") if isinstance(about, dict) else None
    if kind in _EARLIER:
        raise SweepError(
            f"{path} was written by gemmascope 0.1 (format {kind}), whose lines have no checksums and whose fingerprints of "
            "models saw a part of the weights: run the sweep again, into another file"
        )
    if kind != FORMAT:
        raise SweepError(f"{path} is not a sweep of this version of gemmascope (format {FORMAT})")
    if not found:
        raise SweepError(f"line 1 of {path} is damaged: it has no checksum. {_DO}")
    if why := _unlike(about):
        raise SweepError(f"{path} is not a sweep that can be read: {why}")
    return about, found


def _unlike(about: dict[str, Any]) -> str | None:
    """Why what was asked cannot have been asked; None if it can. Looked at before room is made for the cells."""
    question, n_pairs, saved = about.get("question"), about.get("n_pairs"), about.get("saved", 0)
    if not _is_count(n_pairs) or n_pairs < 1 or not _is_count(saved):
        return f"n_pairs is a whole number from 1; it has {n_pairs!r}"
    if not isinstance(question, dict):
        return "it has no question"
    for name in ("model", "fingerprint", "site", "metric", "into", "code", "digest"):
        if not isinstance(question.get(name), str):
            return f"its question's {name} is no text"
    for name, allowed in (("kinds", ("local", "global")), ("tokens", None)):
        listed = question.get(name)
        if not isinstance(listed, list) or not all(isinstance(x, str) and (not allowed or x in allowed) for x in listed):
            return f"its question's {name} are no list of texts"
    if question["into"] not in ("clean", "corrupt") or not isinstance(question.get("has_source"), bool):
        return "its question does not say which run is patched"
    if not isinstance(question.get("estimate"), (str, type(None))):
        return "its question's estimate is no text"
    return _unlike_grid(question, n_pairs)


def _unlike_grid(question: dict[str, Any], n_pairs: int) -> str | None:
    axes, n_cells = question.get("axes"), question.get("n_cells")
    if not isinstance(axes, dict) or not axes or not _is_count(n_cells):
        return "its question has no axes, or no number of cells"
    ends = {"layer": len(question["kinds"]), **dict.fromkeys(("pos", "q_pos", "k_pos"), len(question["tokens"]))}
    for name, numbers in axes.items():
        end = ends.get(name, 2**20)  # heads: how many there are stands nowhere
        if not isinstance(numbers, list) or not numbers or not all(_is_count(n) and n < end for n in numbers):
            return f"the numbers along its axis {name[:40]!r} are not those of a grid"
        if len(set(numbers)) < len(numbers):
            return f"its axis {name[:40]!r} has a number twice"
    size = n_pairs * math.prod(map(len, axes.values()))
    if n_cells > size or (size > _MOST_CELLS and size > 1000 * n_cells):
        return f"{n_pairs:,} pairs make {size:,} cells, and it says that {n_cells:,} have a value"
    return None


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and value >= 0


# -- the cells --


def cells_line(result: SweepResult, cells: list[tuple[int, int]]) -> dict[str, Any]:
    """Cells, (pair, number), with their metric, and the baselines of their pairs."""
    pairs = sorted({pair for pair, _ in cells})
    return {
        "cells": [[pair, number, float(result.values[pair].flat[number])] for pair, number in cells],
        "baselines": [[pair, float(result.base_metric[pair]), float(result.source_metric[pair])] for pair in pairs],
    }


def fill(result: SweepResult, line: dict[str, Any], where: str) -> None:
    """Fill a result with what a line says. SweepError for cells that are not of its grid."""
    try:
        for pair, number, value in _triples(line.get("cells"), len(result.values), result.values[0].size):
            there = result.values[pair].flat[number]
            if math.isnan(value) or not (math.isnan(there) or there == value):
                raise ValueError(f"cell {number} of pair {pair} is NaN, or there twice with two metrics")
            result.values[pair].flat[number] = value
        for pair, base, source in line["baselines"]:
            if not _is_count(pair) or not all(type(x) in (int, float) for x in (base, source)):
                raise ValueError(f"a baseline is {[pair, base, source]!r:.60}")
            result.base_metric[pair], result.source_metric[pair] = base, source
    except (ValueError, KeyError, TypeError, IndexError, OverflowError, GemmascopeError) as error:
        raise SweepError(f"{where} is damaged: {error}. {_DO}") from error


def _triples(cells: Any, n_pairs: int, size: int) -> Iterator[tuple[int, int, float]]:
    if not isinstance(cells, list):
        raise ValueError("it has no cells")
    for cell in cells:
        if not isinstance(cell, list) or len(cell) != 3:
            raise ValueError("a cell is not a pair, a number and a metric")
        pair, number, value = cell
        if not _is_count(pair) or not _is_count(number) or pair >= n_pairs or number >= size:
            raise ValueError(f"it names cell {number!r:.40} of pair {pair!r:.40}, and there are {size} of {n_pairs}")
        if type(value) not in (int, float):
            raise ValueError(f"the metric of cell {number} is {value!r:.40}")
        yield pair, number, float(value)
