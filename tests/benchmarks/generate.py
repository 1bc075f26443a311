"""What a greedy token costs beside transformers' generate, prompt by prompt and in one batch, and beside its floor.

transformers has its default cache and eager attention, the one that it has for Gemma 2's soft cap (it refuses sdpa). With
edits, hooks do the same there: a head's z is zero, and a vector is added to the stream, at every position of prompt and
text. A token's time is that of a whole call less a call for one token, by the tokens between. The floor of a step reads
every weight once at the rate at which this machine reads memory, or multiplies them with each prompt's row at the rate of
its products, whichever takes longer. All take turns within a round. One by one is a prompt's time, times the prompts.
In float32 the tokens must be the same; in either type transformers' own run of our text must find each of our tokens the
likeliest, or short of it by rounding.

Run: python tests/benchmarks/generate.py [--lengths 16] [--prompts 1 16] [--tokens 32] [--rounds 5] [--small] [--json FILE]
     [--profile]
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from measuring import Table, machine, parser, record
from rivals import SHAPE, SMALL, checkpoint, prompt
from side_by_side import hold, measure_tokens

import gemmascope as gs

COLUMNS = (
    "prompts", "positions", "dtype", "edits", "ours_ms", "batched_ms", "one_by_one_ms", "reading_ms", "products_ms",
    "ours/batched", "ours/one", "ours/floor", "first_ms", "first/batched", "same", "short",
)  # fmt: skip


def where_time_goes(model: Any, vocab_size: int, count: int) -> None:
    """The operations that take most of a step, by torch's profiler, which itself takes some time."""
    from torch.profiler import ProfilerActivity, profile

    ids, n_new = [prompt(16, vocab_size, seed) for seed in range(count)], 33
    gs.generate(ids, model=model, max_new_tokens=n_new)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        gs.generate(ids, model=model, max_new_tokens=n_new)
    events = sorted(found.key_averages(), key=lambda event: -event.self_cpu_time_total)
    whole = sum(event.self_cpu_time_total for event in events) / 1e3 / n_new
    said = ", ".join(f"{event.key} {event.self_cpu_time_total / 1e3 / n_new:.2f}" for event in events[:8])
    print(f"{count:2d} prompts: {whole:.1f} ms a step in operations: {said}")


def main() -> None:
    options = parser(__doc__, lengths=(16,), rounds=5)
    options.add_argument("--prompts", type=int, nargs="*", default=[1, 16], help="how many prompts at once")
    options.add_argument("--tokens", type=int, default=32, help="how many tokens are generated")
    options.add_argument("--profile", action="store_true", help="where the time of a step goes as well")
    given = options.parse_args()
    if given.small:
        given.rounds, given.tokens = 2, 6
    print(machine())
    table = Table("greedy generation: milliseconds a token, and their ratios round by round", COLUMNS)
    plain = checkpoint(SMALL if given.small else SHAPE)
    for dtype in given.dtype:
        source = copy.deepcopy(plain).to(getattr(torch, dtype))
        model = gs.load(source)
        for length in given.lengths:
            for count in given.prompts:
                for edited in (False, True):
                    row = measure_tokens(source, model, count, length, given.tokens, edited, given.rounds)
                    table.add(**row)
                    hold(row)
    record(given.json, [table])
    if given.profile:
        for count in given.prompts:
            where_time_goes(gs.load(plain), plain.config.vocab_size, count)


if __name__ == "__main__":
    main()
