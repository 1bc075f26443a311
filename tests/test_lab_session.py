"""The patching lab without a front end: its numbers are those of gs.sweep, in any order and from any thread."""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import model, prompt
from pieces import Pieces, worded
from reference import error

import gemmascope as gs
from gemmascope.errors import GemmascopeError, PromptError, SiteError, SweepError
from gemmascope.labs.patching import experiment as experiment_module
from gemmascope.labs.patching.align_tokens import aligned_data
from gemmascope.labs.patching.cell_grid import Part
from gemmascope.labs.patching.experiment import Experiment, Throughput
from gemmascope.labs.patching.session import LabSession
from gemmascope.labs.patching.settings import Settings, grids_of
from gemmascope.labs.session import Event
from gemmascope.labs.worker import Turns, turns_of
from gemmascope.memory import limits as memory_module
from gemmascope.model.model import Model
from gemmascope.sites import LAYER_SITES
from gemmascope.sweeps.cells import Cost, cost_of, pending_cells
from gemmascope.sweeps.sets.filling import Filling
from gemmascope.sweeps.spec import SweepSpec
from gemmascope.sweeps.sweep import SweepRunner, prepare
from gemmascope.tokens.tokenizer import Tokenizer
from gemmascope.values import Array
from gemmascope.views.sweep import ESTIMATED, EXACT, NOT_RUN, UNDER_WAY

CLOSE = 1e-5
N_POS = 7
CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"


def lab(m: Model | None = None, **settings: Any) -> LabSession:
    """A lab about two prompts of ids."""
    return LabSession(prompt(N_POS), prompt(N_POS, seed=1), 5, 9, model=m or model(), **settings)


def exact(m: Model | None = None, **settings: Any) -> np.ndarray[Any, Any]:
    """The effects that gs.sweep gives."""
    clean, corrupt = prompt(N_POS), prompt(N_POS, seed=1)
    effects = gs.sweep(
        clean, corrupt, gs.logit_diff(5, 9), model=m or model(), **{"site": "resid_pre", **settings}
    ).effect.values
    return np.asarray(effects)


def worded_lab(clean: Any = CLEAN, corrupt: Any = CORRUPT, answer: Any = " Mary", against: Any = " John") -> LabSession:
    return LabSession(clean, corrupt, answer, against, model=worded())


@pytest.fixture
def one_cell_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "RESIDENT_ROWS", 1)


# -- numbers --


@pytest.mark.parametrize("site", LAYER_SITES)
def test_a_lab_gives_the_numbers_of_a_sweep(site: str) -> None:
    for by in grids_of(site):
        session = lab(site=site, by=by)
        expected = exact(site=site, by=by)
        result = session.run()
        assert list(result.question.axes) == list(by)
        assert (np.isnan(expected) == np.isnan(result.effect.values)).all()
        cells = session.cell_grid()
        assert cells is not None
        # An effect is a difference of two metrics, so it is rounded as they are, however small it is.
        size = max(1.0, float(np.nanmax(np.abs(expected))))
        for values in (result.effect.values, cells.values):
            assert np.abs(np.nan_to_num(values) - np.nan_to_num(expected)).max() <= CLOSE * size
        assert (cells.marks == np.where(np.isnan(expected), NOT_RUN, EXACT)).all()


