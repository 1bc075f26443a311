"""The words and combinations that training never sees, so that they can be used to measure nano.

A held-out word does occur in training, in stories, lists and random sequences, or its embedding would be noise. It never
occurs in the role in which its prompt family uses it.
"""

from __future__ import annotations

from zlib import crc32

from gemmascope.prompts.words import MEN, NAMES, NOUNS, OBJECTS, PLACES, WOMEN

# Never in an indirect-object, pronoun or recall text of the training corpus.
HELD_OUT_NAMES: frozenset[str] = frozenset(WOMEN[-12:] + MEN[-12:])
# Never in an indirect-object text.
HELD_OUT_OBJECTS: frozenset[str] = frozenset(OBJECTS[-8:])
HELD_OUT_PLACES: frozenset[str] = frozenset(PLACES[-8:])
# Never the subject before a distractor noun (singular forms name the pair).
HELD_OUT_NOUNS: frozenset[str] = frozenset(single for single, _ in NOUNS[-24:])

TRAINING_NAMES: tuple[str, ...] = tuple(name for name in NAMES if name not in HELD_OUT_NAMES)
TRAINING_OBJECTS: tuple[str, ...] = tuple(item for item in OBJECTS if item not in HELD_OUT_OBJECTS)
TRAINING_PLACES: tuple[str, ...] = tuple(place for place in PLACES if place not in HELD_OUT_PLACES)


def held_out(role: str, *parts: str, share: float) -> bool:
    """Whether this combination is held out, as a fixed pseudo-random `share` of all combinations are.

    Depends on the words alone, so that corpus and tests agree without a list.
    """
    return crc32("|".join((role, *parts)).encode()) % 1000 < share * 1000


def pair_held_out(first: str, second: str) -> bool:
    """Whether two names, in either order, never occur together in an indirect-object text of the training corpus.

    Mary and John, of the classic example, are held out.
    """
    low, high = sorted((first, second))
    return (low, high) == ("John", "Mary") or held_out("names", low, high, share=0.1)
