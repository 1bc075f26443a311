"""What a trace costs beside transformers' plain eager forward, in time and in what it keeps.

Held to: at most 1.1 times the forward at 16, 128 and 512 positions, and at most 1.2 times the residual stream's bytes.
A trace of 8,192 positions ends with the process's peak resident size.

Run: python tests/benchmarks/trace.py
On a machine that other work shares, OMP_NUM_THREADS=1 is steadier: threads that wait for a taken core look like cost.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

import gemmascope as gs

N_LAYERS, D_MODEL = 12, 512
ALLOWED_TIME, ALLOWED_BYTES = 1.1, 1.2
ROUNDS = {16: 40, 128: 20, 512: 8}


def checkpoint() -> Gemma2ForCausalLM:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=8192, hidden_size=D_MODEL, intermediate_size=2048, num_hidden_layers=N_LAYERS, num_attention_heads=8,
        num_key_value_heads=4, head_dim=64, query_pre_attn_scalar=64, sliding_window=32, max_position_embeddings=8192,
        attn_implementation="eager",
    )  # fmt: skip
    return Gemma2ForCausalLM(config).eval()


def prompt(length: int) -> torch.Tensor:
    return torch.randint(8192, (length,), generator=torch.Generator().manual_seed(length))


Spent = list[tuple[float, float]]  # seconds by the clock and seconds of processor time, of every round


def timed(rounds: int, *functions: Callable[[], Any]) -> list[Spent]:
    """What each function takes: run in turn, so that what else the machine does falls on all alike."""
    spent: list[Spent] = [[] for _ in functions]
    for _ in range(rounds + 2):
        for times, function in zip(spent, functions, strict=True):
            clock, processor = time.perf_counter(), time.process_time()
            function()
            times.append((time.perf_counter() - clock, time.process_time() - processor))
    return [times[2:] for times in spent]  # the first two rounds warm the caches


def middle(spent: Spent) -> tuple[float, float]:
    clock, processor = (statistics.median(column) for column in zip(*spent, strict=True))
    return clock, processor


def compare(source: Gemma2ForCausalLM, model: Any, length: int) -> None:
    ids = prompt(length)

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return source(ids[None], use_cache=False).logits

    def trace() -> torch.Tensor:
        return gs.trace(ids, model=model).logits

    difference = (trace() - forward()[0]).abs().max().item()
    theirs, ours, bare = map(middle, timed(ROUNDS[length], forward, trace, lambda: gs.trace(ids, model=model)))
    print(
        f"{length:4d} positions: transformers {1e3 * theirs[0]:.1f} ms, a trace and its logits {1e3 * ours[0]:.1f} ms: "
        f"{ours[0] / theirs[0]:.2f} times, {ours[1] / theirs[1]:.2f} in processor time (allowed {ALLOWED_TIME}); "
        f"without the logits {bare[0] / theirs[0]:.2f}, {bare[1] / theirs[1]:.2f}. Logits differ by {difference:.0e}. "
        f"It keeps {kept(ids, model):.2f} times the stream (allowed {ALLOWED_BYTES})"
    )


def kept(ids: torch.Tensor, model: Any) -> float:
    """The bytes of every tensor that a trace holds, as a part of those of the stream at the entry of every layer."""
    storages = {s.data_ptr(): s.nbytes() for s in _storages(vars(gs.trace(ids, model=model)))}
    stream = N_LAYERS * len(ids) * D_MODEL * 4
    return sum(storages.values()) / stream


def _storages(held: Any) -> list[Any]:
    """The storages of the tensors in a trace's fields; the model that it points to is not the trace's."""
    if isinstance(held, torch.Tensor):
        return [held.untyped_storage()]
    if isinstance(held, dict):
        return [s for key, value in held.items() if key != "model" for s in _storages(value)]
    if isinstance(held, (list, tuple)):
        return [s for value in held for s in _storages(value)]
    return _storages(vars(held)) if type(held).__module__.startswith("gemmascope") and hasattr(held, "__dict__") else []


def long() -> None:
    """In a process of its own: the peak is the process's, and nothing gives it back."""
    model = gs.load(checkpoint())
    gs.trace(prompt(16), model=model)
    before = _peak()
    start = time.perf_counter()
    gs.trace(prompt(8192), model=model)
    seconds = time.perf_counter() - start
    stream = (N_LAYERS + 1) * 8192 * D_MODEL * 4 / 2**20
    print(f"8192 positions: {seconds:.1f} s; peak resident {_peak():.0f} MiB, {before:.0f} before it, stream {stream:.0f}")


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    source = checkpoint()
    model = gs.load(source)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32")
    for length in ROUNDS:
        compare(source, model, length)
    subprocess.run([sys.executable, __file__, "long"], check=True)


if __name__ == "__main__":
    long() if sys.argv[1:] == ["long"] else main()
