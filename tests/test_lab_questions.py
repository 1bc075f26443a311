"""Questions of a patching lab: going back to earlier ones, undo, other tokens, other pairs, and labs in files."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import model, prompt
from pieces import worded

import gemmascope as gs
from gemmascope.errors import LabError, PromptError, SweepError
from gemmascope.labs.patching import jobs
from gemmascope.labs.patching.experiment import Experiment
from gemmascope.labs.patching.menus import late_handlers_of
from gemmascope.labs.patching.session import LabSession
from gemmascope.labs.patching.state import state_of
from gemmascope.views.sweep import EXACT

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
N_POS = 7


def lab(**settings: Any) -> LabSession:
    return LabSession(prompt(N_POS), prompt(N_POS, seed=1), 5, 9, model=model(), **settings)


def worded_lab(**settings: Any) -> gs.PatchingLab:
    return gs.patching_lab(CLEAN, CORRUPT, " Mary", " John", worded(), **settings)


def marks(session: LabSession) -> np.ndarray[Any, Any]:
    cells = session.cell_grid()
    assert cells is not None
    return cells.marks


# -- going back --


def test_going_back_to_earlier_settings_finds_its_cells(layers_read: list[int]) -> None:
    session = lab()
    first = session.run("row", 1).effect.values.copy()
    session.set(site="z")
    session.run("cell", 0, 0)
    session.set(site="resid_pre", by=("layer", "pos"))
    assert (marks(session)[1] == EXACT).all()
    session.wait()
    layers_read.clear()
    assert np.array_equal(session.run("row", 1).effect.values, first, equal_nan=True)
    assert layers_read == [], "nothing runs again"
    assert [one.settings.site for one in session.experiments()] == ["z", "resid_pre"], "the present one is the last"
    session.reopen(0)
    assert session.settings.site == "z"
    assert marks(session)[0, 0] == EXACT
    with pytest.raises(SweepError, match="there are 2 experiments with numbers; given 2"):
        session.reopen(2)


def test_undo_goes_back_one_change_at_a_time() -> None:
    session = lab()
    with pytest.raises(SweepError, match="there is nothing to undo"):
        session.undo()
    session.set(site="z")
    session.set(into="clean")
    session.set(into="clean")  # changes nothing, so there is nothing of it to take back
    session.undo()
    assert (session.settings.site, session.settings.into) == ("z", "corrupt")
    session.undo()
    assert (session.settings.site, session.can_undo) == ("resid_pre", False)


def test_a_finished_grid_does_not_say_that_its_prompts_are_to_be_run() -> None:
    session = lab()
    session.run()
    session.set(layers="local")
    session.set(layers="all")  # its runs were let go of, and its baselines are known
    grid = state_of(session)["grid"]
    assert isinstance(grid, dict)
    assert "still to be run" not in grid["note"]


def test_two_runs_are_laid_beside_each_other() -> None:
    session = lab()
    session.run("row", 1)
    session.set(layers="global")
    session.run("row", 0)
    session.lay_beside(0)
    assert [run["compared"] for run in state_of(session)["runs"]] == [True, False]  # type: ignore[attr-defined]
    session.lay_beside(None)
    assert session.compared is None


# -- tokens and pairs --


def test_a_token_is_swapped_for_another() -> None:
    with worded_lab() as opened:
        opened.swap_token(10, clean="Mary", corrupt="John")  # it keeps its space
        assert (opened.settings.clean, opened.settings.corrupt) == (CORRUPT, CLEAN)
        with pytest.raises(PromptError, match="' Mary John' is 2"):
            opened.swap_token(10, clean="Mary John")
        with pytest.raises(SweepError):
            opened.swap_token(99, clean="Mary")
        assert (opened.settings.clean, opened.settings.corrupt) == (CORRUPT, CLEAN), "a refused token changes nothing"
        opened.undo()
        assert (opened.settings.clean, opened.settings.corrupt) == (CLEAN, CORRUPT)


@pytest.mark.nano
def test_next_pair_draws_pairs_of_a_family_that_fit_the_model() -> None:
    with gs.patching_lab(CLEAN, CORRUPT, " Mary", " John") as opened:
        drawn = []
        for _ in range(3):
            opened.next_pair("ioi")
            drawn.append(opened.settings.clean)
            assert opened.can_run
        assert len(set(drawn)) == 3
        with pytest.raises(SweepError, match="a family"):
            opened.next_pair("iou")


def test_a_click_made_while_a_prompt_is_typed_is_answered_on_the_new_grid() -> None:
    with worded_lab() as opened:
        opened.wait()
        opened.set(corrupt=CORRUPT.replace("Mary and John", "John and Mary"))
        late = late_handlers_of(opened)["click"]
        late({"row": 1, "column": 12})
        opened.wait()
        assert marks(opened)[1, 12] == EXACT
        late({"row": 1, "column": 99})  # a place that the new grid does not have
        opened.wait()


def test_a_click_waits_for_the_new_grid_however_long_that_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    ready = threading.Event()

    def slow_experiment(*args: Any) -> Experiment:
        assert ready.wait(30)
        return Experiment(*args)

    with worded_lab() as opened:
        opened.wait()
        monkeypatch.setattr(jobs, "Experiment", slow_experiment)
        opened.set(corrupt=CORRUPT.replace("Mary and John", "John and Mary"))
        late_handlers_of(opened)["click"]({"row": 1, "column": 12})
        assert opened.experiment is None, "the page was answered before the grid was there"
        ready.set()
        opened.wait()
        assert marks(opened)[1, 12] == EXACT


# -- files --


def test_a_lab_is_saved_and_opened_with_all_its_runs(tmp_path: Path, layers_read: list[int]) -> None:
    path = tmp_path / "lab.json"
    with worded_lab() as saved:
        first = saved.run("row", 1).effect.values.copy()
        saved.run("estimate")
        estimates = saved.cell_grid().estimate  # type: ignore[union-attr]
        saved.set(site="z")
        second = saved.run("cell", 1, 0).effect.values.copy()
        saved.save(path)
    with gs.open_patching_lab(path, model=worded()) as opened:
        assert opened.settings == saved.settings
        opened.wait()
        layers_read.clear()
        assert np.array_equal(opened.run("cell", 1, 0).effect.values, second, equal_nan=True)
        opened.reopen(0)
        opened.wait()
        layers_read.clear()
        assert np.array_equal(opened.run("row", 1).effect.values, first, equal_nan=True)
        assert layers_read == [], "no cell runs again"
        np.testing.assert_allclose(opened.cell_grid().estimate, estimates)  # type: ignore[union-attr]


def test_a_lab_keeps_its_runs_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    with worded_lab(session=path) as first:
        first.run("row", 2)
    with worded_lab(session=path) as second:
        assert (marks(second)[2] == EXACT).all()


def test_a_file_that_is_no_lab_of_this_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lab.json"
    with worded_lab() as saved:
        saved.run("cell", 1, 12)
        saved.save(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    with pytest.raises(LabError, match="whose numbers are others"):
        gs.open_patching_lab(path, model=model())
    damaged = {
        "is not a patching lab": {**content, "format": "other"},
        "a part of the patching lab is missing": {**content, "runs": [{}]},
        "do not fill its grid": {**content, "runs": [{**content["runs"][0], "values": content["runs"][0]["values"][:0]}]},
        "is not the one of its settings": {**content, "runs": [{**content["runs"][0], "digest": "0"}]},
    }
    for message, broken in damaged.items():
        path.write_text(json.dumps(broken), encoding="utf-8")
        with pytest.raises(LabError, match=message):
            gs.open_patching_lab(path, model=worded())
        with worded_lab() as untouched:
            with pytest.raises(LabError, match=message):
                untouched.open(path)
            assert untouched.experiments() == []
    path.write_text("{", encoding="utf-8")
    with pytest.raises(LabError):
        gs.open_patching_lab(path, model=worded())
    with pytest.raises(LabError, match="cannot be read"):
        gs.open_patching_lab(tmp_path / "none.json", model=worded())
