"""Agreement: a verb agrees with its subject, not with the noun between them."""

from __future__ import annotations

from random import Random

from gemmascope.prompts.pairs import Encoder, Pair, Pairs, collect
from gemmascope.prompts.splits import HELD_OUT_NOUNS
from gemmascope.prompts.words import NOUNS

# (singular, plural) forms of the verb that follows; the first is the family's answer.
VERBS: tuple[tuple[str, str], ...] = (("is", "are"), ("was", "were"), ("has", "have"), ("looks", "look"))
_VERB_SHARES = (6, 2, 1, 1)
BETWEEN: tuple[str, ...] = (
    "near the {}",
    "behind the {}",
    "next to the {}",
    "beside the {}",
    "in front of the {}",
    "from the story about the {}",
    "with the {}",
    "that belongs to the {}",
    "that the {} saw",
    "the {} talked about",
    "across from the {}",
    "under the old {}",
)
_PLURAL_BETWEEN = {"that belongs to the {}": "that belong to the {}"}
_AFTER = (
    "old", "new", "very small", "here", "gone", "not here", "quite large", "well known", "lost", "safe", "ready",
)  # fmt: skip
_AFTER_HAS = ("been here for years", "not been seen", "a new place", "been lost")
_OPENINGS = ("The {}", "The {}", "I think the {}", "It seems that the {}", "We know that the {}", "Today the {}")

_KNOWN = tuple(pair for pair in NOUNS if pair[0] not in HELD_OUT_NOUNS)
_UNSEEN = tuple(pair for pair in NOUNS if pair[0] in HELD_OUT_NOUNS)


def agreement(n: int, seed: int = 0, tokenizer: Encoder | None = None) -> Pairs:
    """Subject-verb agreement across a noun of the other number: " is" against " are".

    The corrupted prompt changes the subject's number. nano never saw these subjects before such a noun.

    Args:
        n: How many pairs.
        seed: The same seed gives the same pairs.
        tokenizer: The tokenizer that the pairs must fit, such as `model.tokenizer`. None for nano's.

    Returns:
        The pairs that fit, and why others were left out.

    Raises:
        PromptError: `n` is below 1, or an argument is of the wrong kind.

    Examples:
        >>> gs.prompts.agreement(1)[0].clean
        'It seems that the tiger that the boats saw'
    """
    return collect("agreement", _draw, n, seed, tokenizer)


def _draw(rng: Random) -> Pair:
    plural = rng.random() < 0.5
    subject, distractor = rng.choice(_UNSEEN), rng.choice(_KNOWN)
    opening, between = rng.choice(_OPENINGS), rng.choice([b for b in BETWEEN if b not in _PLURAL_BETWEEN])
    clean, corrupt = (
        f"{opening.format(subject[number])} {between.format(distractor[not plural])}" for number in (plural, not plural)
    )
    return Pair(clean, corrupt, f" {VERBS[0][plural]}", f" {VERBS[0][not plural]}")


def agreement_text(rng: Random) -> str:
    """One sentence for the training corpus; subject and distractor have independent numbers."""
    plural = rng.random() < 0.5
    subject, distractor = rng.choice(_KNOWN), rng.choice(NOUNS)
    between = rng.choice(BETWEEN)
    if plural:
        between = _PLURAL_BETWEEN.get(between, between)
    start = rng.choice(_OPENINGS).format(subject[plural])
    return f"{start} {between.format(rng.choice(distractor))} {verb_phrase(rng, plural)}."


def plain_text(rng: Random) -> str:
    """A sentence without a distractor, for the training corpus; every noun may be its subject."""
    plural = rng.random() < 0.5
    return f"{rng.choice(_OPENINGS).format(rng.choice(NOUNS)[plural])} {verb_phrase(rng, plural)}."


def verb_phrase(rng: Random, plural: bool) -> str:
    """A verb of the right number and the rest of the sentence."""
    verb = rng.choices(VERBS, _VERB_SHARES)[0]
    return f"{verb[plural]} {rng.choice(_AFTER_HAS if verb[0] == 'has' else _AFTER)}"
