"""Damaged journals: a changed line is an error that names it; the cells of a missing end are run again."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import model, prompt

import gemmascope as gs
from gemmascope.errors import SweepError
from gemmascope.memory import limits as memory_module
from gemmascope.sweeps.journal import Journal
from gemmascope.sweeps.journal_lines import opened, sealed
from gemmascope.sweeps.result import SweepResult


def metric(logits: Any) -> Any:
    return logits[:, 5] - logits[:, 9]


def sweep(out: Path | None, **arguments: Any) -> SweepResult:
    return gs.sweep(
        prompt(5), prompt(5, seed=1), metric, **{"site": "resid_pre", "model": model("lg"), "out": out, **arguments}
    )


@pytest.fixture(autouse=True)
def small_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small passes, so that a journal has several lines."""
    monkeypatch.setattr(memory_module, "RESIDENT_ROWS", 6)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    sweep(tmp_path / "s.json")
    assert (tmp_path / "s.json").read_bytes().count(b"\n") > 3
    return tmp_path / "s.json"


def outcome_of_reading(data: bytes, path: Path, complete: SweepResult) -> str:
    """ "whole", "part" (with a warning), or "refused" with the file's name."""
    path.write_bytes(data)
    try:
        with _catching() as caught:
            result = gs.open_sweep(path)
    except SweepError as error:
        assert str(path) in str(error)  # noqa: PT017
        return "refused"
    assert np.array_equal(result.values[result.finished], complete.values[result.finished])
    assert result.question == complete.question
    return "whole" if result.finished.all() else "warned" if caught else "part"


def _catching() -> Any:
    import warnings

    context = warnings.catch_warnings(record=True)

    class Catching:
        def __enter__(self) -> Any:
            caught = context.__enter__()
            warnings.simplefilter("always")
            return caught

        def __exit__(self, *exception: Any) -> None:
            context.__exit__(*exception)

    return Catching()


def test_a_flipped_bit_anywhere_is_noticed(out: Path) -> None:
    complete, data = gs.open_sweep(out), out.read_bytes()
    draw, outcomes = random.Random(0), {"refused": 0, "warned": 0, "whole": 0, "part": 0}
    for _ in range(500):
        damaged = bytearray(data)
        damaged[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        outcomes[outcome_of_reading(bytes(damaged), out, complete)] += 1
    assert outcomes["refused"] > 480  # but for the last newline, without which the last line counts as cut off
    assert outcomes["part"] == 0


def test_a_sweep_resumes_from_a_file_cut_anywhere(out: Path) -> None:
    complete, data = gs.open_sweep(out), out.read_bytes()
    lines = [at + 1 for at, byte in enumerate(data) if byte == 10]
    for length in sorted({*range(1, len(data), 211), *lines[::2], lines[1] - 1}):
        out.write_bytes(data[:length])
        resumed = sweep(out)
        assert np.allclose(resumed.values, complete.values, atol=1e-5), length
        assert gs.open_sweep(out).finished.all()


def test_reading_a_cut_file_warns(out: Path) -> None:
    complete, data = gs.open_sweep(out), out.read_bytes()
    lines = [at + 1 for at, byte in enumerate(data) if byte == 10]
    for length in range(lines[0] + 1, len(data), 29):
        outcome = outcome_of_reading(data[:length], out, complete)
        assert outcome == ("part" if length in lines else "warned"), length
    complete.save(out)
    saved = out.read_bytes()
    assert outcome_of_reading(saved[: saved.index(b"\n") + 1], out, complete) == "warned"  # it says how many cells it had


CHANGES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "a line twice": lambda lines: [*lines[:2], lines[1], *lines[2:]],
    "the last line twice": lambda lines: [*lines, lines[-1]],
    "the first line twice": lambda lines: [lines[0], *lines],
    "a line left out": lambda lines: [lines[0], *lines[2:]],
    "two lines exchanged": lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
    "the first line at the end": lambda lines: [*lines[1:], lines[0]],
    "an empty line": lambda lines: [*lines[:2], b"", *lines[2:]],
    "a lost minus": lambda lines: [lines[0], lines[1].replace(b"-", b"", 1), *lines[2:]],
    "bytes that are no UTF-8, far in": lambda lines: [*lines[:-1], b"\xff" * 10_000, lines[-1]],
    "deep JSON": lambda lines: [*lines, b"[" * 200_000],
    "deep JSON first": lambda lines: [b"[" * 200_000, *lines],
    "a line without its checksum": lambda lines: [*lines, b'{"cells": [], "baselines": []}'],
}