@pytest.mark.parametrize(
    "settings",
    [{"into": "clean"}, {"layers": "local"}, {"layers": "global"}, {"metric": "answer_prob"}, {"by": ("pos", "layer")}],
    ids=str,
)
def test_every_setting_is_that_of_a_sweep(settings: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {name: value for name, value in settings.items() if name in ("into", "by")}
    arguments |= {"layer": {"local": [0, 2], "global": [1]}[settings["layers"]]} if "layers" in settings else {}
    metric = gs.answer_prob(5) if "metric" in settings else gs.logit_diff(5, 9)
    expected = gs.sweep(prompt(N_POS), prompt(N_POS, seed=1), metric, site="mlp_out", model=model(), **arguments)
    session = lab(site="mlp_out", **settings)
    assert error(session.run().effect.values, expected.effect.values) <= CLOSE
    assert session.code() == expected.code()
    assert session.experiment is not None
    baselines = session.experiment.baselines
    assert baselines == {
        "clean": pytest.approx(expected.clean, rel=1e-5),
        "corrupt": pytest.approx(expected.corrupt, rel=1e-5),
    }


PARTS: list[tuple[str, Any, Any, Any]] = [
    ("cell", 1, 3, (slice(1, 2), slice(3, 4))),
    ("row", 2, None, (slice(2, 3), slice(None))),
    ("column", None, 0, (slice(None), slice(0, 1))),
    ("rectangle", (2, 1), (3, 5), (slice(1, 3), slice(3, 6))),
    ("all", None, None, (slice(None), slice(None))),
]


@pytest.mark.parametrize(("what", "row", "column", "place"), PARTS, ids=[part[0] for part in PARTS])
def test_parts_of_a_grid_fill_one_result(what: str, row: Any, column: Any, place: Any) -> None:
    expected, session = exact(), lab()
    session.run("cell", 0, 6)
    session.run(what, row, column)
    cells = session.cell_grid()
    assert cells is not None
    expected_cells = np.zeros((3, N_POS), bool)
    expected_cells[place] = True
    expected_cells[0, 6] = True
    assert ((cells.marks == EXACT) == expected_cells).all()
    assert (session.experiment.result.finished[0] == expected_cells).all()  # type: ignore[union-attr]
    assert error(cells.values[expected_cells], expected[expected_cells]) <= CLOSE
    assert np.isnan(cells.values[~expected_cells]).all()


def test_a_cell_is_run_once(one_cell_a_chunk: None) -> None:
    session = lab()
    session.run("row", 1)
    counted: list[int] = []
    session.listener = lambda event: counted.append(len(session.experiment.result.finished.nonzero()[0]))  # type: ignore[union-attr]
    session.run("rectangle", (0, 1), (0, 1))
    assert sorted(set(counted)) == [7, 8, 9]
    assert session.expected("row", 1) == (0, 0.0)
    assert session.expected("all")[0] == 12


def test_exact_numbers_replace_estimates() -> None:
    session = lab()
    estimated = gs.attribute(prompt(N_POS), prompt(N_POS, seed=1), gs.logit_diff(5, 9), site="resid_pre", model=model())
    assert error(session.run("estimate").effect.values, estimated.effect.values) <= CLOSE
    cells = session.cell_grid()
    assert cells is not None
    assert (cells.marks == ESTIMATED).all()
    session.run("row", 1)
    session.run("estimate")
    cells = session.cell_grid()
    assert cells is not None
    assert (cells.marks == [[ESTIMATED] * N_POS, [EXACT] * N_POS, [ESTIMATED] * N_POS]).all()
    assert error(cells.values[1], exact()[1]) <= CLOSE
    assert error(cells.values[[0, 2]], estimated.effect.values[[0, 2]]) <= CLOSE
    assert np.isnan(session.run("cell", 1, 1).effect.values[0]).all()  # the result holds what is exact, and no estimate


def test_edges_that_the_mask_hides_are_not_counted() -> None:
    session = lab(site="pattern", by=("q_pos", "k_pos"))
    session.wait()
    assert session.expected()[0] == N_POS * (N_POS + 1) // 2
    session.run("rectangle", (0, 1), (1, 6))
    cells = session.cell_grid()
    assert cells is not None
    assert (np.argwhere(cells.marks == EXACT) == [[1, 1]]).all()
    assert not (cells.marks == UNDER_WAY).any()


def test_a_kv_head_is_an_axis() -> None:
    assert lab(site="k").settings.by == ("layer", "kv_head")
    assert lab(site="k", by=("layer", "head")).settings.by == ("layer", "kv_head")
    assert lab(site="k").run().question.axes["kv_head"] == [0, 1, 2, 3]


# -- threads --


def test_a_cancel_ends_within_a_chunk_and_keeps_what_is_done(one_cell_a_chunk: None) -> None:
    session = lab()
    session.wait()
    kinds: list[str] = []

    def watch(event: dict[str, Any]) -> None:
        kinds.append(event["kind"])
        if session.experiment is not None and session.experiment.result.finished.sum() == 4:
            session.cancel()

    session.listener = watch
    job = session.start()
    assert job.ended.wait(30)
    assert session.experiment is not None
    assert session.experiment.result.finished.sum() == 4  # not one chunk more
    assert (session.experiment.cell_grid.marks == EXACT).sum() == 4
    assert not session.experiment.cell_grid.under_way.any()
    assert kinds[-1] == "cancelled"
    assert not session.is_busy
    session.listener = None
    assert error(session.run().effect.values, exact()) <= CLOSE  # and it goes on where it stopped


def test_a_click_goes_before_the_rest_of_a_long_job(one_cell_a_chunk: None) -> None:
    session = lab()
    session.wait()
    order: list[int] = []

    def watch(event: dict[str, Any]) -> None:
        assert session.experiment is not None
        done = np.flatnonzero(session.experiment.result.finished[0])
        order.extend(n for n in done if n not in order)
        if len(order) == 2 and not session.experiment.result.finished[0, 2, 6]:
            session.click(2, 6)

    session.listener = watch
    session.start()
    session.wait(30)
    assert order.index(2 * N_POS + 6) == 2
    assert len(order) == 3 * N_POS


def test_a_click_is_answered_in_the_callers_thread() -> None:
    session = lab()
    session.wait()
    threads: list[Any] = []
    session.listener = lambda event: threads.append((event["kind"], threading.current_thread()))
    session.experiment.throughput.row_layer = 1e-9  # type: ignore[union-attr]
    session.click(1, 2)
    assert threads == [(kind, threading.main_thread()) for kind in ("number", "detail", "done")]
    cells = session.cell_grid()
    assert cells is not None
    assert abs(cells.exact[1, 2] - exact()[1, 2]) <= 1e-4
    threads.clear()
    session.click(1, 2)  # there is nothing to do
    assert threads == []
    session.experiment.throughput.row_layer = 1.0  # type: ignore[union-attr]
    session.click(1, 3)  # it would take too long: the worker's
    session.wait(30)
    assert threading.main_thread() not in [thread for _, thread in threads]
    turns_of(model()).take_if_free()  # another lab is at work: the worker waits for its turn
    session.experiment.throughput.row_layer = 1e-9  # type: ignore[union-attr]
    session.click(1, 4)
    assert session.is_busy
    turns_of(model()).give_back()
    session.wait(30)
    cells = session.cell_grid()
    assert cells is not None
    assert (cells.marks[1, 2:5] == EXACT).all()


def test_results_for_older_settings_send_no_event(one_cell_a_chunk: None) -> None:
    session = lab()
    session.wait()
    events: list[tuple[int, str]] = []

    def watch(event: dict[str, Any]) -> None:
        events.append((event["seq"], event["kind"]))
        if event == {**event, "seq": 1, "kind": "cells"} and session.seq == 1 and len(events) > 2:
            session.set(into="clean")

    session.listener = watch
    older_job = session.start()
    assert older_job.ended.wait(30)
    session.wait(30)
    first = [seq for seq, _ in events].index(2)
    assert {seq for seq, _ in events[first:]} == {2}
    assert {seq for seq, _ in events[:first]} == {1}
    assert older_job.cancelled
    cells = session.cell_grid()
    assert cells is not None
    assert cells.is_blank
    assert session.settings.into == "clean"
    (stored,) = session.experiments()
    assert stored.settings.into == "corrupt"
    assert 0 < stored.result.finished.sum() < 3 * N_POS
    assert error(session.run().effect.values, exact(into="clean")) <= CLOSE
    assert [one.settings.into for one in session.experiments()] == ["corrupt", "clean"]


@pytest.mark.parametrize("what", ["estimate", "look"])
def test_a_step_that_ends_after_its_settings_changed_sends_no_event(what: str) -> None:
    session = lab()
    session.wait()
    for name in ("estimate", "run_baselines"):  # the settings change while its numbers are computed
        compute = getattr(session.experiment, name)
        setattr(session.experiment, name, lambda compute=compute: (session.set(into="clean"), compute())[1])
    events: list[tuple[int, str]] = []
    session.listener = lambda event: events.append((event["seq"], event["kind"]))
    older_job = session.start("estimate") if what == "estimate" else session.look(0, 0)
    assert older_job.ended.wait(30)
    session.wait(30)
    first = events.index((2, "settings"))
    assert {seq for seq, _ in events[first:]} == {2}
    assert {"prepared", "baselines"} < {kind for _, kind in events[first:]}
    assert session.detail is None
    assert session.cell_grid().is_blank  # type: ignore[union-attr]


def test_events_are_numbered() -> None:
    session = lab()
    events: list[dict[str, Any]] = []
    session.wait()
    session.listener = events.append
    session.run("row", 0)
    session.set(site="z")
    session.run("estimate")
    numbers = [event["number"] for event in events]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert [event["seq"] for event in events] == sorted(event["seq"] for event in events)


def test_two_labs_of_one_model_take_turns_and_give_the_numbers_of_sweeps(one_cell_a_chunk: None) -> None:
    labs = [lab(site=site) for site in ("resid_pre", "z")]
    turns: list[int] = []
    for i, one in enumerate(labs):
        one.wait()
        one.listener = lambda event, i=i: turns.append(i)
    jobs = [one.start() for one in labs]
    assert all(job.ended.wait(60) for job in jobs)
    for one in labs:
        expected = exact(site=one.settings.site, by=one.settings.by)
        assert error(one.experiment.result.effect.values, expected) <= CLOSE  # type: ignore[union-attr]
    changes = sum(a != b for a, b in itertools.pairwise(turns))
    assert changes > len(turns) / 3  # none of them goes through while the others wait


def test_turns_are_taken_in_the_order_of_the_requests() -> None:
    turns, order = Turns(), list[int]()
    assert turns.take_if_free()
    assert not turns.take_if_free()

    def wait(i: int) -> None:
        with turns.turn():
            order.append(i)

    threads = []
    for i in range(4):
        threads.append(threading.Thread(target=wait, args=(i,)))
        threads[-1].start()
        while len(turns._waiting) < i + 2:
            pass
    turns.give_back()
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3]


