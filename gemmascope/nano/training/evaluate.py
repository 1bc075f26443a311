"""What nano can do, measured on held-out cases: `python -m gemmascope.nano.training.evaluate [FOLDER]`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from gemmascope.loading.load import load
from gemmascope.model.gemma2 import Gemma2
from gemmascope.model.model import Model
from gemmascope.nano import CHECKPOINT
from gemmascope.nano.training.batches import BOS
from gemmascope.nano.training.circuits import (
    indirect_object_scores,
    induction_scores,
    previous_token_scores,
    recall_with_cut,
)
from gemmascope.nano.training.evaluator import Evaluator
from gemmascope.prompts import agreement, closing, greater_than, ioi, pronouns, recall
from gemmascope.prompts.agreement import VERBS
from gemmascope.prompts.facts import held_out_cases
from gemmascope.tokens.tokenizer import Tokenizer

# skill -> the least that nano is held to
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


def induction_accuracy(who: Evaluator, n: int, seed: int) -> float:
    """Top-1 over the second saying, its first token aside, of `n` sequences of 20 to 40 random tokens."""
    rng = Random(seed)
    prompts, answers = [], []
    for _ in range(n):
        part = rng.sample(who.ordinary, rng.randint(20, 40))
        asked = rng.randrange(1, len(part))
        prompts.append([BOS, *part, *part[:asked]])
        answers.append(part[asked])
    return float((who.last_logits(prompts).argmax(-1) == torch.tensor(answers)).float().mean())


def agreement_accuracy(who: Evaluator, n: int, seed: int) -> float:
    """Share of prompts after which the likeliest token is a verb of the subject's number."""
    pairs = agreement(n, seed, who.tokenizer)
    forms = [{who.tokenizer.ids(f" {verb[plural]}")[-1] for verb in VERBS} for plural in (0, 1)]
    right = [forms[pair.answer == " are"] for pair in pairs]
    return sum(top in verbs for top, verbs in zip(who.top([p.clean for p in pairs]), right, strict=True)) / len(pairs)


def greater_than_mass(who: Evaluator, n: int, seed: int) -> float:
    """Mean probability of the two digits that make a later year, summed over both digits exactly."""
    prompts = [pair.clean for pair in greater_than(n, seed, who.tokenizer)]
    digits = [who.tokenizer.ids(str(digit))[-1] for digit in range(10)]
    starts = [int("".join(c for c in prompt if c.isdigit())[2:4]) for prompt in prompts]
    first = _digit_probs(who, prompts, digits)
    second = _digit_probs(who, [f"{p}{start // 10}" for p, start in zip(prompts, starts, strict=True)], digits)
    total = 0.0
    for start, tens, units in zip(starts, first, second, strict=True):
        decade, unit = divmod(start, 10)
        total += float(tens[decade + 1 :].sum() + tens[decade] * units[unit + 1 :].sum())
    return total / len(prompts)


def _digit_probs(who: Evaluator, prompts: Sequence[str], digits: list[int]) -> Tensor:
    return who.last_logits([who.tokenizer.ids(prompt) for prompt in prompts]).softmax(-1)[:, digits]


# skill -> the measure of it on n cases drawn with a seed; facts has a fixed set of cases
SKILLS: dict[str, Callable[[Evaluator, int, int], float]] = {
    "indirect object": lambda who, n, seed: who.top_is_answer(ioi(n, seed, who.tokenizer)),
    "induction": induction_accuracy,
    "facts": lambda who, n, seed: who.top_is_answer(Random(seed).sample(held_out_cases(), n)),
    "agreement": agreement_accuracy,
    "pronouns": lambda who, n, seed: who.top_is_answer(pronouns(n, seed, who.tokenizer)),
    "greater than": greater_than_mass,
    "long recall": lambda who, n, seed: who.top_is_answer(recall(n, seed, who.tokenizer)),
    "closing": lambda who, n, seed: who.top_is_answer(closing(n, seed, who.tokenizer)),
}


def measure(net: Gemma2, tokenizer: Tokenizer, n: int = 500, seed: int = 1) -> dict[str, float]:
    """Every skill's figure on `n` held-out cases: a share of right answers, for `greater than` a mean probability."""
    who = Evaluator(net, tokenizer)
    return {skill: measured(who, n, seed) for skill, measured in SKILLS.items()}


def circuits(model: Model) -> dict[str, float]:
    """The figures of the circuits that are there to be found: the best head's score, or recall with edges cut."""
    return {
        "induction score of the best head": float(induction_scores(model).max()),
        "previous-token score of the best head": float(previous_token_scores(model).max()),
        "attention to the indirect object of the best head": float(indirect_object_scores(model).max()),
        "long recall, global layers cut": recall_with_cut(model, "global"),
        "long recall, local layers cut": recall_with_cut(model, "local"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m gemmascope.nano.training.evaluate", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=CHECKPOINT, help="a checkpoint folder; nano's if left out")
    parser.add_argument("--cases", type=int, default=500, help="held-out cases of each skill")
    parser.add_argument("--seed", type=int, default=1, help="what the cases are drawn with")
    given = parser.parse_args()
    model = load(str(given.folder))
    print("| skill | measured | at least |\n|---|---|---|")
    for skill, figure in measure(model.network, model.tokenizer, given.cases, given.seed).items():
        print(f"| {skill} | {figure:.1%} | {THRESHOLDS[skill]:.0%} |", flush=True)
    print("\n| circuit | measured |\n|---|---|")
    for circuit, figure in circuits(model).items():
        print(f"| {circuit} | {figure:.2f} |")


if __name__ == "__main__":
    main()