@pytest.mark.parametrize("name", CHANGES)
def test_lines_that_were_changed_moved_or_lost_are_refused_by_name(name: str, out: Path) -> None:
    lines = out.read_bytes().splitlines()
    out.write_bytes(b"\n".join(CHANGES[name](lines)) + b"\n")
    for read in (lambda: gs.open_sweep(out), lambda: sweep(out)):
        with pytest.raises(SweepError, match=r"line \d of .*s.json is damaged|s.json is not a sweep"):
            read()


def test_a_file_with_windows_line_ends_is_read_alike(out: Path) -> None:
    complete = gs.open_sweep(out)
    out.write_bytes(out.read_bytes().replace(b"\n", b"\r\n"))
    assert np.array_equal(gs.open_sweep(out).values, complete.values)
    assert np.array_equal(sweep(out).values, complete.values)


ABOUT: dict[str, list[Any]] = {
    "n_pairs": [0, -1, 9.0, True, None, "1", [], 10**13, 10**400],
    "question": [None, [], {}, "x"],
    "format": [None, 3, "gemmascope.sweep.9"],
    "saved": [None, -1, "x"],
    "question.kinds": [None, [], ["local"], ["x", "y"], [1, 2], "ll"],
    "question.tokens": [None, [], ["a"], [1, 2, 3, 4, 5]],
    "question.axes": [None, {}, [], {"layer": [0, 1], "pos": [0, 99]}, {"layer": [0, 0], "pos": [1]}, {"layer": 3},
                      {"layer": [-1], "pos": [0]}, {"layer": ["0"], "pos": [0]}, {"layer": [], "pos": [0]}],
    "question.n_cells": [None, -1, "x", 10**9],
    "question.model": [None, 3],
    "question.into": ["both", None],
    "question.has_source": [None, 1],
    "question.estimate": [3, []],
    "question.more": [1],
}  # fmt: skip
LINES: list[Any] = [
    [[0, -1, 1.0]], [[-1, 0, 1.0]], [[0, 99, 1.0]], [[1, 0, 1.0]], [[0, [1], 1.0]], [["0", 0, 1.0]], [[True, 0, 1.0]],
    [[0, 0, "x"]], [[0, 0, None]], [[0, 0, True]], [[0, 0, float("nan")]], [[0, 0]], [0], None, "x", {"a": 1},
    [[0, 0, 1.0], [0, 0, 2.0]], [[0, 0, 10**400]],
]  # fmt: skip


def resealed(out: Path, change: Callable[[list[Any]], None]) -> None:
    """Rewrites the file with a change and with checksums that match the changed lines."""
    previous, contents = "", []
    for line in out.read_bytes().splitlines():
        content, previous = opened(line, previous, "a line")
        contents.append(content)
    change(contents)
    previous, lines = "", b""
    for content in contents:
        line, previous = sealed(content, previous)
        lines += line
    out.write_bytes(lines)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in ABOUT.items() for value in values])
def test_bad_metadata_is_refused_even_with_a_right_checksum(name: str, value: Any, out: Path) -> None:
    def change(contents: list[Any]) -> None:
        *path, last = name.split(".")
        (contents[0][path[0]] if path else contents[0])[last] = value

    resealed(out, change)
    with pytest.raises(SweepError, match=r"s\.json"):
        gs.open_sweep(out)


@pytest.mark.parametrize("cells", LINES, ids=lambda cells: json.dumps(cells)[:30])
def test_bad_cells_are_refused_even_with_a_right_checksum(cells: Any, out: Path) -> None:
    resealed(out, lambda contents: contents.__setitem__(slice(1, None), [{"cells": cells, "baselines": []}]))
    for read in (lambda: gs.open_sweep(out), lambda: sweep(out)):
        with pytest.raises(SweepError, match=r"line 2 of .*s.json is damaged"):
            read()


@pytest.mark.parametrize(
    "baselines", [None, 3, [[0, 1.0]], [[-1, 0.0, 0.0]], [[5, 0.0, 0.0]], [[0, "x", 0.0]], [["0", 0.0, 0.0]]]
)
def test_bad_baselines_are_refused_even_with_a_right_checksum(baselines: Any, out: Path) -> None:
    resealed(out, lambda contents: contents[1].__setitem__("baselines", baselines))
    with pytest.raises(SweepError, match=r"line 2 of .*s.json is damaged"):
        gs.open_sweep(out)


