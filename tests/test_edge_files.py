"""Edge scores and faithfulness curves go on from a file after kills, to the same numbers; files that are refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_edges import LAYOUTS, METRIC, clean_and_corrupt, model

import gemmascope as gs
from gemmascope.circuits.edges import exact, faithfulness, scores
from gemmascope.circuits.edges.journal import RunsFile, ScoresFile
from gemmascope.circuits.edges.result import EdgeScores
from gemmascope.errors import GemmascopeWarning, SweepError

PAIRS = [clean_and_corrupt(seed) for seed in range(3)]
CLEANS, CORRUPTS = (list(side) for side in zip(*PAIRS, strict=True))
ASKED: dict[str, dict[str, Any]] = {
    "exact": {"method": "exact"},
    "each position": {"method": "exact", "positions": [3, 4]},
    "ablated": {"method": "exact", "ablate": 0.0},
    "eap": {"method": "eap"},
    "eap-ig": {"method": "eap-ig", "steps": 2},
    "relp": {"method": "relp"},
}


def scored(kind: str = "exact", **more: Any) -> EdgeScores:
    asked = {"model": model(*LAYOUTS[2]), **ASKED[kind], **more}
    corrupt = None if "ablate" in asked else CORRUPTS
    return gs.edge_scores(asked.pop("clean", CLEANS), corrupt, asked.pop("metric", METRIC), progress=False, **asked)


def require_same(found: EdgeScores, whole: EdgeScores) -> None:
    """Every number of two results is the same, bit for bit."""
    for name in ("values", "base_metric", "source_metric"):
        assert np.array_equal(getattr(found, name), getattr(whole, name), equal_nan=True), name
    assert found.asked == whole.asked


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets the pass of this number, from now on, end as a kill would end it. Passes are small."""
    left: list[Any] = [10**9, RuntimeError("killed")]

    def mortal(run: Any) -> Any:
        def runs(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise left[1]
            return run(*args, **kwargs)

        return runs

    for module, name in ((exact, "final_residuals"), (scores, "estimated"), (faithfulness, "measure_circuits")):
        monkeypatch.setattr(module, name, mortal(getattr(module, name)))
    monkeypatch.setattr(scores, "rows_within", lambda memory, _: 150 if memory is None else 40)
    monkeypatch.setattr(faithfulness, "_rows", lambda _: 20)

    def at(n: int, error: BaseException | None = None) -> None:
        left[:] = n, error or RuntimeError("killed")

    return at


@pytest.mark.parametrize("kind", ASKED)
def test_scores_go_on_after_kills(kind: str, tmp_path: Path, killed: Callable[..., None], monkeypatch: Any) -> None:
    """Killed within a pass, or with the file cut at any byte, scores end as those of a call that ran through."""
    whole, draw, path = scored(kind), random.Random(kind), tmp_path / "edges"
    n_saved = []
    for n_kills in range(5):
        killed(draw.randint(2, 4))
        with suppress(RuntimeError):
            scored(kind, out=path)
        content = path.read_bytes()
        n_saved.append(content.count(b"\n"))
        least = 0 if n_kills < 3 else content.index(b"\n") + 1  # a file without a first line is begun anew
        path.write_bytes(content[: draw.randint(least, len(content)) if n_kills % 2 == 0 else len(content)])
    assert max(n_saved) > 1
    killed(10**9)
    monkeypatch.setattr(scores, "rows_within", lambda memory, _: 70)  # the passes stay as they were begun
    require_same(scored(kind, out=path), whole)
    again = path.read_bytes()
    killed(1)  # nothing is left to compute
    require_same(scored(kind, out=path), whole)
    assert path.read_bytes() == again


def test_another_memory_changes_the_rounding_only(tmp_path: Path, killed: Callable[..., None]) -> None:
    path = tmp_path / "edges"
    whole = scored()
    killed(4)
    with pytest.raises(RuntimeError, match="killed"):
        scored(out=path)
    killed(10**9)
    n_lines = len(path.read_bytes().splitlines())
    other = scored(out=path, memory="1MiB")
    assert np.allclose(other.values, whole.values, atol=1e-4, equal_nan=True)
    assert len(path.read_bytes().splitlines()) > 3 * n_lines


def test_an_interrupt_keeps_what_is_finished(tmp_path: Path, killed: Callable[..., None]) -> None:
    for kind in ("exact", "eap"):
        path = tmp_path / kind
        killed(3, KeyboardInterrupt())
        with pytest.warns(GemmascopeWarning, match=r"interrupted: \d+ of 330 edges have a score; the others are NaN"):
            part = scored(kind, out=path)
        assert 0 < np.isfinite(part.values).sum() < 330
        assert "scores of 110 edges" in repr(part)
        killed(10**9)
        require_same(scored(kind, out=path), scored(kind))


def test_a_full_disk_ends_the_scores_with_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, path, append = scored("eap"), tmp_path / "edges", ScoresFile._append

    def full(file: ScoresFile, line: bytes) -> None:
        if len(path.read_bytes()) > 3000:
            raise OSError(28, "No space left on device")
        append(file, line)

    with monkeypatch.context() as patch:
        patch.setattr(ScoresFile, "_append", full)
        with pytest.warns(GemmascopeWarning, match=r"takes no more scores: the disk is full.*with 220 of 330 edges"):
            scored("eap", out=path)
    require_same(scored("eap", out=path), whole)


def weigh(logits: Any) -> Any:
    return 2 * logits[:, 3] - logits[:, 4]


def test_files_of_other_questions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "edges"
    scored("eap", out=path)
    before = path.read_bytes()
    for match, asked in {
        "method: 'eap' there, 'relp' here": {"method": "relp"},
        "into: 'clean' there, 'corrupt' here": {"into": "corrupt"},
        "axis: '' there, 'pos' here": {"positions": "each"},
        "metric: .* there, 'weigh' here": {"metric": weigh},
        "other prompts, positions": {"clean": [CLEANS[0], CLEANS[2], CLEANS[1]]},
        "ablate: None there, 0.0 here": {"ablate": 0.0},
        "fingerprint: ": {"model": model("lgl", 4, 2, 2)},
    }.items():
        with pytest.raises(SweepError, match=f"holds edge scores of another question .*{match}.*give another file"):
            scored("eap", out=path, **asked)
    assert path.read_bytes() == before
    for content, match in {
        b"some text": "is no file that out= of gs.edge_scores wrote",
        before.replace(b'"into": "clean"', b'"into": "other"'): "line 1 of .* is damaged",
        before.replace(b"\n", b"\n{}\n", 1): "line 2 of .* is damaged",
    }.items():
        path.write_bytes(content)
        with pytest.raises(SweepError, match=match):
            scored("eap", out=path)
        assert path.read_bytes() == content
    with pytest.raises(SweepError, match="it is a folder; name a file in it"):
        scored(out=tmp_path)
    with pytest.raises(SweepError, match="path"):
        scored(out=3)
    path.unlink()
    file = ScoresFile()
    file.start(path)
    with pytest.raises(SweepError, match="another scoring of edges is writing to"):
        scored("eap", out=path)
    file.close()


def test_references_of_a_mean_are_part_of_the_question(tmp_path: Path) -> None:
    path, m = tmp_path / "edges", model(*LAYOUTS[2])
    scored("eap", out=path, ablate="mean", reference=[gs.trace(CORRUPTS[0], model=m)])
    with pytest.raises(SweepError, match="other prompts, positions, edges or references"):
        scored("eap", out=path, ablate="mean", reference=[gs.trace(CORRUPTS[1], model=m)])


def curve(circuit: Any, out: Path | None = None, **more: Any) -> gs.Faithfulness:
    return gs.faithfulness(circuit, CLEANS, CORRUPTS, METRIC, model=model(*LAYOUTS[2]), out=out, **more)


def test_a_curve_goes_on_after_kills(tmp_path: Path, killed: Callable[..., None]) -> None:
    circuits, path, draw = scored("eap"), tmp_path / "curve", random.Random(4)
    whole = curve(circuits)
    for error in (RuntimeError("killed"), KeyboardInterrupt(), RuntimeError("killed"), RuntimeError("killed")):
        killed(draw.randint(2, 5), error)
        with pytest.raises(type(error)):
            curve(circuits, path)
        content = path.read_bytes()
        path.write_bytes(content[: draw.randint(len(content) // 2, len(content))])
    killed(10**9)
    found = curve(circuits, path)
    for name in ("values", "full", "empty"):
        assert np.array_equal(getattr(found, name), getattr(whole, name)), name
    killed(1)
    assert np.array_equal(curve(circuits, path).values, whole.values)


def test_curves_of_other_circuits_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    circuits, path = scored("eap"), tmp_path / "curve"
    whole = curve(circuits, path)
    before = path.read_bytes()
    with pytest.raises(SweepError, match=r"holds runs of circuits of another question \(sizes: .*give another file"):
        curve(circuits, path, sizes=[0.1, 1.0])
    with pytest.raises(SweepError, match="other prompts, positions, edges"):
        curve(circuits, path, magnitude=False)
    assert path.read_bytes() == before
    with pytest.raises(SweepError, match=r"is no file that out= of gs\.edge_scores wrote"):
        scored("eap", out=path)

    def full(file: RunsFile, line: bytes) -> None:
        raise OSError(28, "No space left on device")

    path.write_bytes(before.splitlines(True)[0])
    with monkeypatch.context() as patch:
        patch.setattr(RunsFile, "_append", full)
        with pytest.warns(GemmascopeWarning, match="takes no more runs: the disk is full.*The curve goes on without it"):
            assert np.array_equal(curve(circuits, path).values, whole.values)
