"""Journals: an interrupted sweep resumes where it stopped, and the file of another sweep is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import model, prompt
from reference import error
from torch import Tensor

import gemmascope as gs
from gemmascope.errors import SweepError
from gemmascope.memory import limits as memory_module
from gemmascope.model.model import Model
from gemmascope.sweeps.journal import Journal
from gemmascope.sweeps.journal_lines import FORMAT, sealed
from gemmascope.sweeps.result import SweepResult
from gemmascope.sweeps.running import runner as runner_module
from gemmascope.sweeps.variants import final_residuals

CLOSE = 1e-5
N_POS = 7


class Metric:
    """A metric that records the size of each batch, and raises an interrupt after some."""

    __name__ = "patient"

    def __init__(self, stop_after: int | None = None) -> None:
        self.batch_sizes: list[int] = []
        self.stop_after = stop_after

    def __call__(self, logits: Tensor) -> Tensor:
        self.batch_sizes.append(len(logits))
        if self.stop_after is not None and len(self.batch_sizes) > self.stop_after:
            raise KeyboardInterrupt
        return logits[:, 5] - logits[:, 9]


def sweep(out: Path | None, metric: Any = None, **arguments: Any) -> SweepResult:
    plain: dict[str, Any] = {"site": "resid_pre", "by": ("layer", "pos"), "model": model()}
    clean, corrupt = prompt(N_POS), prompt(N_POS, seed=1)
    return gs.sweep(clean, corrupt, metric or Metric(), out=out, **{**plain, **arguments})


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of variants of each pass. Passes are small: about ten rows."""
    sizes: list[int] = []

    def counting(m: Model, bases: Any, variants: Any, sources: Any, *rest: Any) -> Any:
        sizes.append(len(variants))
        return final_residuals(m, bases, variants, sources, *rest)

    monkeypatch.setattr(runner_module, "final_residuals", counting)
    monkeypatch.setattr(memory_module, "RESIDENT_ROWS", 10)
    return sizes


def interrupted(out: Path | None, **arguments: Any) -> SweepResult:
    """A sweep stopped in its second chunk: after three trials, the source, a base and cells of the first."""
    with pytest.warns(UserWarning, match=r"interrupted: \d+ of 21 cells finished; the other cells are NaN"):
        return sweep(out, Metric(stop_after=7), **arguments)


def test_an_interrupted_sweep_keeps_its_finished_cells(runs: list[int]) -> None:
    complete = sweep(None)
    runs.clear()
    part = interrupted(None)
    assert len(runs) == 2
    assert part.finished.sum() == runs[0] > 0
    assert np.array_equal(part.values[part.finished], complete.values[part.finished])
    assert np.array_equal(np.isnan(part.effect.values), ~part.finished[0])
    assert part.progress_text() == f"{runs[0]} of 21 cells finished"
    assert f"{runs[0]} of 21 cells finished" in repr(part)
    assert part.clean == complete.clean
    assert part.corrupt == complete.corrupt


def test_an_interrupt_leaves_the_model_as_it_was(runs: list[int]) -> None:
    before, weights = gs.trace(prompt(N_POS), model=model()).logits, {n: p.clone() for n, p in named().items()}
    interrupted(None)
    assert torch.equal(gs.trace(prompt(N_POS), model=model()).logits, before)
    assert all(torch.equal(weights[name], p) for name, p in named().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model().network.modules())


def named() -> dict[str, Tensor]:
    return dict(model().network.named_parameters())


def test_an_interrupt_before_the_first_chunk_leaves_no_cell(runs: list[int], tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="interrupted: 0 of 21 cells finished"):
        s = sweep(tmp_path / "s.json", Metric(stop_after=3))
    assert len(runs) == 1  # the first pass was made, and its cells were not yet measured
    assert np.isnan(s.values).all()
    assert "0 of 21 cells finished" in repr(s)
    assert error(sweep(tmp_path / "s.json").values, sweep(None).values) <= CLOSE


