"""Journals: the finished cells of a sweep in a file, as they come. JSON, one line for the question and one a chunk.

A line that a crash cut off is left out on reading; its cells are run again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemmascope.errors import SweepError
from gemmascope.replacing import replacing

if TYPE_CHECKING:
    from gemmascope.run.result import SweepResult

FORMAT = "gemmascope.sweep.2"


class Journal:
    """Where finished cells are written; nowhere, if there is no file."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    @classmethod
    def open(cls, path: str | Path | None, result: SweepResult) -> Journal:
        """A new file, or the file of the same sweep, whose finished cells are read. SweepError for another sweep's."""
        if path is None:
            return cls(None)
        path = Path(path)
        if path.exists() and path.stat().st_size:
            _check_same(path, result)
            read_cells(path, result)
            _drop_torn_line(path)
            return cls(path)
        try:
            _put(path, json.dumps(_about(result)) + "\n")
        except OSError as error:
            raise SweepError(f"{path} cannot be written: {error}") from error
        return cls(path)

    def write(self, result: SweepResult, cells: Sequence[tuple[int, int]]) -> None:
        """Append these cells, (pair, number), and the baselines of their pairs."""
        if self.path is None or not cells:
            return
        pairs = sorted({pair for pair, _ in cells})
        line = {
            "cells": [[pair, number, float(result.values[pair].flat[number])] for pair, number in cells],
            "baselines": [[pair, float(result.base_metric[pair]), float(result.source_metric[pair])] for pair in pairs],
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


NOWHERE = Journal(None)


def read_about(path: str | Path) -> dict[str, Any]:
    """The question that a file's sweep answers. SweepError if the file is no sweep."""
    try:
        with Path(path).open(encoding="utf-8") as file:
            about = json.loads(file.readline())
    except (OSError, ValueError) as error:
        raise SweepError(f"{path} is not a sweep that can be read: {error}") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT or not {"question", "n_pairs"} <= about.keys():
        raise SweepError(f"{path} is not a sweep of this version of gemmascope (format {FORMAT})")
    return about


def read_cells(path: str | Path, result: SweepResult) -> None:
    """Fill a result with the finished cells of a file."""
    *lines, _torn = Path(path).read_text(encoding="utf-8").split("\n")  # a whole line ends in a newline
    for at, line in enumerate(lines[1:], start=2):
        if not _take(line, result):
            raise SweepError(f"line {at} of {path} is damaged")


def _take(line: str, result: SweepResult) -> bool:
    """Fill a result with what a line says; False if it cannot be read."""
    try:
        found = json.loads(line)
        for pair, number, value in found["cells"]:
            result.values[pair].flat[number] = value
        for pair, base, source in found["baselines"]:
            result.base_metric[pair], result.source_metric[pair] = base, source
    except (ValueError, KeyError, TypeError, IndexError):
        return False
    return True


def _about(result: SweepResult) -> dict[str, Any]:
    return {"format": FORMAT, "n_pairs": len(result.values), "question": asdict(result.question)}


def _check_same(path: Path, result: SweepResult) -> None:
    there, here = read_about(path), json.loads(json.dumps(_about(result)))
    if there == here:
        return
    differing = [k for k, v in here["question"].items() if there["question"].get(k) != v and k != "digest"]
    said = "; ".join(f"{k}: {there['question'].get(k)!r} there, {here['question'][k]!r} here" for k in differing[:3])
    said = said or "other prompts or edits, or a function with other code"
    raise SweepError(f"{path} holds another sweep ({said}): give another file, or remove this one")


def _drop_torn_line(path: Path) -> None:
    """Drop a last line that was cut off, so that the next one stands on its own."""
    whole, newline, torn = path.read_text(encoding="utf-8").rpartition("\n")
    if not newline:  # the first line, which could be read: only its end is missing
        _put(path, torn + "\n")
    elif torn:
        _put(path, whole + "\n")


def _put(path: Path, text: str) -> None:
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")
