"""The memory that a plan predicts for a run, against the peak of a separate process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sparse import write

import gemmascope as gs
from gemmascope.config import PRESETS
from gemmascope.model.attention import CHUNK_ROWS

N_POS = 512

# Peaks are of resident memory: what the libraries take is there before the model, and is left out.
SCRIPT = """
import sys, json
import torch
import gemmascope as gs

def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))

gs.sweep("<bos> a", "<bos> b", gs.answer_prob(5), site="z", by=("layer", "head"), progress=False)
before = peak()
model = gs.load(sys.argv[1], dtype="bfloat16", memory=int(sys.argv[2]) or None)
ids = list(range(5, 5 + int(sys.argv[3])))
if sys.argv[4] == "trace":
    gs.trace(ids, model=model).top(1)
else:
    gs.sweep(ids, ids[::-1], gs.answer_prob(7), site="resid_pre", model=model, layer=[0, 1, 2], progress=False)
print(json.dumps(peak() - before))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of zeros, large enough to be measurable beside the libraries."""
    path = tmp_path_factory.mktemp("peaks")
    heads: dict[str, Any] = {"n_heads": 8, "n_kv_heads": 4, "d_head": 128}
    shape: dict[str, Any] = {"d_model": 1024, "d_mlp": 12288, "vocab_size": 8192, **heads}
    config = replace(PRESETS["2b"], kinds=PRESETS["2b"].kinds[:6], **shape)
    write(path / "source", config.to_dict())
    gs.quantize(path / "source", path / "int8")
    return path


def measured(folder: Path, memory: int, n_pos: int, task: str) -> int:
    command = [sys.executable, "-c", SCRIPT, str(folder), str(memory), str(n_pos), task]
    # glibc gives arrays above 32 MB back at once, such as those of a real model, and holds on to smaller ones as it likes.
    plain = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**18)}
    peak: int = json.loads(subprocess.run(command, capture_output=True, check=True, text=True, env=plain).stdout)
    return peak


@pytest.mark.parametrize(
    ("kind", "memory"), [("int8", 0), ("int8", 400_000_000), ("int8", 520_000_000), ("source", 500_000_000)]
)
def test_the_predicted_peak_is_the_measured_one(folder: Path, kind: str, memory: int) -> None:
    plan = gs.plan(folder / kind, weights="int8" if kind == "int8" else "auto", context=N_POS, memory=memory or None)
    assert measured(folder / kind, memory, N_POS, "trace") == pytest.approx(plan.peaks["trace"], rel=0.15)


# One head attends alone, so that nothing but its scores takes much.
LONG = """
import torch
from gemmascope.model.attention import Attend
from gemmascope.model.layout import Layout
from gemmascope.model.tap import SILENT

def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))

def attend(n_pos):
    q, k = torch.randn(n_pos, 1, 16), torch.randn(n_pos, 1, 16)
    layout = Layout.of_lengths([n_pos], torch.device("cpu"))
    with torch.no_grad():
        return Attend(0.1, None, None)(q, k, k, layout, SILENT.at(0, layout))

attend(64)
before = peak()
attend(16384)
print(peak() - before)
"""


def test_the_memory_of_attention_grows_with_the_positions_and_not_with_their_square() -> None:
    """In one head, as the C library gives memory out: the results of chunks must not lie between their scores."""
    done = subprocess.run([sys.executable, "-c", LONG], capture_output=True, check=True, text=True)
    scores_of_a_chunk = 4 * CHUNK_ROWS * 16384
    assert int(done.stdout) < 12 * scores_of_a_chunk