def test_a_second_call_runs_only_the_missing_cells(runs: list[int], tmp_path: Path) -> None:
    out = tmp_path / "s.json"
    complete = sweep(None)
    runs.clear()
    part = interrupted(out)
    done = int(part.finished.sum())
    assert gs.open_sweep(out).finished.sum() == done
    runs.clear()
    metric = Metric()
    resumed = sweep(out, metric)
    assert sum(runs) == 21 - done
    assert sum(metric.batch_sizes) == 4 + len(runs) + 21 - done  # the trials, the base in every chunk, the cells
    assert error(resumed.values, complete.values) <= CLOSE
    assert np.array_equal(resumed.values[part.finished], part.values[part.finished])
    assert error(resumed.base_metric, complete.base_metric) <= CLOSE
    runs.clear()
    assert np.array_equal(sweep(out).values, resumed.values)
    assert runs == []
    assert np.array_equal(gs.open_sweep(out).values, resumed.values)


def test_a_sweep_of_pairs_resumes_where_it_stopped(runs: list[int], tmp_path: Path) -> None:
    pairs = [prompt(N_POS, seed=s) for s in (0, 1, 2)], [prompt(N_POS, seed=s) for s in (3, 4, 5)]
    arguments: dict[str, Any] = {"site": "z", "by": ("layer", "head"), "head": [0, 5], "model": model()}
    complete = gs.sweep(*pairs, Metric(), **arguments)
    with pytest.warns(UserWarning, match="interrupted"):
        part = gs.sweep(*pairs, Metric(stop_after=17), out=tmp_path / "s.json", **arguments)
    assert 0 < part.finished.sum() < 18
    assert np.isnan(part.effect.values).any()
    resumed = gs.sweep(*pairs, Metric(), out=tmp_path / "s.json", **arguments)
    assert error(resumed.values, complete.values) <= CLOSE
    assert error(resumed.stderr.values, complete.stderr.values) <= CLOSE
    assert error(gs.open_sweep(tmp_path / "s.json").effect.values, complete.effect.values) <= CLOSE


def test_an_error_in_a_chunk_keeps_those_before_it(runs: list[int], tmp_path: Path) -> None:
    class Failing(Metric):
        def __call__(self, logits: Tensor) -> Tensor:
            if len(self.batch_sizes) == 6:
                raise RuntimeError("out of memory")
            return super().__call__(logits)

    with pytest.raises(RuntimeError, match="out of memory"):
        sweep(tmp_path / "s.json", Failing())
    assert gs.open_sweep(tmp_path / "s.json").finished.sum() == runs[0]


@pytest.mark.parametrize("cut", [1, 2, 30])
def test_a_truncated_last_line_loses_its_cells_only(cut: int, runs: list[int], tmp_path: Path) -> None:
    """cut: how many characters a crash left out. With 1 only the newline is missing."""
    out = tmp_path / "s.json"
    complete = sweep(out)
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join(lines)[:-cut])
    with pytest.warns(gs.GemmascopeWarning, match=f"the end of {out} is missing"):
        torn = gs.open_sweep(out)
    last = len(json.loads(lines[-1])["cells"])
    assert torn.finished.sum() == 21 - last
    runs.clear()
    resumed = sweep(out)
    assert sum(runs) == last
    assert error(resumed.values, complete.values) <= CLOSE
    assert out.read_text().splitlines()[:-1] == [line.rstrip("\n") for line in lines[:-1]]
    assert np.array_equal(gs.open_sweep(out).values, resumed.values)


def test_a_first_line_without_its_newline_is_accepted(runs: list[int], tmp_path: Path) -> None:
    out = tmp_path / "s.json"
    sweep(out)
    out.write_text(out.read_text().splitlines()[0])
    assert gs.open_sweep(out).finished.sum() == 0
    resumed = sweep(out)
    assert np.array_equal(gs.open_sweep(out).values, resumed.values)
    assert resumed.finished.all()


