"""Batches of token ids for training: texts one after the other, each between `<bos>` and `<eos>`.

A seed's step always has the same rows, so that a run can be resumed as if it had never stopped.
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
IGNORED = -100  # the target that the loss ignores
ROWS_X_LENGTH = 6144  # tokens per step
# The share of the steps by the length of their rows. Without the long ones, nano would fail on long prompts.
LENGTHS: dict[int, float] = {128: 0.75, 256: 0.2, 512: 0.05}
# The share of documents that are a random sequence and its repetition. Several skills build on copying, and nano learns it
# sooner when the first steps are full of it.
EARLY_STEPS, EARLY_SHARE, SHARE = 700, 0.35, 0.08

Document = tuple[list[int], int]  # ids, and how many of the first cannot be predicted and are not targets


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
            # Either names and nouns, as in prompts that people write, or any tokens, as in the prompts of induction scores.
            yield repeated(words if rng.random() < 0.5 else ordinary, rng)
        yield tokenizer.encode(text), 0


def repeated(ids: list[int], rng: Random) -> Document:
    """Random ids, repeated; the first occurrence and the token after it are not targets."""
    part = rng.sample(ids, int(3 * 16 ** rng.random()))  # 3 to 47 of them, short ones more often
    times = 2 if len(part) > 16 else rng.randint(2, 4)
    return part * times, len(part) + 1


def _row(documents: Iterator[Document], length: int) -> tuple[list[int], list[int]]:
    ids: list[int] = []
    targets: list[int] = []
    while len(ids) < length:
        document, n_ignored = next(documents)
        ids += [BOS, *document, EOS]
        targets += [BOS, *[IGNORED] * n_ignored, *document[n_ignored:], EOS]
    return ids[:length], targets[:length]
