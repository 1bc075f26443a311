"""How fast gs.generate is beside transformers' generate: greedy tokens a second, for 1 and 16 prompts.

Held to: at least as many tokens a second as transformers, with its default cache and eager attention, the one that it has
for Gemma 2 (it refuses sdpa). The two take turns, so that what else the machine does falls on both alike. The rate is that
of the median step after the first token; the prompt's pass with the first token is said apart.

Run: python tests/benchmarks/generate.py [--tokens 32] [--rounds 5] [--profile]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

import gemmascope as gs

VOCAB, CASES = 8192, [(1, 16), (1, 512), (16, 16), (16, 512)]

Generate = Callable[[torch.Tensor, int], torch.Tensor]


@dataclass
class Maker:
    """A way to generate. passes: when each pass of it began, which the model's embedding tells."""

    generate: Generate
    embedding: torch.nn.Module
    passes: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.embedding.register_forward_pre_hook(lambda *_: self.passes.append(time.perf_counter()))

    def timed(self, ids: torch.Tensor, n_new: int) -> tuple[float, list[float]]:
        """Seconds until the second pass begins, with the first token drawn, and those of each pass from there on."""
        self.passes.clear()
        start = time.perf_counter()
        self.generate(ids, n_new)
        begun = list(self.passes)
        return begun[1] - start, [b - a for a, b in itertools.pairwise(begun[1:])]


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


def of_transformers(source: Gemma2ForCausalLM) -> Maker:
    source.generation_config.eos_token_id = None

    def generate(ids: torch.Tensor, n_new: int) -> torch.Tensor:
        asked: dict[str, Any] = {"max_new_tokens": n_new, "do_sample": False, "pad_token_id": 0}
        with torch.no_grad():
            found: torch.Tensor = source.generate(ids, attention_mask=torch.ones_like(ids), **asked)
        return found

    return Maker(generate, source.model.embed_tokens)


def of_ours(source: Gemma2ForCausalLM) -> Maker:
    model = gs.load(source)

    def generate(ids: torch.Tensor, n_new: int) -> torch.Tensor:
        return torch.stack([g.ids for g in gs.generate(list(ids), model=model, max_new_tokens=n_new)])

    return Maker(generate, model.network.model.embed_tokens)


def compare(ours: Maker, theirs: Maker, count: int, length: int, n_new: int, rounds: int) -> None:
    ids = prompts(count, length)
    same = torch.equal(ours.generate(ids, n_new), theirs.generate(ids, n_new))  # which warms the caches as well
    first: dict[str, list[float]] = {"ours": [], "transformers": []}
    steps: dict[str, list[float]] = {"ours": [], "transformers": []}
    for _ in range(rounds):
        for name, maker in (("ours", ours), ("transformers", theirs)):
            until_second, others = maker.timed(ids, n_new)
            first[name].append(until_second)
            steps[name] += others
    rate = {name: count / statistics.median(spent) for name, spent in steps.items()}
    said = ", ".join(f"{name} {number:.0f}" for name, number in rate.items())
    firsts = ", ".join(f"{name} {1e3 * statistics.median(spent):.0f} ms" for name, spent in first.items())
    print(
        f"{count:2d} prompts after {length:3d} tokens: tokens a second {said}: "
        f"{rate['ours'] / rate['transformers']:.2f} times (held to 1); first token {firsts}; "
        f"the tokens {'are the same' if same else 'DIFFER'}",
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
    ours, theirs = of_ours(source), of_transformers(source)
    for count, length in CASES:
        compare(ours, theirs, count, length, given.tokens, given.rounds)
    if given.profile:
        for count in (1, 16):
            where_time_goes(ours.generate, count)


if __name__ == "__main__":
    main()