class Crash(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("before", [None, ""])
def test_a_crash_in_the_first_line_leaves_the_file_unchanged(before: str | None, tmp_path: Path, monkeypatch: Any) -> None:
    out = tmp_path / "s.json"
    if before is not None:
        out.touch()
    content = out.read_bytes() if out.exists() else None
    begin = Journal._append

    class Torn:
        """A file that takes ten bytes, and then the process ends."""

        def __init__(self, file: Any) -> None:
            self.file, self.calls = file, 0

        def write(self, data: bytes) -> int:
            self.calls += 1
            if self.calls > 1:
                raise Crash
            return int(self.file.write(data[:10]))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    def crash(journal: Any, line: bytes) -> None:
        journal._file = Torn(journal._file)
        begin(journal, line)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "_append", crash)
        with pytest.raises(Crash):
            sweep(out)
    assert (out.read_bytes() if out.exists() else None) == content
    assert sweep(out).finished.all()
    assert [path.name for path in tmp_path.iterdir()] == ["s.json"]


@pytest.mark.parametrize("n_bytes", [1, 100])
def test_a_partial_first_line_of_a_killed_process_is_rewritten(n_bytes: int, tmp_path: Path) -> None:
    out = tmp_path / "s.json"
    sweep(out)
    out.write_bytes(out.read_bytes()[:n_bytes])
    assert sweep(out).finished.all()
    assert gs.open_sweep(out).finished.all()


def test_an_empty_file_is_used_as_a_new_one(tmp_path: Path) -> None:
    out = tmp_path / "s.json"
    out.touch()
    s = sweep(out)
    assert s.finished.all()
    assert np.array_equal(gs.open_sweep(out).values, s.values)


def test_a_journal_is_json(tmp_path: Path) -> None:
    out = tmp_path / "s.json"
    s = sweep(out)
    about, *chunks = [json.loads(line) for line in out.read_text().splitlines()]
    assert about["question"]["site"] == "resid_pre"
    assert [cell for chunk in chunks for cell in chunk["cells"]] == [[0, i, x] for i, x in enumerate(s.values.flat)]


# -- files of something else --

OTHER: list[tuple[Callable[[Path], Any], str]] = [
    (lambda out: sweep(out, site="resid_post"), r"another sweep \(site: 'resid_post' there, 'resid_pre' here\): give"),
    (lambda out: sweep(out, into="clean"), "holds another sweep .*into: 'clean' there, 'corrupt' here"),
    (lambda out: sweep(out, metric=gs.logit_diff(5, 9)), r"metric: 'gs.logit_diff\(5, 9\)' there, 'patient' here"),
    (lambda out: sweep(out, pos=[1, 2]), r"holds another sweep \(axes: \{'layer': \[0, 1, 2\], 'pos': \[1, 2\]\} there"),
    (lambda out: sweep(out, by=("pos", "layer")), "holds another sweep"),
    (lambda out: sweep(out, window=2), "holds another sweep .*window=2"),
    (lambda out: sweep(out, edits=[gs.ablate("z", layer=1)]), "holds another sweep .*gs.ablate"),
    (lambda out: sweep(out, model=model(seed=1)), "holds another sweep .*fingerprint"),
    (lambda out: gs.sweep(prompt(N_POS, seed=2), prompt(N_POS, seed=1), Metric(), site="resid_pre", model=model(), out=out),
     "holds another sweep"),
    (lambda out: gs.sweep([prompt(N_POS)], [prompt(N_POS, seed=1)], Metric(), site="resid_pre", model=model(), out=out),
     "holds another sweep"),
    (lambda out: out.write_text("a page of notes\n"), "s.json is not a sweep that can be read"),
    (lambda out: out.write_text('{"format": "gemmascope.sweep.0"}\n'), "not a sweep of this version .*gemmascope.sweep.3"),
    (lambda out: out.write_text("[1, 2]\n"), "not a sweep that can be read: it does not begin as one"),
    (lambda out: out.write_bytes(b"\x80\x81\n"), "s.json is not a sweep that can be read"),
    (lambda out: out.mkdir(), "s.json is not a sweep that can be read"),
]  # fmt: skip


