"""Sweeps on a local cluster of Ray: 2 and 4 workers, one of them killed; addresses where no Ray is.

Each start of Ray and of workers costs seconds, so few are made.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import checkpoint, prompt
from torch import Tensor

import gemmascope as gs
from gemmascope.errors import WorkersError

ray = pytest.importorskip("ray", reason='Ray is not installed: pip install "gemmascope[ray]"')
pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="processes are killed by signals here"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # of Ray's own next version
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

PAIRS = [[prompt(20, seed=2 * pair + i) for pair in range(40)] for i in range(2)]
MEMORY = 2_800_000  # some passes


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> gs.Model:
    path = tmp_path_factory.mktemp("models") / "m"
    checkpoint("lgl").save_pretrained(path)
    return gs.load(path)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A small Ray in this process, which gs.ray() then uses."""
    with gs.ray(n=4, gpus_per_worker=0, init={"object_store_memory": 100 * 2**20}):
        yield
    forget_processes()


def forget_processes() -> None:
    """Wait for the processes that Ray has ended and forgotten: Popen warns of each as it is freed."""
    for one in gc.get_objects():
        if isinstance(one, subprocess.Popen) and one.returncode is None:
            one.wait(timeout=60)


def sweep(model: gs.Model, metric: Any, **options: Any) -> Any:
    return gs.sweep(*PAIRS, metric, site="resid_pre", model=model, memory=MEMORY, progress=False, **options)


def assert_same(one: Any, other: Any, *files: Path) -> None:
    for name in ("values", "base_metric", "source_metric"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    assert one.question == other.question
    assert len({path.read_bytes() for path in files}) <= 1


@pytest.mark.usefixtures("cluster")
def test_two_workers_that_are_kept_from_call_to_call(model: gs.Model, tmp_path: Path) -> None:
    scale = 0.5

    def own(logits: Tensor) -> Tensor:
        return logits[:, 3] * scale

    def asked(out: Path, **options: Any) -> Any:
        edits = [gs.edit("z", lambda z: z * scale, layer=1)]
        return sweep(model, own, edits=edits, out=out, **options)

    alone = asked(tmp_path / "alone")
    assert len((tmp_path / "alone").read_text().splitlines()) > 4, "there is too little to share"
    with gs.ray(n=2) as workers:
        shared = asked(tmp_path / "shared", workers=workers)
        processes = {actor._actor_id for actor in workers._kept._actors.values()}  # type: ignore[union-attr]
        assert_same(shared, alone, tmp_path / "alone", tmp_path / "shared")
        other = sweep(model, gs.logit_diff(5, 9), workers=workers)
        assert {actor._actor_id for actor in workers._kept._actors.values()} == processes  # type: ignore[union-attr]
    assert ray.is_initialized(), "a Ray that was there is left as it was"
    assert_same(other, sweep(model, gs.logit_diff(5, 9)))


@pytest.mark.usefixtures("cluster")
def test_four_workers_of_which_one_is_killed(model: gs.Model, tmp_path: Path) -> None:
    driver, died = os.getpid(), tmp_path / "died"

    def deadly(logits: Tensor) -> Tensor:
        if os.getpid() != driver and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return logits[:, 3]

    alone = sweep(model, deadly, out=tmp_path / "alone")
    assert not died.exists()
    shared = sweep(model, deadly, out=tmp_path / "shared", workers=gs.ray(n=4))
    assert died.exists()
    assert_same(shared, alone, tmp_path / "alone", tmp_path / "shared")


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("127.0.0.1:1", r"no Ray answers at '127.0.0.1:1' .*ray start --head"),
        ("ray://127.0.0.1:1", "no Ray answers at 'ray://127.0.0.1:1'"),
        ("ray://nowhere", 'an address of Ray is "auto", "host:port" or'),
        ("localhost", 'an address of Ray is "auto"'),
        ("localhost:999999", "no Ray answers at"),
    ],
)
def test_an_address_where_no_ray_is(address: str, problem: str, model: gs.Model) -> None:
    if ray.is_initialized():
        ray.shutdown()
        forget_processes()
    with pytest.raises(WorkersError, match=problem):
        sweep(model, gs.logit_diff(5, 9), workers=gs.ray(address))
