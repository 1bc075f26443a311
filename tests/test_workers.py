"""Sweeps that are shared among workers: the numbers and the file of one process, whatever becomes of the workers.

The workers are a pool in this process (worker_pools.py); tests/test_ray.py has those of Ray.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint, model_of, prompt
from torch import Tensor
from worker_pools import LocalWorkers

import gemmascope as gs
from gemmascope.errors import CheckpointError, MetricError, MissingPackageError, SweepError, WorkersError
from gemmascope.memory import limits as memory_module
from gemmascope.workers import driver as driver_module
from gemmascope.workers import ray_pool
from gemmascope.workers.choice import chosen_workers
from gemmascope.workers.host import Host
from gemmascope.workers.packing import ModelSource, pack, unpack

N_POS = 7
CLEAN, CORRUPT = ([prompt(N_POS, seed=2 * pair + i) for pair in range(2)] for i in range(2))
DIFF = gs.logit_diff(5, 9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "m"
    checkpoint("lgl").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> gs.Model:
    return gs.load(folder)


@pytest.fixture(autouse=True)
def small_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some thirty passes a sweep. That the last one leaves workers without work is not worth a warning."""
    monkeypatch.setattr(memory_module, "RESIDENT_ROWS", 12)


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def wide(logits: Tensor) -> Tensor:
    """A metric of the user's."""
    return logits.logsumexp(-1)


def refuses(logits: Tensor) -> Tensor:
    if len(logits) > 1 and int(logits.abs().sum() * 1000) % 3 == 0:
        raise ZeroDivisionError("as a user's function may")
    return logits[:, 3]


def sweep(model: gs.Model, **options: Any) -> Any:
    plain = {"site": "resid_pre", "model": model, "progress": False, "metric": DIFF, "clean": CLEAN, "corrupt": CORRUPT}
    asked = {**plain, **options}
    return gs.sweep(asked.pop("clean"), asked.pop("corrupt"), asked.pop("metric"), **asked)


def assert_same(one: Any, other: Any) -> None:
    assert list(one) == list(other) if isinstance(one, gs.SweepSet) else one.question == other.question
    grids = zip(one.values(), other.values(), strict=True) if isinstance(one, gs.SweepSet) else [(one, other)]
    for a, b in grids:
        assert a.question == b.question
        for name in ("values", "base_metric", "source_metric"):
            assert np.array_equal(getattr(a, name), getattr(b, name), equal_nan=True), name


QUESTIONS: dict[str, dict[str, Any]] = {
    "of one pair": {"clean": CLEAN[0], "corrupt": CORRUPT[0]},
    "of several pairs": {},
    "into clean": {"into": "clean", "metric": [gs.logit_diff(5, 9), wide]},
    "several sites and metrics": {
        "site": ["resid_pre", "mlp_out"],
        "layer": [0, 2],
        "metric": {"a": DIFF, "b": gs.loss(), "own": wide},
    },
    "heads": {"site": ["q", "k"], "by": ["layer", "head"], "layer": [0, 2], "head": [0, 3]},
    "edges": {
        "site": "pattern",
        "by": ["layer", "q_pos", "k_pos"],
        "q_pos": [1, 5],
        "clean": CLEAN[0],
        "corrupt": CORRUPT[0],
    },
    "an ablation": {"ablate": 0.5, "corrupt": None, "site": "z", "layer": [1, 2]},
    "a window": {"window": 3, "pos": [1, -1]},
    "edits of the patched run": {
        "edits": [gs.scale("z", 0.5, layer=1), gs.add("resid_pre", torch.ones(32), layer=0, pos=1)]
    },
    "an iterator of layers": {"layer": [2, 0]},
}


@pytest.mark.parametrize("name", QUESTIONS)
@pytest.mark.parametrize("n", [1, 3])
def test_a_shared_sweep_is_that_of_one_process_bit_for_bit(name: str, n: int, model: gs.Model, tmp_path: Path) -> None:
    question = QUESTIONS[name]
    alone = sweep(model, out=tmp_path / "alone.jsonl", **question)
    question = {**question, "layer": iter(question["layer"])} if "layer" in question else question
    workers = LocalWorkers(n, seed=n)
    shared = sweep(model, out=tmp_path / "shared.jsonl", workers=workers, **question)
    assert_same(shared, alone)
    assert (tmp_path / "shared.jsonl").read_bytes() == (tmp_path / "alone.jsonl").read_bytes()
    assert sum(workers.pools[0].done.values()) > n


