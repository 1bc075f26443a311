"""What a trace with its logits costs beside transformers' eager forward, one by one and in one batch, and its floor.

The floor is the arithmetic of all rows and logits at the rate of this machine's matrix products. All take turns within a
round. One by one is a prompt's time, times the prompts. Logits are held to transformers in float32: float32 to rounding,
bfloat16 to at most three times the distance of transformers' own bfloat16.
Then what a trace keeps, beside the residual stream's bytes (held to 1.2 times), what of it is in the cache of at most 1 GiB
that all traces share, and with --long a trace of 8,192 positions with the process's peak resident size.

Run: python tests/benchmarks/trace.py [--lengths 16 128 512] [--prompts 1 16] [--rounds 7] [--small] [--json FILE] [--long]
On a machine that other work shares: OMP_NUM_THREADS=1, and --cpu-seconds.
"""

from __future__ import annotations

import copy
import resource
import subprocess
import sys
from typing import Any

import torch
from measuring import Table, machine, parser, record, seconds
from rivals import SHAPE, SMALL, checkpoint, prompt
from side_by_side import hold, measure_trace

import gemmascope as gs

ALLOWED_BYTES = 1.2
COLUMNS = (
    "prompts", "positions", "dtype", "ours_ms", "batched_ms", "one_by_one_ms", "floor_ms", "ours/batched", "ours/one",
    "ours/floor", "no_logits/batched", "apart", "rival_apart",
)  # fmt: skip


def kept(ids: torch.Tensor, model: Any) -> tuple[float, float]:
    """The bytes of the tensors that a trace holds, and of those that it has in the cache which all traces share.

    Both as parts of the stream at the entry of every layer.
    """
    trace = gs.trace(ids, model=model)
    storages = {s.data_ptr(): s.nbytes() for s in _storages(vars(trace))}
    stream = model.config.n_layers * len(ids) * model.config.d_model * model.dtype.itemsize
    return sum(storages.values()) / stream, sum(trace.layer_cache.sizes()) / stream


def _storages(held: Any) -> list[Any]:
    """The storages of the tensors in a trace's fields, but for the model and the cache, which are not its own."""
    if isinstance(held, torch.Tensor):
        return [held.untyped_storage()]
    if isinstance(held, dict):
        return [s for key, value in held.items() if key not in ("model", "layer_cache") for s in _storages(value)]
    if isinstance(held, (list, tuple)):
        return [s for value in held for s in _storages(value)]
    return _storages(vars(held)) if type(held).__module__.startswith("gemmascope") and hasattr(held, "__dict__") else []


def long() -> None:
    """In a process of its own: the peak is the process's, and nothing gives it back."""
    model = gs.load(checkpoint(SHAPE))
    ids = prompt(8192, SHAPE["vocab_size"], 8192)
    gs.trace(ids[:16], model=model)
    before = _peak()
    spent = seconds(lambda: gs.trace(ids, model=model))
    stream = (SHAPE["num_hidden_layers"] + 1) * len(ids) * SHAPE["hidden_size"] * 4 / 2**20
    print(f"8192 positions: {spent:.1f} s; peak resident {_peak():.0f} MiB, {before:.0f} before it, stream {stream:.0f}")


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    options = parser(__doc__, lengths=(16, 128, 512), rounds=7)
    options.add_argument("--prompts", type=int, nargs="*", default=[1, 16], help="how many prompts at once")
    options.add_argument("--long", action="store_true", help="a trace of 8,192 positions as well")
    given = options.parse_args()
    if given.small:
        given.lengths, given.rounds = [8], 2
    print(machine())
    plain = checkpoint(SMALL if given.small else SHAPE)
    table = Table("traces with logits: milliseconds, and their ratios round by round", COLUMNS)
    memory = Table("what a trace keeps", ("positions", "of_the_stream", "allowed", "cached"))
    for dtype in given.dtype:
        source = plain if dtype == "float32" else copy.deepcopy(plain).to(getattr(torch, dtype))
        model = gs.load(source)
        for length in given.lengths:
            for count in given.prompts:
                row = measure_trace(source, plain, model, count, length, given.rounds)
                table.add(**row)
                hold(row)
    model = gs.load(plain)
    for length in given.lengths:
        ids = prompt(length, plain.config.vocab_size, length)
        own, cached = kept(ids, model)
        memory.add(positions=length, of_the_stream=own, allowed=ALLOWED_BYTES, cached=cached)
    record(given.json, [table, memory])
    if given.long:
        subprocess.run([sys.executable, __file__, "long"], check=True)


if __name__ == "__main__":
    long() if sys.argv[1:] == ["long"] else main()
