"""The C++ kernels of the CPU beside plain torch, in CPU seconds: the same model loaded with them and without, in turn.

It needs GEMMASCOPE_CPU_KERNELS=1, and takes a minute or two.

A token's time is that of a whole call less a call for one token, by the tokens between.

Run: GEMMASCOPE_CPU_KERNELS=1 OMP_NUM_THREADS=1 python tests/benchmarks/cpu_kernels.py
     [--lengths 16] [--rounds 2] [--small] [--json FILE]
"""

from __future__ import annotations

import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import Table, machine, parser, record
from rivals import SHAPE, SMALL, checkpoint, prompt
from side_by_side import METRIC

import gemmascope as gs
from gemmascope.kernels import switch

COLUMNS = ("work", "weights", "positions", "plain_ms", "kernels_ms", "kernels/plain")
N_NEW = 8
# Of a sweep, so many layers: all take minutes for each kind of weights.
SWEPT = [1, 8]


def without_kernels(call: Callable[[], Any]) -> Any:
    """The call as on a machine without a compiler."""
    chosen = switch._cpu_refusal
    switch._cpu_refusal = lambda: "of a benchmark"  # type: ignore[assignment]
    try:
        return call()
    finally:
        switch._cpu_refusal = chosen


def processor_ms(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return 1e3 * (time.process_time() - start)


def works(vocab_size: int, length: int) -> dict[str, Callable[[Any], float]]:
    """What is timed, by its name: functions of a model that return milliseconds."""
    pair = [prompt(length, vocab_size, seed) for seed in (1, 2)]

    def tokens(count: int) -> Callable[[Any], float]:
        ids = [prompt(length, vocab_size, 100 + seed) for seed in range(count)]

        def call(model: Any) -> float:
            whole, first = (
                processor_ms(lambda n=n: gs.generate(ids, model=model, max_new_tokens=n))  # type: ignore[misc]
                for n in (N_NEW, 1)
            )
            return (whole - first) / (N_NEW - 1)

        return call

    return {
        "sweep of 2 layers": lambda model: processor_ms(
            lambda: gs.sweep(*pair, METRIC, site="resid_pre", layer=_swept(model), model=model, progress=False)
        ),
        "trace with logits": lambda model: processor_ms(lambda: gs.trace(pair[0], model=model).logits),
        "a token, 1 prompt": tokens(1),
        "a token, 16 prompts": tokens(16),
    }


def _swept(model: Any) -> list[int]:
    return [layer for layer in SWEPT if layer < model.n_layers] or [0]


def _turn(call: Callable[[Any], float], eager: Any, fused: Any) -> tuple[float, float]:
    return without_kernels(lambda: call(eager)), call(fused)


def main() -> None:
    given = parser(__doc__, lengths=(16,), rounds=2).parse_args()
    shape = SMALL if given.small else SHAPE
    if (refusal := switch.cpu_refusal()) is not None:
        sys.exit(f"there are no C++ kernels here: {refusal}")
    print(machine())
    plain = checkpoint(shape)
    table = Table("with the C++ kernels and without: CPU milliseconds", COLUMNS)
    with tempfile.TemporaryDirectory() as folder:
        plain.save_pretrained(Path(folder) / "source")
        gs.quantize(Path(folder) / "source", Path(folder) / "int8")
        for dtype in given.dtype:
            source = copy.deepcopy(plain).to(getattr(torch, dtype))
            loads: dict[str, Callable[[], Any]] = {
                dtype: lambda source=source: gs.load(source),  # type: ignore[misc]
                f"int8 in {dtype}": lambda dtype=dtype: gs.load(Path(folder) / "int8", dtype=dtype),  # type: ignore[misc]
            }
            for weights, load in loads.items():
                fused, eager = load(), without_kernels(load)
                for length in given.lengths:
                    for work, call in works(shape["vocab_size"], length).items():
                        turns = [_turn(call, eager, fused) for _ in range(given.rounds + 1)][1:]  # the first warms both
                        before, after = (statistics.median(turn[i] for turn in turns) for i in range(2))
                        ratio = statistics.median(b / a for a, b in turns)
                        table.add(
                            work=work, weights=weights, positions=length, plain_ms=before, kernels_ms=after,
                            **{"kernels/plain": ratio},
                        )  # fmt: skip
    record(given.json, [table])


if __name__ == "__main__":
    main()
