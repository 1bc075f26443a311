"""Two processes (gloo) that share each layer give the numbers of one: every site, edits, gradients, sweeps, generation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import parallel_process
import pytest
import torch.distributed as dist
from checkpoints import checkpoint, checkpoint_3

import gemmascope as gs
from gemmascope.errors import DeviceError

PROCESSES = 2


@pytest.fixture(scope="module", params=[checkpoint, checkpoint_3], ids=["gemma2", "gemma3"])
def folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """What each process computed, and what one alone did."""
    folder = tmp_path_factory.mktemp("parallel")
    request.param("lgl").save_pretrained(folder / "model")
    script, root = Path(parallel_process.__file__), Path(gs.__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(folder / "model"), str(folder), str(rank), str(PROCESSES)],
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(PROCESSES)
    ]  # fmt: skip
    parallel_process.main(str(folder / "model"), folder, 0, 0)
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * PROCESSES, "\n".join(errors)
    return folder


def test_every_process_gives_the_numbers_of_one(folder: Path) -> None:
    with np.load(folder / "whole.npz") as whole:
        names = list(whole)
        assert len(names) > 30
        for rank in range(PROCESSES):
            with np.load(folder / f"{rank}.npz") as found:
                assert list(found) == names
                for name in names:
                    assert found[name].size
                    size = np.abs(whole[name][np.isfinite(whole[name])]).max()
                    np.testing.assert_allclose(found[name], whole[name], rtol=0, atol=1e-5 * size, err_msg=name)


def test_what_reads_whole_matrices_is_refused(folder: Path) -> None:
    for rank in range(PROCESSES):
        first, *lines = (folder / f"refusals{rank}").read_text(encoding="utf-8").splitlines()
        assert "cpu in one of 2 processes" in first
        assert len(lines) == 7
        assert all("each process has a part of it" in line for line in lines), lines


def test_a_process_without_a_group_is_refused() -> None:
    with pytest.raises(DeviceError, match="this process is in no group"):
        gs.load_parallel("nano")


@pytest.mark.parametrize("size", [3, 4])
def test_processes_that_do_not_divide_the_heads_are_refused(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: size)
    with pytest.raises(DeviceError, match=f"{size} processes cannot share 2 key-value heads evenly"):
        gs.load_parallel("nano", device="cpu")


def test_int8_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    gs.quantize("nano", tmp_path / "int8")
    with pytest.raises(DeviceError, match="int8 weights, which are not divided"):
        gs.load_parallel(tmp_path / "int8", device="cpu")
