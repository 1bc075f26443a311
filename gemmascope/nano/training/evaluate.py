"""Measures nano on held-out cases: `python -m gemmascope.nano.training.evaluate [FOLDER]`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from gemmascope.loading.load import load
from gemmascope.model.gemma2 import Gemma2
from gemmascope.nano import CHECKPOINT
from gemmascope.nano.training.batches import BOS
from gemmascope.nano.training.circuits import circuits
from gemmascope.nano.training.evaluator import Evaluator
from gemmascope.prompts import agreement, closing, greater_than, ioi, pronouns, recall
from gemmascope.prompts.agreement import VERBS
from gemmascope.prompts.facts import held_out_cases
from gemmascope.tokens.tokenizer import Tokenizer

# For each skill, what nano must reach.
THRESHOLDS: dict[str, float] = {
    "indirect object": 0.95,
    "induction": 0.90,
    "facts": 0.95,
    "agreement": 0.95,
    "pronouns": 0.95,
    "greater than": 0.90,
    "long recall": 0.90,
    "closing": 0.90,
}


def induction_accuracy(evaluator: Evaluator, n: int, seed: int) -> float:
    """Top-1 accuracy at a random place in the repetition of 20 to 40 random tokens, over `n` sequences."""
    rng = Random(seed)
    prompts, answers = [], []
    for _ in range(n):
        part = rng.sample(evaluator.ordinary, rng.randint(20, 40))
        cut = rng.randrange(1, len(part))
        prompts.append([BOS, *part, *part[:cut]])
        answers.append(part[cut])
    return float((evaluator.last_logits(prompts).argmax(-1) == torch.tensor(answers)).float().mean())


def agreement_accuracy(evaluator: Evaluator, n: int, seed: int) -> float:
    """Share of prompts after which the most likely token is a verb that agrees with the subject."""
    pairs = agreement(n, seed, evaluator.tokenizer)
    forms = [{evaluator.tokenizer.ids(f" {verb[plural]}")[-1] for verb in VERBS} for plural in (0, 1)]
    right = [forms[pair.answer == " are"] for pair in pairs]
    return sum(top in verbs for top, verbs in zip(evaluator.top([p.clean for p in pairs]), right, strict=True)) / len(pairs)


def greater_than_mass(evaluator: Evaluator, n: int, seed: int) -> float:
    """Mean probability of the two digits that make a later year, summed over both digits exactly."""
    prompts = [pair.clean for pair in greater_than(n, seed, evaluator.tokenizer)]
    digits = [evaluator.tokenizer.ids(str(digit))[-1] for digit in range(10)]
    starts = [int("".join(c for c in prompt if c.isdigit())[2:4]) for prompt in prompts]
    first = _digit_probs(evaluator, prompts, digits)
    second = _digit_probs(evaluator, [f"{p}{start // 10}" for p, start in zip(prompts, starts, strict=True)], digits)
    total = 0.0
    for start, tens, units in zip(starts, first, second, strict=True):
        decade, unit = divmod(start, 10)
        total += float(tens[decade + 1 :].sum() + tens[decade] * units[unit + 1 :].sum())
    return total / len(prompts)


def _digit_probs(evaluator: Evaluator, prompts: Sequence[str], digits: list[int]) -> Tensor:
    return evaluator.last_logits([evaluator.tokenizer.ids(prompt) for prompt in prompts]).softmax(-1)[:, digits]


# For each skill, its measure on n cases drawn with a seed; facts are drawn from a fixed set of cases.
SKILLS: dict[str, Callable[[Evaluator, int, int], float]] = {
    "indirect object": lambda evaluator, n, seed: evaluator.top_is_answer(ioi(n, seed, evaluator.tokenizer)),
    "induction": induction_accuracy,
    "facts": lambda evaluator, n, seed: evaluator.top_is_answer(Random(seed).sample(held_out_cases(), n)),
    "agreement": agreement_accuracy,
    "pronouns": lambda evaluator, n, seed: evaluator.top_is_answer(pronouns(n, seed, evaluator.tokenizer)),
    "greater than": greater_than_mass,
    "long recall": lambda evaluator, n, seed: evaluator.top_is_answer(recall(n, seed, evaluator.tokenizer)),
    "closing": lambda evaluator, n, seed: evaluator.top_is_answer(closing(n, seed, evaluator.tokenizer)),
}


def measure(net: Gemma2, tokenizer: Tokenizer, n: int = 500, seed: int = 1) -> dict[str, float]:
    """Every skill on `n` held-out cases: the share of right answers, for `greater than` a mean probability."""
    evaluator = Evaluator(net, tokenizer)
    return {skill: accuracy(evaluator, n, seed) for skill, accuracy in SKILLS.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m gemmascope.nano.training.evaluate", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=CHECKPOINT, help="a checkpoint folder; nano's if left out")
    parser.add_argument("--cases", type=int, default=500, help="held-out cases of each skill")
    parser.add_argument("--seed", type=int, default=1, help="chooses the cases")
    args = parser.parse_args()
    model = load(str(args.folder))
    print("| skill | measured | at least |\n|---|---|---|")
    for skill, figure in measure(model.network, model.tokenizer, args.cases, args.seed).items():
        print(f"| {skill} | {figure:.1%} | {THRESHOLDS[skill]:.0%} |", flush=True)
    print("\n| circuit | measured |\n|---|---|")
    for circuit, figure in circuits(model).items():
        print(f"| {circuit} | {figure:.2f} |")


if __name__ == "__main__":
    main()
