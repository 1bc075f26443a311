"""Induction: random words said twice, so that only their first saying tells what comes next."""

from __future__ import annotations

from random import Random

from gemmascope.prompts.pairs import Encoder, Pair, Pairs, collect
from gemmascope.prompts.words import COLOURS, NAMES, NOUNS, NUMBERS, OBJECTS, PLACES

WORDS: tuple[str, ...] = tuple(sorted({*NAMES, *OBJECTS, *PLACES, *COLOURS, *NUMBERS, *(single for single, _ in NOUNS)}))
SHORTEST, LONGEST = 18, 28  # words in a repeat: longer than nano's window


def induction(n: int, seed: int = 0, tokenizer: Encoder | None = None) -> Pairs:
    """Random words, then the same words again up to a place in the middle; corrupted: another word stood there."""
    return collect("induction", _draw, n, seed, tokenizer)


def _draw(rng: Random) -> Pair:
    length = rng.randint(SHORTEST, LONGEST)
    *words, other = rng.sample(WORDS, length + 1)
    asked = rng.randint(1, length - 1)
    changed = [*words[:asked], other, *words[asked + 1 :]]
    clean, corrupt = (" ".join((*first, *words[:asked])) for first in (words, changed))
    return Pair(clean, corrupt, f" {words[asked]}", f" {other}")