def test_the_callers_grad_mode_does_not_matter() -> None:
    modes: list[bool] = []

    def hear(event: Event) -> None:
        if event["kind"] in ("cells", "number"):
            modes.append(torch.is_grad_enabled())

    for mode in (torch.enable_grad, torch.no_grad):
        with mode():
            session = lab()
            session.wait()
            session.listener = hear
            session.experiment.throughput.row_layer = 1e-9  # type: ignore[union-attr]
            session.click(0, 0)
            estimated = session.run("estimate")
            assert np.isfinite(estimated.values).all()
            assert torch.is_grad_enabled() == (mode is torch.enable_grad)
    assert modes == [False] * len(modes)
    assert len(modes) >= 4


def test_labs_of_many_threads_can_be_read_while_they_work(one_cell_a_chunk: None) -> None:
    session, expected = lab(), exact()
    job = session.start()
    while not job.ended.is_set():
        cells = session.cell_grid()
        time.sleep(0.005)
        if cells is not None:
            is_exact = cells.marks == EXACT
            assert (is_exact == ~np.isnan(cells.values)).all()
            assert error(cells.values[is_exact], expected[is_exact]) <= CLOSE if is_exact.any() else True
    session.wait()


# -- errors --


def failing(session: LabSession, error: Exception) -> None:
    def fail(*_: Any) -> Iterator[Any]:
        raise error
        yield

    session.experiment.run_chunks = fail  # type: ignore[method-assign,union-attr,assignment]