# -- two at a time, and a disk that fills --


def test_a_file_that_another_sweep_writes_to_is_refused_and_the_other_goes_on(tmp_path: Path) -> None:
    refused: list[str] = []
    inside: list[int] = []

    def second(logits: Any) -> Any:
        if not inside and (tmp_path / "s").exists():
            inside.append(1)
            try:
                gs.sweep(prompt(5), prompt(5, seed=1), second, site="resid_pre", model=model("lg"), out=tmp_path / "s")
            except SweepError as error:
                refused.append(str(error))
        return metric(logits)

    result = gs.sweep(prompt(5), prompt(5, seed=1), second, site="resid_pre", model=model("lg"), out=tmp_path / "s")
    assert refused == [f"another sweep is writing to {tmp_path / 's'}: let it end, or give another file"]
    assert np.array_equal(gs.open_sweep(tmp_path / "s").values, result.values)


@pytest.mark.parametrize("how", ["removed", "replaced", "written to"])
def test_a_file_that_changes_during_a_sweep_stops_it(how: str, tmp_path: Path) -> None:
    path = tmp_path / "s"

    def meddling(logits: Any) -> Any:
        if path.exists() and path.read_bytes().count(b"\n") == 2:
            if how == "written to":
                with path.open("ab") as file:
                    file.write(b"nonsense")
            else:
                path.unlink()
            if how == "replaced":
                path.write_bytes(b"another")
        return metric(logits)

    reason = {"removed": "was removed", "replaced": "another file was put", "written to": "something else wrote"}[how]
    with pytest.warns(gs.GemmascopeWarning, match=f"{path} stopped at .* of 10 cells: .*{reason}"):
        result = gs.sweep(prompt(5), prompt(5, seed=1), meddling, site="resid_pre", model=model("lg"), out=path)
    assert 0 < result.finished.sum() < 10


@pytest.mark.parametrize("n_written", [0, 10])
def test_a_full_disk_stops_a_sweep_that_can_be_resumed(
    n_written: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """n_written: how many bytes of the line the disk still takes."""
    out, complete = tmp_path / "s.json", sweep(None)
    append = Journal._append

    def filling(journal: Journal, line: bytes) -> None:
        class Full:
            calls = 0

            def write(self, data: bytes) -> int:
                self.calls += 1
                if n_written and self.calls == 1:
                    return int(file.write(data[:n_written]))
                raise OSError(28, "No space left on device")

            def __getattr__(self, name: str) -> Any:
                return getattr(file, name)

        file: Any = journal._file
        if out.read_bytes().count(b"\n") == 3:
            journal._file = Full()  # type: ignore[assignment]
        append(journal, line)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "_append", filling)
        with pytest.warns(gs.GemmascopeWarning, match=f"{out} stopped at . of 10 cells: the disk is full") as warned:
            part = sweep(out)
    assert warned[0].filename == __file__
    assert 0 < part.finished.sum() < 10
    assert np.allclose(part.values[part.finished], complete.values[part.finished], atol=1e-5)
    in_file = gs.open_sweep(out)
    assert f"stopped at {in_file.finished.sum()} of" in str(warned[0].message)
    assert 0 < in_file.finished.sum() < part.finished.sum()
    assert np.allclose(sweep(out).values, complete.values, atol=1e-5)
    assert gs.open_sweep(out).finished.all()


def test_a_limit_on_the_size_of_files_stops_a_sweep_that_can_be_resumed(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    out, complete = tmp_path / "s.json", sweep(tmp_path / "whole")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "whole").stat().st_size - 150, old[1]))
    try:
        with pytest.warns(gs.GemmascopeWarning, match="stopped at . of 10 cells: File too large"):
            sweep(out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert out.read_bytes().endswith(b"\n")
    assert 0 < gs.open_sweep(out).finished.sum() < 10
    assert np.allclose(sweep(out).values, complete.values, atol=1e-5)


def test_a_file_keeps_its_mode_and_a_link_its_target(tmp_path: Path) -> None:
    (tmp_path / "s").touch(0o600)
    os.chmod(tmp_path / "s", 0o600)
    (tmp_path / "link").symlink_to("s")
    sweep(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
    assert gs.open_sweep(tmp_path / "s").finished.all()
