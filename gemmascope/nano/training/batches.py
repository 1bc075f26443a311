"""Rows of token ids for training: texts packed one after the other, each between `<bos>` and `<eos>`.

Step `i` of a seed always has the same rows, so that a run that was stopped goes on as if it had not been.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import torch
from torch import Tensor

from gemmascope.nano.training.corpus import texts
from gemmascope.nano.training.evaluator import ordinary_ids
from gemmascope.prompts.induction import WORDS
from gemmascope.tokens.tokenizer import Tokenizer

EOS, BOS = 1, 2
IGNORED = -100  # a target that the loss passes over
ROWS_X_LENGTH = 6144  # tokens a step
# Length of a step's rows -> share of the steps: the long ones keep long prompts from falling apart.
LENGTHS: dict[int, float] = {128: 0.75, 256: 0.2, 512: 0.05}
# Share of the documents that are a random sequence and its repeat. Copying is what several of the skills start from,
# and it comes sooner when the first steps are full of it.
EARLY_STEPS, EARLY_SHARE, SHARE = 700, 0.35, 0.08

Document = tuple[list[int], int]  # ids, and how many of them at the start cannot be guessed: they are no targets


def batch(tokenizer: Tokenizer, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """The rows of one step and the next token of each position, both [run, pos]."""
    rng = Random(f"batch {seed} {step}")
    length = rng.choices(list(LENGTHS), list(LENGTHS.values()))[0]
    documents = _documents(tokenizer, f"{seed} {step}", rng, EARLY_SHARE if step < EARLY_STEPS else SHARE)
    rows = [_row(documents, length + 1) for _ in range(ROWS_X_LENGTH // length)]
    ids, targets = (torch.tensor([row[part] for row in rows]) for part in (0, 1))
    return ids[:, :-1], targets[:, 1:]


def _documents(tokenizer: Tokenizer, seed: str, rng: Random, share: float) -> Iterator[Document]:
    words, ordinary = [tokenizer.single(f" {word}") for word in WORDS], ordinary_ids(tokenizer)
    for text in texts(seed):
        while rng.random() < share:
            # Names and nouns, as people write such prompts, or any tokens at all, as induction scores are measured.
            yield repeated(words if rng.random() < 0.5 else ordinary, rng)
        yield tokenizer.encode(text), 0


def repeated(ids: list[int], rng: Random) -> Document:
    """Random ids, said twice, or more often if they are few; the first saying is no target, nor is the next token."""
    part = rng.sample(ids, int(3 * 16 ** rng.random()))  # 3 to 47 of them, the short ones likelier
    times = 2 if len(part) > 16 else rng.randint(2, 4)
    return part * times, len(part) + 1


def _row(documents: Iterator[Document], length: int) -> tuple[list[int], list[int]]:
    ids: list[int] = []
    targets: list[int] = []
    while len(ids) < length:
        document, unknown = next(documents)
        ids += [BOS, *document, EOS]
        targets += [BOS, *[IGNORED] * unknown, *document[unknown:], EOS]
    return ids[:length], targets[:length]
