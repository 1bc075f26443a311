"""Facts: the last word of a sentence that states one, in a wording that nano never saw for that fact."""

from __future__ import annotations

from functools import cache
from random import Random
from zlib import crc32

from gemmascope.prompts.pairs import Encoder, Pair, Pairs, collect
from gemmascope.prompts.relations import RELATIONS, Relation

HELD_OUT_PHRASINGS = 3  # of each fact's phrasings


def facts(n: int, seed: int = 0, tokenizer: Encoder | None = None) -> Pairs:
    """Facts of several relations; the corrupted prompt asks the same of another subject."""
    return collect("facts", _draw, n, seed, tokenizer)


def held_out_cases() -> list[Pair]:
    """Every fact in every phrasing held out for it, with the first subject of another answer as corruption."""
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
    # As many words: then most tokenizers align the two.
    alike = [
        other for other, against in relation.answers.items() if against != answer and other.count(" ") == subject.count(" ")
    ]
    other = rng.choice(alike or [other for other, against in relation.answers.items() if against != answer])
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
