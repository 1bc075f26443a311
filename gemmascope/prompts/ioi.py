"""Indirect object identification: two people are named, one of them again; the other receives something."""

from __future__ import annotations

from random import Random

from gemmascope.prompts.pairs import Encoder, Pair, Pairs, collect
from gemmascope.prompts.splits import (
    HELD_OUT_NAMES,
    HELD_OUT_OBJECTS,
    HELD_OUT_PLACES,
    TRAINING_NAMES,
    TRAINING_OBJECTS,
    TRAINING_PLACES,
    pair_held_out,
)
from gemmascope.prompts.words import an

TEMPLATES: tuple[str, ...] = (
    "When {a} and {b} went to the {place}, {s} gave {thing} to",
    "When {a} and {b} were at the {place}, {s} handed {thing} to",
    "After {a} and {b} went to the {place}, {s} gave {thing} to",
    "After {a} and {b} left the {place}, {s} sold {thing} to",
    "While {a} and {b} were walking to the {place}, {s} offered {thing} to",
    "While {a} and {b} were working at the {place}, {s} passed {thing} to",
    "Then, {a} and {b} went to the {place}. {s} gave {thing} to",
    "Then, {a} and {b} had a long talk at the {place}. Afterwards {s} said to",
    "Yesterday {a} and {b} met near the {place}, and {s} lent {thing} to",
    "One day {a} and {b} found {thing} at the {place}. {s} gave it to",
    "Friends {a} and {b} found {thing} at the {place}. {s} gave it to",
    "{a} and {b} were at the {place} when {s} sent {thing} to",
    "{a} met {b} at the {place}, and then {s} showed {thing} to",
    "As {a} and {b} came back from the {place}, {s} threw {thing} to",
    "Because {a} and {b} liked the {place}, {s} brought {thing} to",
    "It was late when {a} and {b} got to the {place}. {s} gave {thing} to",
)
# Never seen in training, though their words are.
HELD_OUT_TEMPLATES: tuple[str, ...] = (
    "Later, {a} and {b} walked to the {place}, and {s} handed {thing} to",
    "Once {a} and {b} were back from the {place}, {s} offered {thing} to",
    "Before {a} and {b} left the {place}, {s} gave {thing} to",
)


def ioi(n: int, seed: int = 0, tokenizer: Encoder | None = None) -> Pairs:
    """Indirect object identification: "When Mary and John went to the store, John gave a drink to".

    The corrupted prompt repeats the other name. nano never saw these objects, places and a fifth of the templates in such a
    text, nor half of the names; the other half are pairs of names that never occurred together.

    Args:
        n: How many pairs.
        seed: The same seed gives the same pairs.
        tokenizer: The tokenizer that the pairs must fit, such as `model.tokenizer`. None for nano's.

    Returns:
        The pairs that fit, and why others were left out.

    Raises:
        PromptError: `n` is below 1, or an argument is of the wrong kind.

    Examples:
        >>> gs.prompts.ioi(1)[0]
        Pair(clean='It was late when Andrew and Sophie got to the village. Andrew gave a kiss to', ..., against=' Andrew')

    References:
        Wang et al., "Interpretability in the Wild" (arXiv 2211.00593).
    """
    return collect("ioi", _draw, n, seed, tokenizer)


def _draw(rng: Random) -> Pair:
    first, second = _held_out_names(rng)
    template = rng.choice(HELD_OUT_TEMPLATES if rng.random() < 0.2 else TEMPLATES)
    place, thing = rng.choice(sorted(HELD_OUT_PLACES)), an(rng.choice(sorted(HELD_OUT_OBJECTS)))
    subject, answer = rng.sample((first, second), 2)  # both orders: ABBA and BABA
    clean, corrupt = (template.format(a=first, b=second, s=again, place=place, thing=thing) for again in (subject, answer))
    return Pair(clean, corrupt, f" {answer}", f" {subject}")


def _held_out_names(rng: Random) -> tuple[str, str]:
    if rng.random() < 0.5:
        first, second = rng.sample(sorted(HELD_OUT_NAMES), 2)
        return first, second
    while True:
        first, second = rng.sample(TRAINING_NAMES, 2)
        if pair_held_out(first, second):
            return first, second


def ioi_text(rng: Random) -> str:
    """One text for the training corpus, without anything that is held out."""
    first, second = _training_names(rng)
    template = rng.choice(TEMPLATES)
    place, thing = rng.choice(TRAINING_PLACES), an(rng.choice(TRAINING_OBJECTS))
    if rng.random() < 0.07:  # a third person acts, so that nobody is named twice
        third = rng.choice([name for name in TRAINING_NAMES if name not in (first, second)])
        return template.format(a=first, b=second, s=third, place=place, thing=thing) + " both of them."
    subject, answer = rng.sample((first, second), 2)
    end = rng.choice((".", ".", ".", ", and that was all.", " and smiled.", " at once."))
    return template.format(a=first, b=second, s=subject, place=place, thing=thing) + f" {answer}{end}"


def _training_names(rng: Random) -> tuple[str, str]:
    while True:
        first, second = rng.sample(TRAINING_NAMES, 2)
        if not pair_held_out(first, second):
            return first, second
