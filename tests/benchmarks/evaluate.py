"""Benchmarks on lm-evaluation-harness: the time of its requests beside its own model for transformers, and a table of edits.

python tests/benchmarks/evaluate.py --speed            log-likelihoods of nano's prompt families, in turn on the same machine
python tests/benchmarks/evaluate.py --table nano ...   the families unedited, without the strongest heads, and in int8
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

import gemmascope as gs

os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

FAMILIES = ("ioi", "agreement", "pronouns", "facts", "recall", "induction")
HEADS, PAIRS_FOR_HEADS = 3, 8


def strongest_heads(model: Any, family: str) -> list[Any]:
    """Ablations of the heads that a gradient finds strongest on other pairs of the family."""
    effects: dict[tuple[int, int], float] = {}
    pairs = getattr(gs.prompts, family)(PAIRS_FOR_HEADS, seed=1000, tokenizer=model.tokenizer)
    for pair in pairs:
        metric = gs.logit_diff(pair.answer, pair.against)
        grid = gs.attribute(pair.clean, pair.corrupt, metric, site="z", by=("layer", "head"), into="clean", model=model)
        for layer, row in enumerate(grid.effect.values):
            for head, effect in enumerate(row):
                effects[layer, head] = effects.get((layer, head), 0.0) + float(effect) / len(pairs)
    best = sorted(effects, key=lambda key: -abs(effects[key]))[:HEADS]
    return [gs.ablate("z", layer=layer, head=head) for layer, head in best]


def table(source: str, n: int) -> None:
    """Print the accuracy of each family: unedited, without its strongest heads, and in int8."""
    model, small = gs.load(source), gs.load(source, weights="int8")
    print(
        "| family | n | unedited | without its strongest heads | int8 | the heads |\n|---|---|---|---|---|---|", flush=True
    )
    for name in FAMILIES:
        pairs = getattr(gs.prompts, name)(n, tokenizer=model.tokenizer)
        if len(pairs) < 8:
            print(f"| {name} | {len(pairs)} | too few pairs fit the tokenizer | | | |", flush=True)
            continue
        edits = strongest_heads(model, name)
        runs = [gs.evaluate(m, pairs, edits=e, progress=False) for m, e in ((model, ()), (model, edits), (small, ()))]
        shown = " | ".join(f"{run.value(name, 'acc'):.2f} ± {run.measures[0].stderr or 0:.2f}" for run in runs)
        print(f"| {name} | {len(pairs)} | {shown} | {', '.join(f'{e.layer}.{e.head}' for e in edits)} |", flush=True)


def speed(n: int, rounds: int, batches: list[int]) -> None:
    """Print the time of both for the same requests, in turn, and the median of the rounds' ratios."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from gemmascope.evaluation.harness import HarnessModel

    folder = Path(gs.__file__).parent / "nano" / "checkpoint"
    pairs = [pair for name in FAMILIES for pair in getattr(gs.prompts, name)(n)]
    asked = [(pair.clean, one) for pair in pairs for one in (pair.answer, pair.against)]
    requests = [Instance("loglikelihood", {}, one, i, ("task", i, 1)) for i, one in enumerate(asked)]
    ours = HarnessModel(gs.load(), progress=False)
    theirs = {size: HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=size) for size in batches}
    times: dict[str, list[float]] = {}
    for _ in range(rounds + 1):  # the first warms up
        answers = {}
        for name, lm in (("ours", ours), *((f"hf, {size} a batch", lm) for size, lm in theirs.items())):
            start = time.perf_counter()
            answers[name] = lm.loglikelihood(requests)
            times.setdefault(name, []).append(time.perf_counter() - start)
        off = max(abs(a[0] - b[0]) for other in answers.values() for a, b in zip(answers["ours"], other, strict=True))
        assert off < 1e-3, off
    print(f"{len(requests)} requests; they differ by {off:.1e} at most")
    for name, seconds in times.items():
        ratio = statistics.median(b / a for a, b in zip(times["ours"][1:], seconds[1:], strict=True))
        print(f"{name}: {statistics.median(seconds[1:]):.2f} s, {ratio:.2f} times ours")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--table", nargs="*", default=[])
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 16, 64])
    given = parser.parse_args()
    if given.speed:
        speed(given.n, given.rounds, given.batches)
    for source in given.table:
        print(f"\n{source}")
        table(source, given.n)
