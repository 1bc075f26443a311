"""How often a model has the answers of the prompt families, beside nano.

    python tests/benchmarks/families.py gemma-3-270m-q4_k_m.gguf

prints a table: for each family, the share of clean prompts after which the answer is more likely than the one that it is
compared with, the share in which it is the likeliest of all tokens, the share of pairs in which the corrupted prompt lowers
the difference of the two logits, and that difference's mean over the clean prompts.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

import gemmascope as gs
from gemmascope.model.model import Model
from gemmascope.prompts.pairs import Pair

FAMILIES = ("ioi", "facts", "recall", "greater_than", "agreement", "pronouns", "closing", "induction")
Scores = tuple[float, float, float, float]


def scores(model: Model, pairs: Sequence[Pair]) -> Scores:
    """The three shares and the mean difference, as the module's head lists them."""
    answers = torch.tensor([[model.tokenizer.single(text) for text in (pair.answer, pair.against)] for pair in pairs])
    clean, corrupt = (
        torch.stack([each.next_logits for each in gs.trace([getattr(pair, name) for pair in pairs], model=model)])
        for name in ("clean", "corrupt")
    )
    difference, lowered = (x.gather(1, answers) @ torch.tensor([1.0, -1.0]) for x in (clean, corrupt))
    likeliest = clean.argmax(-1) == answers[:, 0]
    shares = (difference > 0, likeliest, lowered < difference)
    right, top, lower = (float(share.float().mean()) for share in shares)
    return right, top, lower, float(difference.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--n", type=int, default=100, help="pairs of each family")
    parser.add_argument("--families", nargs="*", default=FAMILIES, choices=FAMILIES)
    args = parser.parse_args()
    models = [gs.load(args.model), gs.load()]
    print("| family | " + " | ".join(f"{m.name}: pairs, right, likeliest, lowered, mean" for m in models) + " |")
    print("|---|" + "---|" * len(models))
    for family in args.families:
        cells = []
        for model in models:
            pairs = getattr(gs.prompts, family)(args.n, tokenizer=model.tokenizer)
            values = "{:.0%}, {:.0%}, {:.0%}, {:.1f}".format(*scores(model, pairs)) if len(pairs) else "no pair fits"
            cells.append(f"{len(pairs)}, {values}")
        print(f"| {family} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
