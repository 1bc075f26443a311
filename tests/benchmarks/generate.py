"""How fast gs.generate is beside transformers' generate: greedy tokens a second, for 1 and 16 prompts.

Held to: at least as many tokens a second as transformers, with its default cache and eager attention, the one that it has
for Gemma 2 (it refuses sdpa). One token and many are generated in alternation, so that what else the machine does falls on
all alike: the rate is that of the tokens after the first, and the prompt's pass with the first token is said apart.

Run: python tests/benchmarks/generate.py [--tokens 32] [--rounds 5] [--profile]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

import gemmascope as gs

VOCAB, CASES = 8192, [(1, 16), (1, 512), (16, 16), (16, 512)]

Generate = Callable[[torch.Tensor, int], torch.Tensor]


def checkpoint() -> Gemma2ForCausalLM:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=VOCAB, hidden_size=512, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=8,
        num_key_value_heads=4, head_dim=64, query_pre_attn_scalar=64, sliding_window=32, max_position_embeddings=8192,
        attn_implementation="eager", eos_token_id=None,
    )  # fmt: skip
    return Gemma2ForCausalLM(config).eval()


def prompts(count: int, length: int) -> torch.Tensor:
    return torch.randint(VOCAB, (count, length), generator=torch.Generator().manual_seed(length))


def of_transformers(source: Gemma2ForCausalLM) -> Generate:
    source.generation_config.eos_token_id = None

    def generate(ids: torch.Tensor, n_new: int) -> torch.Tensor:
        asked: dict[str, Any] = {"max_new_tokens": n_new, "do_sample": False, "pad_token_id": 0}
        with torch.no_grad():
            found: torch.Tensor = source.generate(ids, attention_mask=torch.ones_like(ids), **asked)
        return found

    return generate


def of_ours(source: Gemma2ForCausalLM) -> Generate:
    model = gs.load(source)
    return lambda ids, n_new: torch.stack([g.ids for g in gs.generate(list(ids), model=model, max_new_tokens=n_new)])


def spent(calls: list[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """The seconds of each call in every round, run in turn; a first round warms the caches."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds + 1):
        for taken, call in zip(times, calls, strict=True):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
    return [taken[1:] for taken in times]


def compare(makers: dict[str, Generate], count: int, length: int, n_new: int, rounds: int) -> None:
    ids = prompts(count, length)
    same = torch.equal(makers["ours"](ids, n_new), makers["transformers"](ids, n_new))
    calls: list[Callable[[], Any]] = [partial(make, ids, n) for make in makers.values() for n in (1, n_new)]
    found = dict(zip(((name, n) for name in makers for n in (1, n_new)), spent(calls, rounds), strict=True))
    first = {name: statistics.median(found[name, 1]) for name in makers}
    # Round by round, so that a slow moment falls on both sides of a difference.
    steps = {name: [b - a for a, b in zip(found[name, 1], found[name, n_new], strict=True)] for name in makers}
    rate = {name: count * (n_new - 1) / statistics.median(steps[name]) for name in makers}
    said = ", ".join(f"{name} {rate[name]:.0f}" for name in makers)
    times = rate["ours"] / rate["transformers"]
    firsts = ", ".join(f"{name} {1e3 * first[name]:.0f} ms" for name in makers)
    print(
        f"{count:2d} prompts after {length:3d} tokens: tokens a second {said}: {times:.2f} times (held to 1); "
        f"first token {firsts}; the tokens {'are the same' if same else 'DIFFER'}",
        flush=True,
    )


def where_time_goes(make: Generate, count: int) -> None:
    """The operations that take most of a step, by torch's profiler, which itself takes some time."""
    from torch.profiler import ProfilerActivity, profile

    ids, n_new = prompts(count, 16), 33
    make(ids, n_new)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        make(ids, n_new)
    events = sorted(found.key_averages(), key=lambda event: -event.self_cpu_time_total)
    whole = sum(event.self_cpu_time_total for event in events) / 1e3 / n_new
    said = ", ".join(f"{event.key} {event.self_cpu_time_total / 1e3 / n_new:.2f}" for event in events[:8])
    print(f"{count:2d} prompts: {whole:.1f} ms a step in operations: {said}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32")
    source = checkpoint()
    makers = {"ours": of_ours(source), "transformers": of_transformers(source)}
    for count, length in CASES:
        compare(makers, count, length, given.tokens, given.rounds)
    if given.profile:
        for count in (1, 16):
            where_time_goes(makers["ours"], count)


if __name__ == "__main__":
    main()