def test_means_over_traces_and_models_with_edits_go_to_the_workers(model: gs.Model) -> None:
    edited = model.edited([gs.scale("mlp_out", 0.5, layer=1)])
    traces = [gs.trace(ids, model=edited) for ids in CLEAN]
    question = {"ablate": "mean_by_pos", "reference": traces, "corrupt": None, "metric": gs.kl_from(traces[0])}
    assert_same(sweep(edited, workers=LocalWorkers(), **question), sweep(edited, **question))


def test_a_model_is_loaded_once_for_all_that_refers_to_it(model: gs.Model) -> None:
    traces = [gs.trace(ids, model=model) for ids in CLEAN]
    edited = model.edited([gs.scale("mlp_out", 0.5, layer=1)])
    packed = pack((model, traces, edited), model)
    loaded = ModelSource.of(model, 0).load()
    again, read, with_edits = unpack(packed, loaded)
    assert again is loaded
    assert all(trace.model is loaded for trace in read)
    assert with_edits.network is loaded.network
    assert with_edits.fingerprint == edited.fingerprint != model.fingerprint


def test_a_loaded_model_is_that_of_its_source_on_the_workers_own_device(folder: Path) -> None:
    model = gs.load(folder, device="cpu", dtype="bfloat16")
    loaded = ModelSource.of(model, 0).load()
    assert loaded.fingerprint == model.fingerprint
    assert "device" not in loaded.asked
    if not torch.cuda.is_available():
        with pytest.raises(WorkersError, match="was given a GPU, and its torch finds none"):
            ModelSource.of(model, 1).load()


# -- what becomes of workers --


@pytest.mark.parametrize("seed", range(12))
def test_random_kills_lose_nothing(seed: int, model: gs.Model, tmp_path: Path) -> None:
    alone = sweep(model, out=tmp_path / "alone.jsonl")
    draw = random.Random(seed)
    left = [8]  # kills

    def kills(worker: int, done: int, starts: bool) -> bool:
        killed = left[0] > 0 and draw.random() < 0.3
        left[0] -= killed
        return killed

    workers = LocalWorkers(4, seed=seed, kills=kills)
    try:
        shared = sweep(model, out=tmp_path / "shared.jsonl", workers=workers)
    except WorkersError as error:  # three in a row in one job, or while they start: rare, and said
        assert "ended" in str(error)  # noqa: PT017
        shared = sweep(model, out=tmp_path / "shared.jsonl", workers=LocalWorkers(2))
    assert left[0] < 8
    assert_same(shared, alone)
    assert (tmp_path / "shared.jsonl").read_bytes() == (tmp_path / "alone.jsonl").read_bytes()


def test_a_job_that_ends_its_workers_is_named(model: gs.Model) -> None:
    workers = LocalWorkers(1, kills=lambda worker, done, starts: not starts)
    with pytest.raises(
        WorkersError, match=r"3 workers in a row ended in the same job, \d cells from resid_pre at layer 0, pos 0 of pair 0"
    ):
        sweep(model, workers=workers)
    assert workers.pools[0].n_started == 3
    assert workers.pools[0].n_finished == 1


def test_workers_that_end_while_they_load_are_an_error(model: gs.Model) -> None:
    workers = LocalWorkers(2, kills=lambda worker, done, starts: starts)
    with pytest.raises(WorkersError, match="3 workers ended while they loaded the model: it was killed"):
        sweep(model, workers=workers)
    assert workers.pools[0].n_finished == 1


def test_an_interrupt_keeps_what_is_finished_and_a_second_call_goes_on(model: gs.Model, tmp_path: Path) -> None:
    alone = sweep(model, out=tmp_path / "alone.jsonl")

    def interrupt(worker: int, done: int, starts: bool) -> bool:
        if done == 3:
            raise KeyboardInterrupt
        return False

    workers = LocalWorkers(2, kills=interrupt)
    with pytest.warns(gs.GemmascopeWarning, match=r"interrupted: \d+ of 42 cells finished; the other cells are NaN"):
        part = sweep(model, out=tmp_path / "shared.jsonl", workers=workers)
    assert 0 < part.finished.sum() < 42
    assert np.array_equal(part.values[part.finished], alone.values[part.finished])
    assert workers.pools[0].n_finished == 1
    assert_same(gs.open_sweep(tmp_path / "shared.jsonl"), part)
    shared = sweep(model, out=tmp_path / "shared.jsonl", workers=LocalWorkers(2))
    assert_same(shared, alone)
    assert (tmp_path / "shared.jsonl").read_bytes() == (tmp_path / "alone.jsonl").read_bytes()