def test_an_error_in_a_job_is_shown_and_raised_where_python_waits() -> None:
    session = lab()
    session.wait()
    kinds: list[str] = []
    session.listener = lambda event: kinds.append(event["kind"])
    failing(session, RuntimeError("no more memory"))
    session.start()
    with pytest.raises(RuntimeError, match="no more memory"):
        session.wait()
    assert "RuntimeError: no more memory" in (session.error or "")
    assert kinds[-1] == "error"
    session.wait()  # one event was sent
    failing(session, SweepError("take fewer cells"))
    with pytest.raises(SweepError, match="take fewer cells"):
        session.run("row", 0)
    assert session.error == "take fewer cells"
    assert not session.experiment.cell_grid.under_way.any()  # type: ignore[union-attr]
    session.set(into="clean")
    assert session.error is None
    assert error(session.run().effect.values, exact(into="clean")) <= CLOSE


def test_a_failing_listener_does_not_end_the_job(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: Any) -> None:
        raise RuntimeError("the page is gone")

    session = lab(listener=fail)
    assert error(session.run().effect.values, exact()) <= CLOSE
    assert "the page is gone" in caplog.text


def test_waiting_ends_after_its_timeout() -> None:
    session = lab()
    session.wait()
    with turns_of(model()).turn():
        with pytest.raises(SweepError, match=r"row 1 did not end within 0.01 s; it goes on: lab.wait\(\) or lab.cancel\(\)"):
            session.run("row", 1, timeout=0.01)
        with pytest.raises(SweepError, match=r"did not end within 0\.01 s"):
            session.wait(timeout=0.01)
        session.cancel()
    session.wait(30)
    assert session.cell_grid().is_blank  # type: ignore[union-attr]


