"""The memory that a trace takes, measured in a process of its own, beside what gs.plan predicts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from gemmascope.checking.step import Figure
from gemmascope.checking.subject import Outcome, Skip, Subject
from gemmascope.memory.planning import plan

N_POS = 128
# What allocators take beyond the plan: a share, and what pools of small blocks hold.
LARGEST_RATIO, BESIDE = 1.15, 64 * 2**20

# On the CPU it samples the process's resident memory, and leaves out what the libraries and the tokenizer take before the
# model. (The peak that the system counts would begin with that of the process that started this one.) Prints JSON: bytes,
# and who counted them.
_SCRIPT = """
import ctypes, json, sys, threading
import psutil
import torch
import gemmascope as gs

asked = json.loads(sys.argv[1])
resident = psutil.Process().memory_info
gs.trace("Mary and John").top(1)
shell = gs.load(asked["source"], device="meta")
if shell.has_tokenizer:
    asked["options"]["tokenizer"] = shell.tokenizer
before, peak, done = resident().rss, 0, threading.Event()

def sample():
    global peak
    while not done.wait(0.002):
        peak = max(peak, resident().rss)

def taken(device):
    "The peak since the last call."
    global peak
    if device.type == "cuda":
        n_bytes = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return n_bytes
    n_bytes, peak = peak - before, 0
    return max(n_bytes, resident().rss - before, 0)

thread = threading.Thread(target=sample)
thread.start()
try:
    model = gs.load(asked["source"], **asked["options"])
    loading = taken(model.device)
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)  # gives back the blocks that loading freed and glibc kept
    taken(model.device)
    vocabulary = model.config.vocab_size
    ids = [model.config.bos_id, *(i % (vocabulary - 5) + 5 for i in range(asked["n_pos"] - 1))]
    gs.trace(ids, model=model).top(1)
    tracing = taken(model.device)
finally:
    done.set()
    thread.join()
on_gpu = model.device.type == "cuda"
counter = "torch's allocator on the GPU" if on_gpu else "its resident memory, sampled, beside the tokenizer's"
print(json.dumps([tracing, loading, counter]))
"""


def memory_use(subject: Subject) -> Outcome:
    """Load the model and trace a prompt in another process, and compare its peak with the plan."""
    source = subject.require_source()
    if subject.device.type not in ("cpu", "cuda"):
        raise Skip(f"memory is not measured on {subject.device.type}")
    subject.free_model()
    o = subject.options
    n_pos = min(N_POS, subject.shell.config.context)
    options = {"device": str(subject.device), "dtype": str(subject.dtype).removeprefix("torch."), "weights": o.weights}
    planned = plan(source, context=n_pos, memory=o.memory, **options)  # type: ignore[arg-type]
    asked = {"source": source, "n_pos": n_pos, "options": {**options, "memory": o.memory}}
    measured, loading, counter = _measure(asked)
    expected = planned.peaks["trace"]
    figures = (
        Figure("measured", measured / 1e9, (LARGEST_RATIO * expected + BESIDE) / 1e9, "GB"),
        Figure("planned", expected / 1e9, unit="GB"),
        Figure("while it was loaded", loading / 1e9, unit="GB"),
    )
    return Outcome(f"a trace of {n_pos} positions in a process of its own, by {counter}", figures)


def _measure(asked: dict[str, object]) -> tuple[int, int, str]:
    """Bytes at the peak of a trace and of loading, and who counted them. MemoryError if the process failed."""
    package = str(Path(__file__).parents[3])
    paths = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    # glibc gives large blocks back at once if told so; it would otherwise keep what loading freed.
    env = {**os.environ, "PYTHONPATH": paths, "MALLOC_MMAP_THRESHOLD_": str(2**18)}
    command = [sys.executable, "-c", _SCRIPT, json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=env, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        reason = lines[-1] if lines else f"it ended with status {done.returncode}"
        if done.returncode in (-9, 137):
            reason = "the system ended it, as it does when memory runs out"
        raise MemoryError(f"the process that measures memory failed: {reason}")
    tracing, loading, counter = json.loads(done.stdout.strip().splitlines()[-1])
    return int(tracing), int(loading), str(counter)
