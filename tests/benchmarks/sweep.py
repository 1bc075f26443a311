"""What a sweep costs beside transformers with many cells in one batch, beside one forward a cell, and beside its floor.

The batch is the honest rival: hooks patch each of its rows at its own layer and position, and its size is the quickest of
some. The floor is the arithmetic that the patches cannot do without (floors.py), at the rate of this machine's matrix
products. All take turns within a round. Where a rival would take minutes, it runs some of the cells, spread evenly, and
its time is scaled; the table says how many it ran.
Cells that the rivals run are compared with ours: float32 to rounding, bfloat16 by its distance from float32, over some pairs
of prompts.

Run: python tests/benchmarks/sweep.py [--lengths 16 64 128] [--dtype float32 bfloat16] [--sites resid_pre z] [--rounds 3]
     [--small] [--json FILE] [--cell] [--table] [--profile] [--transformer-lens]
"""

from __future__ import annotations

import copy
import statistics
from typing import Any

import torch
from measuring import Table, machine, parser, record, seconds, spread
from rivals import SHAPE, SMALL, checkpoint, prompt
from side_by_side import AXES, METRIC, TOKENS, hold, measure_sweep
from transformers import Gemma2ForCausalLM

import gemmascope as gs

COLUMNS = (
    "site", "positions", "dtype", "cells", "ours_s", "batched_s", "batch", "batched_ran", "one_by_one_s", "floor_s",
    "batched/ours", "one/ours", "ours/floor", "apart", "rival_apart",
)  # fmt: skip


def transformer_lens(source: Gemma2ForCausalLM, length: int) -> None:
    """The same resid_pre sweep in TransformerLens, float32, where it is installed."""
    try:
        from transformer_lens import patching
        from transformer_lens.model_bridge import TransformerBridge
    except ImportError:
        print("TransformerLens is not installed: not compared")
        return
    from transformers import AutoTokenizer

    from gemmascope.nano import CHECKPOINT

    # It wants a name and a tokenizer, and uses neither here.
    words = AutoTokenizer.from_pretrained(CHECKPOINT)
    theirs = TransformerBridge.boot_transformers("google/gemma-2-2b", hf_model=copy.deepcopy(source), tokenizer=words)
    clean, corrupt = (prompt(length, source.config.vocab_size, seed)[None] for seed in (1, 2))
    model = gs.load(source)

    def metric(logits: torch.Tensor) -> torch.Tensor:
        return logits[0, -1, TOKENS[0]] - logits[0, -1, TOKENS[1]]

    found: list[Any] = []
    with torch.no_grad():
        _, cache = theirs.run_with_cache(clean)
        spent = seconds(lambda: found.append(patching.get_act_patch_resid_pre(theirs, corrupt, cache, metric)))

    def sweep() -> Any:
        return gs.sweep(clean[0], corrupt[0], METRIC, site="resid_pre", model=model, progress=False)

    apart = spread(sweep().values[0].ravel().tolist(), found[0].flatten().tolist())
    ours = statistics.median(seconds(sweep) for _ in range(3))
    print(
        f"resid_pre {length} positions float32: TransformerLens {spent:.2f} s, one pass {ours:.2f} s; apart by {apart:.0e}"
    )


def growth(source: Gemma2ForCausalLM) -> None:
    """How the cost grows with the rows: one layer's cells, resid_pre of layer 6, float32."""
    model = gs.load(source)
    print("positions     rows   seconds   rows/s")
    for length in (8, 16, 32, 64, 128, 256, 512):
        pair = [prompt(length, source.config.vocab_size, seed) for seed in (1, 2)]
        rows = (source.config.num_hidden_layers - 7) * length * (length + 1) // 2

        def sweep(pair: Any = pair) -> Any:
            return gs.sweep(*pair, METRIC, site="resid_pre", layer=6, model=model, progress=False)

        spent = statistics.median(seconds(sweep) for _ in range(3 if length <= 64 else 1))
        print(f"{length:9d} {rows:8d} {spent:9.3f} {rows / spent:8.0f}", flush=True)


def where_time_goes(source: Gemma2ForCausalLM, length: int) -> None:
    """The kinds of operations in a resid_pre sweep, float32, by torch's profiler, which itself takes some time."""
    from torch.profiler import ProfilerActivity, profile

    model, pair = gs.load(source), [prompt(length, source.config.vocab_size, seed) for seed in (1, 2)]

    def sweep() -> Any:
        return gs.sweep(*pair, METRIC, site="resid_pre", model=model, progress=False)

    plain = statistics.median(seconds(sweep) for _ in range(3))
    with profile(activities=[ProfilerActivity.CPU]) as found:
        sweep()
    spent = {event.key: event.self_cpu_time_total / 1e6 for event in found.key_averages()}
    kinds = {"products": ("aten::mm", "aten::bmm", "aten::addmm"), "GELU": ("aten::gelu",)}
    parts = {kind: sum(spent.get(name, 0.0) for name in names) for kind, names in kinds.items()}
    parts["all else"] = sum(spent.values()) - sum(parts.values())
    said = ", ".join(f"{kind} {took:.2f} s" for kind, took in parts.items())
    print(f"resid_pre {length} positions float32: {plain:.2f} s; profiled: {said}")


def one_cell() -> None:
    """What a click in the widget costs: one exact cell on nano, the metric included."""
    clean = "When Mary and John went to the store, John gave a drink to"
    corrupt = "When Mary and John went to the store, Mary gave a drink to"
    asked: Any = {"site": "z", "by": ("layer", "head"), "layer": 3, "head": 1, "progress": False}
    metric = gs.logit_diff(" Mary", " John")
    spent = [seconds(lambda: gs.sweep(clean, corrupt, metric, **asked)) for _ in range(41)]
    print(f"one exact cell on nano: median {1e3 * statistics.median(spent):.1f} ms (aim: under 20 ms)")


def main() -> None:
    options = parser(__doc__, lengths=(16, 64, 128), rounds=3)
    options.add_argument("--sites", nargs="*", default=list(AXES), choices=list(AXES))
    options.add_argument("--cell", action="store_true", help="one cell on nano as well")
    options.add_argument("--table", action="store_true", help="how the cost grows with the rows as well")
    options.add_argument("--profile", action="store_true", help="where the time goes at 16 positions as well")
    options.add_argument("--transformer-lens", action="store_true", help="the first length there as well")
    given = options.parse_args()
    if given.small:
        given.lengths, given.rounds = [8], 1
    print(machine())
    source = checkpoint(SMALL if given.small else SHAPE)
    table = Table("sweeps: seconds, and their ratios round by round", COLUMNS)
    for length in given.lengths:
        for site in given.sites:
            for dtype in given.dtype:
                theirs = source if dtype == "float32" else copy.deepcopy(source).to(getattr(torch, dtype))
                row = measure_sweep(theirs, source, gs.load(theirs), length, site, given.rounds)
                table.add(**row)
                hold(row)
    record(given.json, [table])
    if given.table:
        growth(source)
    if given.cell:
        one_cell()
    if given.profile:
        where_time_goes(source, 16)
    if given.transformer_lens:
        transformer_lens(source, given.lengths[0])


if __name__ == "__main__":
    main()
