"""Induction: a repeated sequence of random words, in which only the first occurrence tells what comes next."""

from __future__ import annotations

from random import Random

from gemmascope.prompts.pairs import Encoder, Pair, Pairs, collect
from gemmascope.prompts.words import COLOURS, NAMES, NOUNS, NUMBERS, OBJECTS, PLACES

WORDS: tuple[str, ...] = tuple(sorted({*NAMES, *OBJECTS, *PLACES, *COLOURS, *NUMBERS, *(single for single, _ in NOUNS)}))
SHORTEST, LONGEST = 18, 28  # words in a repeat: longer than nano's window


def induction(n: int, seed: int = 0, tokenizer: Encoder | None = None) -> Pairs:
    """Random words and a repetition that stops in the middle; the answer is the word that comes next.

    The corrupted prompt has another word at that place the first time.

    Args:
        n: How many pairs.
        seed: The same seed gives the same pairs.
        tokenizer: The tokenizer that the pairs must fit, such as `model.tokenizer`. None for nano's.

    Returns:
        The pairs that fit, and why others were left out.

    Raises:
        PromptError: `n` is below 1, or an argument is of the wrong kind.

    Examples:
        >>> gs.prompts.induction(1)[0].answer
        ' Paul'

    References:
        Olsson et al., "In-context Learning and Induction Heads" (arXiv 2209.11895).
    """
    return collect("induction", _draw, n, seed, tokenizer)


def _draw(rng: Random) -> Pair:
    length = rng.randint(SHORTEST, LONGEST)
    *words, other = rng.sample(WORDS, length + 1)
    cut = rng.randint(1, length - 1)
    changed = [*words[:cut], other, *words[cut + 1 :]]
    clean, corrupt = (" ".join((*first, *words[:cut])) for first in (words, changed))
    return Pair(clean, corrupt, f" {words[cut]}", f" {other}")