BAD: list[tuple[Callable[[LabSession], Any], type[GemmascopeError], str]] = [
    (lambda x: x.run("cells"), SweepError, "what to run is one of 'all', 'row', .*, 'estimate'; given 'cells'"),
    (lambda x: x.run("cell", 3, 0), SweepError, "there is no row 3: the grid has 3, from 0 to 2"),
    (lambda x: x.run("cell", 0, -1), SweepError, "there is no column -1: the grid has 7, from 0 to 6"),
    (lambda x: x.run("cell", 0), SweepError, "column is a number, counted from 0 along the grid; given None"),
    (lambda x: x.run("rectangle", (0, 3), (0, 1)), SweepError, r"there is no row \(0, 3\)"),
    (lambda x: x.click(0, 7), SweepError, "there is no column 7"),
    (lambda x: x.look(9, 0), SweepError, "there is no row 9"),
    (lambda x: x.expected("row", 5), SweepError, "there is no row 5"),
    (lambda x: x.set(sit="z"), SweepError, "a lab has no setting 'sit'; it has clean, corrupt, answer, against, site"),
    (lambda x: x.set(site="zz"), SiteError, "there is no site 'zz'"),
    (lambda x: x.set(site="embed"), SweepError, "a lab's site is one of resid_pre, .*, of all layers; given 'embed'"),
    (lambda x: x.set(site="blocks.1.attn.hook_z"), SweepError, "of all layers; given 'blocks.1.attn.hook_z'"),
    (lambda x: x.set(by=("layer", "head")), SweepError, r"two axes of 'resid_pre', rows and columns: \('layer', 'pos'\)"),
    (lambda x: x.set(by="layer"), SweepError, "two axes of 'resid_pre'"),
    (lambda x: x.set(into="both"), SweepError, "into is one of 'corrupt', 'clean'; given 'both'"),
    (lambda x: x.set(layers="odd"), SweepError, "layers is one of 'all', 'local', 'global'; given 'odd'"),
    (lambda x: x.set(metric="rank"), SweepError, "metric is one of 'logit_diff', 'answer_prob', 'answer_logprob'; given"),
]  # fmt: skip


@pytest.mark.parametrize(("ask", "wrong", "message"), BAD, ids=[message[:40] for *_, message in BAD])
def test_bad_settings_are_refused_and_change_nothing(ask: Any, wrong: type[Exception], message: str) -> None:
    session = lab()
    session.wait()
    settings, seq = session.settings, session.seq
    with pytest.raises(wrong, match=message):
        ask(session)
    assert (session.settings, session.seq, session.is_busy) == (settings, seq, False)


def test_a_kind_of_layer_that_the_model_lacks_is_shown_and_raised() -> None:
    session = lab(model("gg"), layers="local")
    with pytest.raises(SweepError, match="'random' has no local layers: take all of them"):
        session.run()
    assert session.error == "'random' has no local layers: take all of them"
    assert not session.can_run
    session.set(layers="all")
    assert session.can_run
    assert error(session.run().effect.values, exact(model("gg"))) <= CLOSE


# -- what is looked at first --


@cache
def split_model() -> Model:
    """A model whose ' Maryanne' is two tokens, and whose 'Mary' is another token than ' Mary'."""
    pieces = ["When", " Mary", " and", " John", " went", "anne", "Mary", "John", " ", "\n"]
    return Model(worded().network, Tokenizer(Pieces(pieces), bos_id=2), "split")