def test_a_finished_file_needs_no_workers(model: gs.Model, tmp_path: Path) -> None:
    alone = sweep(model, out=tmp_path / "s.jsonl")
    workers = LocalWorkers(2)
    assert_same(sweep(model, out=tmp_path / "s.jsonl", workers=workers), alone)
    assert workers.pools == []


def test_answers_ahead_of_the_first_are_few(model: gs.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    original = driver_module._Driver._give_out

    def watched(self: Any) -> None:
        original(self)
        given.append(self.n_made - self.n_yielded)

    monkeypatch.setattr(driver_module._Driver, "_give_out", watched)
    sweep(model, workers=LocalWorkers(3))
    assert 3 < max(given) <= 4 * 3


# -- bars and warnings --


def test_progress_is_one_bar(model: gs.Model, bars: list[Any]) -> None:
    sweep(model, workers=LocalWorkers(2), progress=True)
    assert [(bar.total, bar.done) for bar in bars] == [(42, 42)]


def test_fewer_passes_than_workers_are_said(model: gs.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "RESIDENT_ROWS", 10_000)
    with pytest.warns(gs.GemmascopeWarning, match=r"this was 1 pass: 1 of 3 workers had work\. A smaller memory="):
        sweep(model, workers=LocalWorkers(3))


# -- bad input --


def test_an_error_in_a_job_is_the_drivers(model: gs.Model) -> None:
    workers = LocalWorkers(2)
    with pytest.raises((ZeroDivisionError, MetricError), match="as a user's function may") as caught:
        sweep(model, metric=refuses, workers=workers)
    assert workers.pools[0].n_finished == 1
    assert "in worker" in str(caught.value.__cause__)


def test_a_model_without_a_source_says_what_to_do() -> None:
    with pytest.raises(WorkersError, match=r"workers load a model by its source: call model.save_pretrained\(folder\)"):
        sweep(model_of(checkpoint("lg")), workers=LocalWorkers(2))


def test_a_model_that_no_worker_can_load(tmp_path: Path) -> None:
    checkpoint("lg").save_pretrained(tmp_path / "m")
    model = gs.load(tmp_path / "m")
    (tmp_path / "m").rename(tmp_path / "elsewhere")
    workers = LocalWorkers(2)
    others_go_on = pytest.warns(gs.GemmascopeWarning, match="a worker cannot begin, and the others go on without it")
    with others_go_on, pytest.raises(WorkersError, match=r"no worker can begin: .*/m") as caught:
        sweep(model, workers=workers)
    assert CheckpointError.__name__ in str(caught.value.__cause__)
    assert workers.pools[0].n_finished == 1
    checkpoint("lg", seed=1).save_pretrained(tmp_path / "m")
    with pytest.warns(gs.GemmascopeWarning), pytest.raises(WorkersError, match="that now gives another model"):
        sweep(model, workers=LocalWorkers(2))


def test_workers_that_cannot_begin_make_room_for_those_that_wait(tmp_path: Path) -> None:
    checkpoint("lg").save_pretrained(tmp_path / "m")
    model = gs.load(tmp_path / "m")
    alone = sweep(model)
    assert_same(sweep(model, workers=LocalWorkers(3, room=1)), alone)  # one that works, and two that wait to the end
    (tmp_path / "m").rename(tmp_path / "elsewhere")
    with pytest.warns(gs.GemmascopeWarning), pytest.raises(WorkersError, match="no worker can begin"):
        sweep(model, workers=LocalWorkers(3, room=1))


def test_one_worker_that_cannot_begin_is_said_and_the_others_go_on(model: gs.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, load = [0], ModelSource.load

    def first_fails(self: ModelSource) -> gs.Model:
        opened[0] += 1
        if opened[0] == 1:
            raise CheckpointError("there is no such folder here")
        return load(self)

    monkeypatch.setattr(ModelSource, "load", first_fails)
    alone = sweep(model)
    with pytest.warns(gs.GemmascopeWarning, match="a worker cannot begin, .*: there is no such folder here"):
        shared = sweep(model, workers=LocalWorkers(3))
    assert_same(shared, alone)


def test_another_version_of_gemmascope_is_refused(model: gs.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ModelSource.of(model, 0)
    monkeypatch.setattr(gs, "__version__", "9.9")
    with pytest.raises(WorkersError, match=r"this worker has gemmascope 9.9, and the driver \d"):
        source.load()


def test_what_cannot_be_pickled_is_named(model: gs.Model) -> None:
    lock = threading.Lock()

    class Locked:
        def __call__(self, logits: Tensor) -> Tensor:
            with lock:
                return logits[:, 3]

        def __getstate__(self) -> Any:
            raise TypeError("cannot pickle '_thread.lock' object")

    with pytest.raises(WorkersError, match=r"metric cannot be sent to workers: .*cannot be pickled"):
        sweep(model, metric=Locked(), workers=LocalWorkers(2))
    edit = gs.edit("z", lambda z: z * 0.5, layer=1)  # pickle takes no lambda; Ray's pickler does
    with pytest.raises(WorkersError, match=r"edits cannot be sent to workers: .*cannot be pickled"):
        sweep(model, edits=[edit], workers=LocalWorkers(2))


def test_a_task_whose_module_a_worker_lacks_says_how_to_bring_it(model: gs.Model) -> None:
    source = pack(ModelSource.of(model, 0), None)
    outcome = Host().open(source, b"cno_such_module\nf\n.")
    assert outcome[0] == "error"
    assert isinstance(outcome[1], WorkersError)
    assert "No module named 'no_such_module'" in str(outcome[1])
    assert "working_dir" in str(outcome[1])


@pytest.mark.parametrize("n", [0, -1, 1.5, True, "two", None])
def test_numbers_of_workers_that_are_none(n: Any) -> None:
    with pytest.raises(WorkersError, match="n, how many workers, is"):
        gs.ray(n=n)


@pytest.mark.parametrize("gpus", [-1, 1.5, float("nan"), float("inf"), True, "one"])
def test_gpus_that_ray_cannot_give(gpus: Any) -> None:
    with pytest.raises(WorkersError, match="gpus_per_worker is a whole number, or between 0 and 1"):
        gs.ray(gpus_per_worker=gpus)


def test_other_bad_arguments() -> None:
    with pytest.raises(WorkersError, match="address is None"):
        gs.ray(4)  # type: ignore[arg-type]
    with pytest.raises(WorkersError, match="init is a mapping"):
        gs.ray(init=[1])  # type: ignore[arg-type]
    with pytest.raises(WorkersError, match=r"workers is None, how many on this machine, or gs.ray\(...\); given 'four'"):
        gs.sweep(CLEAN, CORRUPT, DIFF, site="z", workers="four")  # type: ignore[call-overload]
    with pytest.raises(WorkersError, match="n, how many workers,"):
        gs.sweep(CLEAN, CORRUPT, DIFF, site="z", workers=0)
    assert chosen_workers(3) == gs.ray(n=3)


def test_workers_show_as_their_call_without_what_may_be_secret() -> None:
    assert repr(gs.ray()) == "gs.ray(n=2)"
    init = {"runtime_env": {"env_vars": {"HF_TOKEN": "hf_secret"}}}
    text = repr(gs.ray("ray://head:1", n=8, gpus_per_worker=0.5, cpus_per_worker=2, init=init))
    assert text == "gs.ray('ray://head:1', n=8, gpus_per_worker=0.5, cpus_per_worker=2, init={'runtime_env': ...})"


def test_without_ray_the_error_says_how_to_install_it(model: gs.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError, match=r'gs.ray needs ray: pip install "gemmascope\[ray\]"'):
        sweep(model, workers=gs.ray(n=2))


def test_arguments_of_a_start_are_not_left_out_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    connected = SimpleNamespace(is_initialized=lambda: True, get_runtime_context=lambda: SimpleNamespace(gcs_address="a:1"))
    monkeypatch.setitem(sys.modules, "ray", connected)
    assert ray_pool._connected(gs.ray()) == (connected, False)
    with pytest.warns(gs.GemmascopeWarning, match=r"connected to Ray already, and init= is not used: call ray.shutdown"):
        ray_pool._connected(gs.ray(init={"num_cpus": 3}))


def test_nothing_of_ray_is_imported_unless_it_is_used() -> None:
    code = (
        "import sys, gemmascope as gs; gs.ray(n=4); gs.sweep; assert not any(m.split('.')[0] == 'ray' for m in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_sweep_that_cannot_be_right_starts_no_workers(model: gs.Model) -> None:
    workers = LocalWorkers(2)
    with pytest.raises(SweepError):
        sweep(model, by=["head"], workers=workers)
    assert workers.pools == []
