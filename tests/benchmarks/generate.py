"""What a greedy token costs beside transformers' generate, prompt by prompt and in one batch, and beside its floor.

transformers has its default cache and eager attention, the one that it has for Gemma 2's soft cap (it refuses sdpa). With
edits, hooks do the same there: a head's z is zero, and a vector is added to the stream, at every position of prompt and
text. A token's time is that of a whole call less a call for one token, by the tokens between. The floor of a step reads every
weight once at the rate at which this machine reads memory, or multiplies every prompt's row with them at the rate of its
products, whichever takes longer. All take turns within a round. One by one is a prompt's time, times the prompts.
In float32 the tokens must be the same; in either type transformers' own run of our text must find each of our tokens the
likeliest, or short of it by rounding.

Run: python tests/benchmarks/generate.py [--lengths 16] [--prompts 1 16] [--tokens 32] [--rounds 5] [--small] [--json FILE]
     [--profile]
"""

from __future__ import annotations

import argparse
import copy
from typing import Any

import torch
from floors import read_weights, token_flops
from measuring import DisagreementError, Table, Turn, in_turn, machine, parser, products, reading, record
from rivals import SHAPE, SMALL, checkpoint, config_of, edit_hooks, greedy, prompt, short_of_the_likeliest
from transformers import Gemma2ForCausalLM

import gemmascope as gs

LAYER, HEAD = 2, 1
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 0.03}
COLUMNS = (
    "prompts", "positions", "dtype", "edits", "ours_ms", "batched_ms", "one_by_one_ms", "reading_ms", "products_ms",
    "ours/batched", "ours/one", "ours/floor", "first_ms", "first/batched", "same", "short",
)  # fmt: skip


def edits_of(source: Gemma2ForCausalLM) -> tuple[list[Any], Any]:
    """The same edits for us and, as hooks, for transformers."""
    vector = torch.randn(source.config.hidden_size, generator=torch.Generator().manual_seed(3)).to(source.dtype)
    ours = [gs.ablate("z", layer=LAYER, head=HEAD), gs.add("resid_pre", vector, layer=LAYER + 1)]
    return ours, edit_hooks(source, LAYER, HEAD, vector)


def compare(
    table: Table, source: Gemma2ForCausalLM, model: Any, count: int, length: int, edited: bool, given: argparse.Namespace
) -> None:
    config, dtype = config_of(source), source.dtype
    ids = torch.stack([prompt(length, config.vocab_size, 100 + seed) for seed in range(count)])
    edits, hooks = edits_of(source) if edited else ([], [])

    def ours(n_new: int) -> torch.Tensor:
        made = gs.generate(list(ids), model=model, max_new_tokens=n_new, edits=edits)
        return torch.stack([g.ids.cpu() for g in made])

    found, wanted = ours(given.tokens), greedy(source, ids, given.tokens, hooks).cpu()
    same, short = torch.equal(found, wanted), short_of_the_likeliest(source, found, length, hooks)
    if short > ROUNDING[dtype] or (dtype == torch.float32 and not same):
        raise DisagreementError(f"{count} prompts, {dtype}, edits {edited}: same tokens {same}, short by {short:.1e}")
    turns = {}
    for name, n_new in (("whole", given.tokens), ("first", 1)):
        turns[f"ours {name}"] = Turn(lambda n=n_new: ours(n))
        turns[f"batched {name}"] = Turn(lambda n=n_new: greedy(source, ids, n, hooks))
        turns[f"one {name}"] = Turn(lambda n=n_new: greedy(source, ids[:1], n, hooks), count)
    if count == 1:
        turns = {name: turn for name, turn in turns.items() if not name.startswith("one")}
    turns["reading"] = reading(read_weights(config) * source.dtype.itemsize)
    turns["products"] = products(token_flops(config, count), config.d_model, config.d_mlp, dtype)
    took = in_turn(turns, given.rounds)
    for name in ("ours", "batched", "one")[: 3 if count > 1 else 2]:
        took = took.less(name, f"{name} whole", f"{name} first", 1 / (given.tokens - 1))
    floor = max(("reading", "products"), key=took.median)
    table.add(
        **{
            "prompts": count, "positions": length, "dtype": str(dtype)[6:], "edits": "yes" if edited else "no",
            "rounds": given.rounds, "tokens": given.tokens,
            "ours_ms": 1e3 * took.median("ours"), "batched_ms": 1e3 * took.median("batched"),
            "one_by_one_ms": 1e3 * took.median("one") if "one" in took else None,
            "reading_ms": 1e3 * took.median("reading"), "products_ms": 1e3 * took.median("products"),
            "ours/batched": took.ratio("ours", "batched"), "ours/one": took.ratio("ours", "one") if "one" in took else None,
            "ours/floor": took.ratio("ours", floor), "first_ms": 1e3 * took.median("ours first"),
            "first/batched": took.ratio("ours first", "batched first"), "same": "yes" if same else "no", "short": short,
        }
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
        model = gs.load(copy.deepcopy(source))
        for length in given.lengths:
            for count in given.prompts:
                for edited in (False, True):
                    compare(table, source, model, count, length, edited, given)
    record(given.json, [table])
    if given.profile:
        for count in given.prompts:
            where_time_goes(gs.load(plain), plain.config.vocab_size, count)


if __name__ == "__main__":
    main()