GOOD: dict[str, Any] = {"clean": "When Mary went", "corrupt": "When John went", "answer": " Mary", "against": " John"}
CHECKS: list[tuple[dict[str, Any], list[tuple[str, str, str]]]] = [
    ({}, []),
    ({"clean": "When Mary went ", "corrupt": "When John went "}, [
        ("warning", "clean", "the prompt ends in ' ': Gemma's words bring their space, so after it none can .* Remove it"),
        ("warning", "corrupt", "the prompt ends in ' '")]),
    ({"clean": "When Mary went \n", "corrupt": "When John went \n"}, [
        ("warning", "clean", r"the prompt ends in ' \\n'"), ("warning", "corrupt", "the prompt ends in")]),
    ({"answer": "Mary"}, [("warning", "answer", "'Mary' has no space in front: after a word the model says ' Mary'")]),
    ({"answer": "Mary", "clean": "When Mary went ", "corrupt": "When John went "}, [
        ("warning", "clean", "ends in"), ("warning", "corrupt", "ends in")]),
    ({"against": " Maryanne"}, [
        ("error", "against", r"an answer is one token; ' Maryanne' is 2: \[' Mary', 'anne'\]")]),
    ({"answer": " When", "against": " anne"}, [
        ("error", "answer", "' When' is 2: .*; 'When' is one token: was that meant"), ("error", "against", "' anne' is 2")]),
    ({"answer": " John"}, [("error", "against", "the two answers are the same token: their difference is 0 everywhere")]),
    ({"answer": " John", "metric": "answer_prob"}, []),
    ({"answer": 99}, [("error", "answer", "token id 99 is outside the vocabulary")]),
    ({"corrupt": ""}, [("error", "corrupt", "the prompt is empty")]),
    ({"corrupt": "When Maryanne went"}, [
        ("error", "corrupt", r"have 4 and 5 tokens, and each position needs its partner. At position 2 the corrupted "
         r"prompt's ' Maryanne' splits into 2 tokens, \[' Mary', 'anne'\], where the other has 1, \[' Mary'\]: take a")]),
    ({"clean": "When Johnanne went", "corrupt": "When Mary went"}, [
        ("error", "corrupt", r"At position 2 the clean prompt's ' Johnanne' splits into 2 tokens, \[' John', 'anne'\], "
         r"where the other has 1, \[' Mary'\]")]),
    ({"corrupt": "When Mary went and John"}, [
        ("error", "corrupt", r"From position 4 on the corrupted prompt has \[' and', ' John'\] more: add as much")]),
    ({"corrupt": "When Mary went"}, [("warning", "corrupt", "the two prompts are the same: patching changes nothing")]),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "expected"), CHECKS, ids=[repr(settings)[:50] for settings, _ in CHECKS])
def test_every_remark_says_what_to_do(settings: dict[str, Any], expected: list[tuple[str, str, str]]) -> None:
    session = LabSession(**{**GOOD, **settings}, model=split_model())
    assert [(remark.level, remark.about) for remark in session.checks] == [(level, about) for level, about, _ in expected]
    for remark, (_, _, text) in zip(session.checks, expected, strict=True):
        assert re.search(text, remark.text), remark.text
    assert session.can_run == all(level != "error" for level, _, _ in expected)
    if not session.can_run:
        with pytest.raises(GemmascopeError):
            session.run("cell", 0, 0)
        with pytest.raises(GemmascopeError):
            session.code()
        session.set(**GOOD, metric="logit_diff")  # and it can be mended
    assert np.isfinite(session.run("cell", 0, 0).values[0, 0, 0])


def test_a_wrong_prompt_raises_what_a_sweep_raises() -> None:
    with pytest.raises(SweepError, match="the positions of the two prompts must match: they have 4 and 5 tokens"):
        LabSession(**{**GOOD, "corrupt": "When Maryanne went"}, model=split_model()).run()
    with pytest.raises(PromptError, match="' Maryanne' is 2"):
        LabSession(**{**GOOD, "answer": " Maryanne"}, model=split_model()).run()
    with pytest.raises(SweepError, match="the two answers are the same token"):
        LabSession(**{**GOOD, "answer": " John"}, model=split_model()).run()


def test_prompts_are_aligned_token_by_token() -> None:
    m = split_model()
    rows = aligned_data(m, *(m.ids(text).tolist() for text in ("When Mary went", "When John went")))
    assert [row["same"] for row in rows] == [True, True, False, True]
    assert rows[0]["clean"] == {"pos": 0, "text": "<bos>", "special": True}
    assert [rows[2][name]["text"] for name in ("clean", "corrupt")] == [" Mary", " John"]
    rows = aligned_data(m, *(m.ids(text).tolist() for text in ("When Mary went", "When Maryanne went")))
    assert [(row["clean"] or {}).get("pos") for row in rows] == [0, 1, 2, None, 3]
    assert [(row["corrupt"] or {}).get("pos") for row in rows] == [0, 1, 2, 3, 4]
    assert [row["same"] for row in rows] == [True, True, True, False, True]
    assert aligned_data(model(), [3, 4], [3, 5])[1]["corrupt"] == {"pos": 1, "text": "5", "special": False}