@pytest.mark.parametrize(("write", "message"), OTHER, ids=[message[:60] for _, message in OTHER])
def test_a_file_of_something_else_is_refused_and_left_as_it_is(write: Any, message: str, tmp_path: Path) -> None:
    out = tmp_path / "s.json"
    write(out)
    before = out.read_bytes() if out.is_file() else None
    with pytest.raises(SweepError, match=message):
        sweep(out)
    assert (out.read_bytes() if out.is_file() else None) == before


def test_edits_with_different_numbers_make_different_sweeps(tmp_path: Path) -> None:
    """Too many numbers to be printed: their digests differ."""
    sweep(tmp_path / "s.json", edits=[gs.add("resid_post", torch.ones(32), layer=0)])
    with pytest.raises(
        SweepError, match=r"another sweep \(other prompts or edits, or a function .*\): give another file, or remove"
    ):
        sweep(tmp_path / "s.json", edits=[gs.add("resid_post", torch.ones(32) * 2, layer=0)])


def weigh(logits: Tensor) -> Tensor:
    return logits[:, 5] - logits[:, 9]


def other_weigh(logits: Tensor) -> Tensor:
    return logits[:, 5] - logits[:, 8]


other_weigh.__name__ = "weigh"


def test_functions_with_one_name_and_different_code_make_different_sweeps(runs: list[int], tmp_path: Path) -> None:
    """A metric and an edit of the base: the file holds their names, and the digest covers their code."""
    message = "other prompts or edits, or a function with other code"
    first = sweep(tmp_path / "metric.json", weigh)
    assert np.array_equal(sweep(tmp_path / "metric.json", weigh).values, first.values)
    with pytest.raises(SweepError, match=message):
        sweep(tmp_path / "metric.json", other_weigh)

    def halved(factor: float) -> Any:
        return gs.edit("z", lambda value: value * factor, layer=0)

    first = sweep(tmp_path / "edit.json", edits=[halved(0.5)])
    assert np.array_equal(sweep(tmp_path / "edit.json", edits=[halved(0.5)]).values, first.values)
    with pytest.raises(SweepError, match=message):
        sweep(tmp_path / "edit.json", edits=[halved(0.25)])
    with pytest.raises(SweepError, match="holds another sweep"):
        sweep(tmp_path / "edit.json")


def test_metrics_relative_to_different_runs_make_different_sweeps(tmp_path: Path) -> None:
    """Two runs that print alike because their edits are too large to be printed."""
    runs = [gs.trace(prompt(4), model=model(), edits=[gs.add("z", torch.full((8, 12), x), layer=0)]) for x in (1.0, 2.0)]
    first = sweep(tmp_path / "s.json", gs.kl_from(runs[0]))
    assert np.array_equal(sweep(tmp_path / "s.json", gs.kl_from(runs[0])).values, first.values)
    with pytest.raises(SweepError, match="holds another sweep"):
        sweep(tmp_path / "s.json", gs.kl_from(runs[1]))


@pytest.mark.parametrize("how", ["mean", "mean_by_pos"])
def test_means_over_different_runs_make_different_sweeps(how: str, tmp_path: Path) -> None:
    """References too long to be printed, and one of another model: their digests differ."""

    def mean_sweep(*prompts: list[int], reference_model: Model | None = None, edits: Any = ()) -> SweepResult:
        reference = [gs.trace(ids, model=reference_model or model(), edits=edits) for ids in prompts * 20]
        arguments: dict[str, Any] = {"ablate": how, "reference": reference, "site": "z", "by": "head", "model": model()}
        return gs.sweep(prompt(N_POS), None, Metric(), out=tmp_path / "s.json", **arguments)

    one, two = prompt(N_POS, seed=1), prompt(N_POS, seed=2)
    first = mean_sweep(one, two, edits=[gs.add("resid_pre", torch.ones(32), layer=0)])
    assert np.array_equal(mean_sweep(one, two, edits=[gs.add("resid_pre", torch.ones(32), layer=0)]).values, first.values)
    for change in ({}, {"edits": [gs.add("resid_pre", -torch.ones(32), layer=0)]}, {"reference_model": model(seed=1)}):
        with pytest.raises(SweepError, match="holds another sweep"):
            mean_sweep(one, two, **change)
    with pytest.raises(SweepError, match="holds another sweep"):
        mean_sweep(one, prompt(N_POS, seed=3), edits=[gs.add("resid_pre", torch.ones(32), layer=0)])


