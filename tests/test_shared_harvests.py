"""Harvests that are shared among workers: the store of one process, byte for byte."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

import pytest
from checkpoints import checkpoint, prompt
from worker_pools import LocalWorkers

import gemmascope as gs
from gemmascope.errors import PromptError, StoreError, WorkersError

TEXTS = [prompt(2 + 5 * i % 17, seed=i) for i in range(40)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> gs.Model:
    path = tmp_path_factory.mktemp("models") / "m"
    checkpoint("lgl").save_pretrained(path)
    return gs.load(path)


def harvest(model: gs.Model, out: Path, texts: Any = TEXTS, **options: Any) -> gs.Store:
    asked = {"sites": ["resid_post", "z"], "layers": [0, 2], "rows_per_shard": 30, "progress": False, **options}
    return gs.harvest(model, texts, asked.pop("sites"), out=out, **asked)


def files_of(folder: Path) -> dict[str, bytes]:
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert len(files) > 5
    return files


QUESTIONS: dict[str, dict[str, Any]] = {
    "bfloat16": {},
    "int8": {"dtype": "int8"},
    "products of several texts": {"exact": False, "dtype": "float32"},
    "outliers left out": {"outliers": 1.5, "bos": True},
    "texts that are read once": {"texts": iter(TEXTS)},
    "outside the layers": {"sites": ["embed", "final"], "layers": None},
    "small passes": {"memory": 2_800_000},
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_shared_harvest_is_that_of_one_process_byte_for_byte(name: str, model: gs.Model, tmp_path: Path) -> None:
    question = QUESTIONS[name]
    harvest(model, tmp_path / "alone", **{**question, "texts": TEXTS})
    workers = LocalWorkers(3, seed=len(name))
    shared = harvest(model, tmp_path / "shared", workers=workers, **question)
    assert shared.finished
    assert files_of(tmp_path / "shared") == files_of(tmp_path / "alone")
    assert sum(workers.pools[0].done.values()) > 6


@pytest.mark.parametrize("seed", range(10))
def test_workers_and_drivers_that_end_lose_nothing(seed: int, model: gs.Model, tmp_path: Path) -> None:
    harvest(model, tmp_path / "alone")
    draw = random.Random(seed)

    def kills(worker: int, done: int, starts: bool) -> bool:
        if draw.random() < 0.1:
            raise KeyboardInterrupt
        return draw.random() < 0.1

    def goes_on() -> bool:
        workers = LocalWorkers(3, seed=draw.randrange(1000), kills=kills)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", gs.GemmascopeWarning)
            try:
                return harvest(model, tmp_path / "shared", workers=workers).finished
            except WorkersError:  # a worker was lost thrice
                return False
            except StoreError as error:  # interrupted before the first shard
                assert not list((tmp_path / "shared").glob("*.safetensors")), error  # noqa: PT017
                return False

    while not goes_on():
        pass
    assert files_of(tmp_path / "shared") == files_of(tmp_path / "alone")


def test_a_text_that_cannot_be_read_ends_a_harvest_where_it_ends_in_one_process(model: gs.Model, tmp_path: Path) -> None:
    texts = [*TEXTS[:30], [2, 10_000], *TEXTS[30:]]
    for name, workers in (("alone", None), ("shared", LocalWorkers(3))):
        with pytest.raises(PromptError, match="text 30"):
            harvest(model, tmp_path / name, iter(texts), workers=workers)
    assert files_of(tmp_path / "shared") == files_of(tmp_path / "alone")


def test_a_finished_store_needs_no_workers(model: gs.Model, tmp_path: Path) -> None:
    harvest(model, tmp_path / "s")
    workers = LocalWorkers(2)
    assert harvest(model, tmp_path / "s", workers=workers).finished
    assert workers.pools == []


def test_texts_without_rows_are_said(model: gs.Model, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no text has a row to store"):
        harvest(model, tmp_path / "s", [[], []], empty="skip", workers=LocalWorkers(2))


def test_progress_is_one_bar(model: gs.Model, tmp_path: Path, bars: list[Any]) -> None:
    store = harvest(model, tmp_path / "s", workers=LocalWorkers(2), progress=True)
    assert [bar.total for bar in bars] == [store.n_rows]
    assert round(bars[0].done) == store.n_rows