def test_answers_are_swapped() -> None:
    session = worded_lab()
    before = session.run("cell", 1, 4).effect.values[1, 4]
    session.swap()
    assert (session.settings.answer, session.settings.against) == (" John", " Mary")
    assert session.run("cell", 1, 4).effect.values[1, 4] == pytest.approx(-before, rel=1e-4)


# -- looking into a cell --


@pytest.mark.parametrize("into", ["corrupt", "clean"])
@pytest.mark.parametrize(("site", "cell", "head"), [("q", (1, 3), 3), ("pattern", (2, 7), 7), ("k", (0, 2), 4)])
def test_the_detail_of_a_cell_is_that_of_a_run_with_its_patch(
    into: str, site: str, cell: tuple[int, int], head: int
) -> None:
    session = worded_lab()
    session.set(site=site, into=into)
    session.look(*cell)
    session.wait()
    detail = session.detail
    assert detail is not None
    runs = {"clean": gs.trace(CLEAN, model=worded()), "corrupt": gs.trace(CORRUPT, model=worded())}
    base, source = runs[into], runs["clean" if into == "corrupt" else "corrupt"]
    patched = gs.trace(base.ids, model=worded(), edits=[gs.patch(site, source, layer=cell[0], head=cell[1])])
    for name, run in {**runs, "patched": patched}.items():
        assert error(detail.patterns[name], run["pattern", cell[0]][head].numpy()) <= CLOSE
        assert detail.tokens[name] == run.tokens
    assert detail.pattern_of == f"layer {cell[0]} ({worded().config.kinds[cell[0]]}), head {head}"
    for token, before, after in detail.top:
        at = [worded().tokenizer.text(i) for i in range(61)].index(token)
        assert before == pytest.approx(float(base.next_logits.softmax(-1)[at]), abs=1e-6)
        assert after == pytest.approx(float(patched.next_logits.softmax(-1)[at]), abs=1e-5)
    assert [text for text, *_ in detail.top][:5] == [text for text, *_ in patched.top(5)]
    assert {text for text, *_ in base.top(5)} <= {text for text, *_ in detail.top}


def test_the_detail_of_a_cell_without_a_head_has_answers_only() -> None:
    session = worded_lab()
    session.look(1, 4)
    session.wait()
    assert session.detail is not None
    assert session.detail.patterns == {}
    assert session.detail.place == 'layer 1 (global), position 4 " John"'
    assert len(session.detail.top) >= 5
    session.set(site="z", by=("pos", "head"))  # a head of all layers
    session.look(3, 1)
    session.wait()
    assert session.detail.patterns == {}


# -- time --


def test_chunks_are_short_for_a_resident_model_and_as_large_as_memory_allows_for_a_streamed_one() -> None:
    throughput = Throughput(model(), 14)
    assert throughput.seconds(Cost(3, 21, 63), 1000) is None
    assert throughput.chunk_rows(1000) == 1000
    throughput.add(Cost(), 14 * 3 * 1e-3)
    assert throughput.row_layer == pytest.approx(1e-3)
    assert throughput.seconds(Cost(3, 21, 63), 1000) == pytest.approx((63 + 14 * 3) * 1e-3)
    assert throughput.seconds(Cost(), 1000) == 0
    assert throughput.chunk_rows(1000) == int(experiment_module.CHUNK_SECONDS / 1e-3 / 3)
    assert throughput.chunk_rows(10) == 10
    throughput.add(Cost(3, 21, 63), (63 + 42) * 2e-3)  # the newer measure counts twice
    assert throughput.row_layer == pytest.approx(5e-3 / 3)
    throughput.streams = True
    throughput.add(Cost(), 2.0)
    assert throughput.chunk_rows(1000) == 1000
    assert throughput.seconds(Cost(300, 2500, 7500), 1000) == 6.0


