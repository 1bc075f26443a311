"""Facts: the last word of a sentence that states a fact, in a phrasing that nano never saw for that fact."""

from __future__ import annotations

from functools import cache
from random import Random
from zlib import crc32

from gemmascope.prompts.pairs import Encoder, Pair, Pairs, collect
from gemmascope.prompts.relations import RELATIONS, Relation

HELD_OUT_PHRASINGS = 3  # of each fact's phrasings


def facts(n: int, seed: int = 0, tokenizer: Encoder | None = None) -> Pairs:
    """Facts of seven relations, such as capitals and currencies.

    The corrupted prompt asks the same about another subject. nano never saw these facts in these phrasings.

    Args:
        n: How many pairs.
        seed: The same seed gives the same pairs.
        tokenizer: The tokenizer that the pairs must fit, such as `model.tokenizer`. None for nano's.

    Returns:
        The pairs that fit, and why others were left out.

    Raises:
        PromptError: `n` is below 1, or an argument is of the wrong kind.

    Examples:
        >>> gs.prompts.facts(1)[0]
        Pair(clean='Question: What language is spoken in India? Answer:', ..., answer=' Hindi', against=' Chinese')
    """
    return collect("facts", _draw, n, seed, tokenizer)


def held_out_cases() -> list[Pair]:
    """Every fact in every phrasing that is held out for it, each with another subject in the corrupted prompt."""
    return [
        _pair(relation, subject, phrasing, Random(f"{subject} {phrasing}"))
        for relation in RELATIONS
        for subject in relation.answers
        for phrasing in split_phrasings(relation, subject)[1]
    ]


@cache
def split_phrasings(relation: Relation, subject: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The phrasings of a fact: those in the training corpus, and those that are held out for this fact."""
    shuffled = sorted(relation.phrasings, key=lambda phrasing: crc32(f"{relation.name} {subject} {phrasing}".encode()))
    return tuple(shuffled[HELD_OUT_PHRASINGS:]), tuple(shuffled[:HELD_OUT_PHRASINGS])


def _draw(rng: Random) -> Pair:
    relation = rng.choices(RELATIONS, [len(relation.answers) for relation in RELATIONS])[0]
    subject = rng.choice(list(relation.answers))
    return _pair(relation, subject, rng.choice(split_phrasings(relation, subject)[1]), rng)


def _pair(relation: Relation, subject: str, phrasing: str, rng: Random) -> Pair:
    answer = relation.answers[subject]
    # With as many words, most tokenizers give both prompts the same number of tokens.
    same_length = [
        other for other, against in relation.answers.items() if against != answer and other.count(" ") == subject.count(" ")
    ]
    other = rng.choice(same_length or [other for other, against in relation.answers.items() if against != answer])
    clean, corrupt = (phrasing.format(_start(who, phrasing)) for who in (subject, other))
    return Pair(clean, corrupt, f" {answer}", f" {relation.answers[other]}")


def _start(subject: str, phrasing: str) -> str:
    return subject[0].upper() + subject[1:] if phrasing.startswith("{}") else subject


def fact_text(rng: Random) -> str:
    """One stated fact for the training corpus, in a phrasing that is not held out for it."""
    relation = rng.choices(RELATIONS, [len(relation.answers) for relation in RELATIONS])[0]
    subject = rng.choice(list(relation.answers))
    phrasing = rng.choice(split_phrasings(relation, subject)[0])
    return phrasing.format(_start(subject, phrasing)) + f" {relation.answers[subject]}."