def resealed(content: dict[str, Any]) -> str:
    """A line with a checksum that matches its content."""
    return sealed(content, "")[0].decode().rstrip()


DAMAGE: list[tuple[Callable[[list[str]], list[str]], str]] = [
    (lambda lines: [lines[0], lines[1][:40], *lines[2:]], "line 2 of .*s.json is damaged"),
    (lambda lines: [lines[0], "7", *lines[1:]], "line 2 of .*s.json is damaged"),
    (lambda lines: [lines[0], '{"cells": [[0, 99, 1.0]], "baselines": []}', *lines[1:]], "line 2 of .*s.json is damaged"),
    (lambda lines: [lines[0], '{"cells": [[4, 0, 1.0]], "baselines": []}'], "line 2 of .*s.json is damaged"),
    (lambda lines: [lines[0], '{"cells": [[0, 0, "x"]], "baselines": []}'], "line 2 of .*s.json is damaged"),
    (lambda lines: [resealed({"format": FORMAT, "n_pairs": 1, "question": {}})], "is not a sweep that can be read"),
    (lambda lines: [resealed({"format": FORMAT})], "is not a sweep that can be read"),
    (lambda lines: [json.dumps({"format": FORMAT})], "line 1 of .*s.json is damaged"),
    (
        lambda lines: ['{"format": "gemmascope.sweep.2", "n_pairs": 1}'],
        "written by gemmascope 0.1 .*run the sweep again",
    ),
    (lambda lines: [lines[0][:50]], "is not a sweep that can be read"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_a_damaged_file_is_refused(damage: Any, message: str, runs: list[int], tmp_path: Path) -> None:
    out = tmp_path / "s.json"
    sweep(out)
    out.write_text("\n".join(damage(out.read_text().splitlines())) + "\n")
    with pytest.raises(SweepError, match=message):
        gs.open_sweep(out)


def test_a_missing_or_unwritable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match=r"is not a sweep that can be read: .*No such file"):
        gs.open_sweep(tmp_path / "none.json")
    with pytest.raises(SweepError, match=r"cannot write .*none.s.json: there is no folder .*none: make it first"):
        sweep(tmp_path / "none" / "s.json")


# -- saving --


def test_a_saved_result_is_read_back_equal(tmp_path: Path) -> None:
    for s in (sweep(None), sweep(None, site="pattern", by=("head", "q_pos", "k_pos"), head=[1], layer=0)):
        s.save(tmp_path / "s.json")
        again = gs.open_sweep(tmp_path / "s.json")
        assert again.question == s.question
        assert np.array_equal(again.values, s.values, equal_nan=True)
        assert again.effect.identical(s.effect)
        assert (again.clean, again.corrupt, again.code(), repr(again)) == (s.clean, s.corrupt, s.code(), repr(s))
        assert [path.name for path in tmp_path.iterdir()] == ["s.json"]


def test_an_ablation_and_a_part_of_a_sweep_are_saved(runs: list[int], tmp_path: Path) -> None:
    part = interrupted(None)
    part.save(tmp_path / "part.json")
    assert np.array_equal(gs.open_sweep(tmp_path / "part.json").values, part.values, equal_nan=True)
    resumed = sweep(tmp_path / "part.json")  # and a sweep goes on from what was saved
    assert resumed.finished.all()
    ablated = gs.sweep(prompt(5), None, Metric(), site="z", by="head", ablate=0.0, model=model())
    ablated.save(tmp_path / "ablated.json")
    again = gs.open_sweep(tmp_path / "ablated.json")
    assert again.effect.identical(ablated.effect)
    with pytest.raises(SweepError, match="an ablation has no corrupted run"):
        again.corrupt  # noqa: B018