@pytest.mark.parametrize("own", [0.001, 0.2, 0.4, 5.0])
def test_chunks_do_not_shrink_where_a_pass_takes_long_by_itself(own: float) -> None:
    """On a machine where a pass takes `own` seconds and a millisecond a row, as large weights make it, chunks of a moment
    would hold one cell. A pass's own time is half of a chunk's at most, or a chunk takes a moment."""
    throughput = Throughput(model(), 14)
    rows = 0
    for _ in range(30):
        seconds = own + (14 + rows) * 1e-3
        throughput.add(Cost(rows // 7, rows, rows * throughput.n_layers), seconds)
        rows = throughput.chunk_rows(100_000)
    took = own + (14 + rows) * 1e-3
    assert own <= 0.6 * took
    assert took <= max(experiment_module.CHUNK_SECONDS, 2 * (own + 0.014)) * 1.1


def pending_cost(runner: SweepRunner, cells: Array | None = None) -> Cost:
    """What the cells that have no value yet will take, one after the other."""
    pending = pending_cells(runner.pairs, Filling(runner.pairs, runner.result).pending, cells)
    costs: list[tuple[int, int, int]] = [astuple(cost_of(runner.pairs[pair], cell)) for pair, _, cell in pending]
    return Cost(*map(sum, zip(*costs, strict=True)))


def test_the_cost_of_cells_is_known_before_they_run() -> None:
    session = lab()
    session.wait()
    n_cells, seconds = session.expected()
    assert n_cells == 3 * N_POS
    assert seconds is not None
    assert 0 < seconds < 60
    cost = pending_cost(session.experiment.runner)  # type: ignore[union-attr]
    assert cost.n_cells == n_cells
    assert cost.n_rows == 3 * sum(range(1, N_POS + 1))
    assert cost.row_layers == (3 + 2 + 1) * sum(range(1, N_POS + 1))
    assert session.expected("rectangle", (0, 1), (2, 3))[0] == 4


@pytest.mark.parametrize("settings", [{"site": "resid_pre"}, {"site": "pattern", "by": ("q_pos", "k_pos")}], ids=str)
def test_the_cost_of_a_sweep_is_the_sum_of_its_chunks(settings: dict[str, Any]) -> None:
    runner = prepare(prompt(N_POS), prompt(N_POS, seed=1), gs.logit_diff(5, 9), SweepSpec(**settings), model=model())
    whole = pending_cost(runner)
    mask = Part("column", None, 2).cells(runner.pairs[0].grid.shape)  # type: ignore[arg-type]
    part = pending_cost(runner, mask)
    done = [pair for chunk in runner.chunks(mask, lambda: 9) for pair in chunk]
    assert len(done) == part.n_cells == runner.result.finished.sum()
    rest = pending_cost(runner)
    assert (rest.n_cells, rest.n_rows) == (whole.n_cells - part.n_cells, whole.n_rows - part.n_rows)
    assert list(runner.chunks(mask)) == []


# -- files --


def test_a_lab_has_code_and_a_table() -> None:
    session = worded_lab()
    session.run("estimate")
    session.run("row", 1)
    assert (
        session.code() == gs.sweep(CLEAN, CORRUPT, gs.logit_diff(" Mary", " John"), site="resid_pre", model=worded()).code()
    )
    frame = session.experiment.to_dataframe()  # type: ignore[union-attr]
    assert frame.columns.tolist() == ["layer", "pos", "kind", "token", "effect", "is"]
    # Up to position 9 the prompts are alike: those cells are 0 without a run.
    estimated = ["exact"] * 10 + ["estimated"] * 5
    assert frame["is"].tolist() == [*estimated, *["exact"] * 15, *estimated]
    assert np.array_equal(frame["effect"].to_numpy(), session.cell_grid().values.reshape(-1))  # type: ignore[union-attr]


def test_an_experiment_is_made_without_a_run(layers_read: list[int]) -> None:
    experiment = Experiment(Settings(prompt(N_POS), prompt(N_POS, seed=1), 5, 9), model())
    assert layers_read == []
    experiment.run_baselines()
    experiment.run_baselines()
    assert layers_read == [0, 1, 2]


def test_a_click_runs_its_patch_once(layers_read: list[int]) -> None:
    """One run gives the cell's number and its detail; a second click runs nothing."""
    session = lab()
    session.wait()
    layers_read.clear()
    for _ in range(2):
        session.click(1, 2)
        session.wait()
        assert layers_read == [0, 1, 2]
    assert session.detail is not None
    assert (session.detail.row, session.detail.column) == (1, 2)
    cells = session.cell_grid()
    assert cells is not None
    assert (np.argwhere(cells.marks == EXACT) == [[1, 2]]).all()
