"""Pronouns: a person named in one sentence is "she" or "he" in the next."""

from __future__ import annotations

from random import Random

from gemmascope.prompts.pairs import Encoder, Pair, Pairs, collect
from gemmascope.prompts.splits import HELD_OUT_NAMES, TRAINING_NAMES
from gemmascope.prompts.words import MEN, OBJECTS, PLACES, WOMEN, an, pronoun

FIRST: tuple[str, ...] = (
    "{name} went to the {place}.",
    "{name} bought {thing} at the {place}.",
    "{name} was tired after a long day at the {place}.",
    "{name} lost {thing}.",
    "{name} lives near the {place}.",
    "Yesterday {name} came back from the {place}.",
    "Last week {name} found {thing} behind the {place}.",
    "Everybody likes {name}.",
    "{name} has a house next to the {place}.",
    "In the morning {name} walked to the {place}.",
)
SECOND: tuple[str, ...] = (
    "Then",
    "After that,",
    "In the evening",
    "Later that day",
    "The next day",
    "Now",
    "I think that",
    "When it got dark,",
    "Of course",
    "We all know that",
)
_AFTER = (
    "went home.", "was happy.", "slept for a long time.", "wrote a letter.", "made some tea.", "called a friend.",
    "is well.", "wanted to rest.", "read a book.", "looked out of the window.",
)  # fmt: skip


def pronouns(n: int, seed: int = 0, tokenizer: Encoder | None = None) -> Pairs:
    """A sentence about a person and the start of the next: " she" against " he".

    The corrupted prompt names a person of the other gender. nano saw these names only in stories, not in such a text.

    Args:
        n: How many pairs.
        seed: The same seed gives the same pairs.
        tokenizer: The tokenizer that the pairs must fit, such as `model.tokenizer`. None for nano's.

    Returns:
        The pairs that fit, and why others were left out.

    Raises:
        PromptError: `n` is below 1, or an argument is of the wrong kind.

    Examples:
        >>> gs.prompts.pronouns(1)[0]
        Pair(clean='Last week Carl found a mirror behind the town. Then', ..., answer=' he', against=' she')
    """
    return collect("pronouns", _draw, n, seed, tokenizer)


def _draw(rng: Random) -> Pair:
    woman, man = (rng.choice([name for name in names if name in HELD_OUT_NAMES]) for names in (WOMEN, MEN))
    name, other = rng.sample((woman, man), 2)
    first, second, place, thing = _choose(rng)
    clean, corrupt = (f"{first.format(name=who, place=place, thing=thing)} {second}" for who in (name, other))
    return Pair(clean, corrupt, *(f" {pronoun(who, 'she', 'he')}" for who in (name, other)))


def _choose(rng: Random) -> tuple[str, str, str, str]:
    return rng.choice(FIRST), rng.choice(SECOND), rng.choice(PLACES), an(rng.choice(OBJECTS))


def pronouns_text(rng: Random) -> str:
    """Two sentences for the training corpus, without held-out names."""
    name = rng.choice(TRAINING_NAMES)
    first, second, place, thing = _choose(rng)
    who = pronoun(name, "she", "he")
    return f"{first.format(name=name, place=place, thing=thing)} {second} {who} {rng.choice(_AFTER)}"
