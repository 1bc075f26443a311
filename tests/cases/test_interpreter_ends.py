"""The interpreter ends while daemon threads compute: exit code 0, and nothing on the standard error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import checkpoint

SCRIPT = """
import sys, threading
import torch
import gemmascope as gs
from gemmascope.streaming.layer_stream import LayerStream

torch.set_num_threads(1)
model = gs.load(sys.argv[1], memory=None if sys.argv[2] == "resident" else "1GiB")
if sys.argv[2] == "streamed":
    packed = model.network.layer_source.packed
    model.network.layer_source = LayerStream(model.config, packed, torch.float32, torch.device("cpu"))
C, X = [2, 5, 9, 12, 7, 30] * 8, [2, 5, 9, 14, 7, 30] * 8
metric, begun = gs.logit_diff(5, 9), threading.Event()
calls = {
    "trace": lambda: gs.trace(C, model=model)["pattern", 1],
    "sweep": lambda: gs.sweep(C, X, metric, site="z", model=model, progress=False),
    "generate": lambda: gs.generate(C[:6], model=model, max_new_tokens=20),
    "lab": lambda: None,
}


def work(call):
    try:
        call()
    finally:
        begun.set()
    while True:
        call()


if sys.argv[3] == "lab":
    P = "When Mary and John went to the store, John gave a drink to"
    lab = gs.patching_lab(P, P.replace("John gave", "Mary gave"), " Mary", " John")
    threading.Thread(target=lab.run, daemon=True).start()
else:
    for _ in range(2):
        threading.Thread(target=work, args=(calls[sys.argv[3]],), daemon=True).start()
    begun.wait()
print("end")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ends")
    checkpoint("lgl").save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("residence", "call"),
    [
        ("resident", "lab"),
        *((residence, call) for residence in ("resident", "streamed") for call in ("trace", "sweep", "generate")),
    ],
)
def test_the_interpreter_ends_cleanly_while_threads_compute(folder: Path, residence: str, call: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), residence, call],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "end\n")
