"""Long recall: what was said of a person, asked again when it is out of a local layer's sight."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from gemmascope.prompts.pairs import Encoder, Pair, Pairs, collect
from gemmascope.prompts.splits import HELD_OUT_NAMES, TRAINING_NAMES
from gemmascope.prompts.words import COLOURS, NUMBERS, OBJECTS

# What a person has, and what it can be.
VALUES: dict[str, tuple[str, ...]] = {
    "key": NUMBERS,
    "number": NUMBERS,
    "room": NUMBERS,
    "colour": COLOURS,
    "secret": OBJECTS,
    "prize": OBJECTS,
}
FILLERS: tuple[str, ...] = (
    "It rained all day and the streets were wet.",
    "The children played in the garden until it was dark.",
    "Nobody came to the old house by the river.",
    "A small dog slept under the table in the kitchen.",
    "The train was late again, so everyone had to wait.",
    "There was bread and cheese on the table.",
    "The wind blew from the sea and the boats stayed in the harbour.",
    "The market was full of people that morning.",
    "In the evening the lamps were lit along the road.",
    "The snow fell slowly on the roofs of the village.",
)
LONGER_THAN = 16  # words between the two sayings: nano's window


def recall(n: int, seed: int = 0, tokenizer: Encoder | None = None) -> Pairs:
    """Two or three people's keys, filler beyond nano's window, and the question; corrupted: another key was named.

    The names are those that nano never saw in such a text.
    """
    return collect("recall", _draw, n, seed, tokenizer)


def statement(kind: str, name: str, value: str) -> str:
    """What is said of a person: "The key of Anna is seven."."""
    return f"The {kind} of {name} is {value}."


def _draw(rng: Random) -> Pair:
    kind, names, values = _choose(rng, tuple(sorted(HELD_OUT_NAMES)), rng.randint(2, 3))
    asked = rng.randrange(len(names))
    other = rng.choice([value for value in VALUES[kind] if value not in values])
    changed = [other if index == asked else value for index, value in enumerate(values)]
    after = _filler(rng)
    clean, corrupt = (
        " ".join(
            [statement(kind, name, value) for name, value in zip(names, told, strict=True)]
            + [after, f"The {kind} of {names[asked]} is"]
        )
        for told in (values, changed)
    )
    return Pair(clean, corrupt, f" {values[asked]}", f" {other}")


def _choose(rng: Random, names: tuple[str, ...], count: int) -> tuple[str, list[str], list[str]]:
    kind = rng.choice(list(VALUES))
    return kind, rng.sample(names, count), rng.sample(VALUES[kind], count)


def _filler(rng: Random, least: int = LONGER_THAN, of: Sequence[str] = FILLERS) -> str:
    """Sentences of at least `least` words together, if there are that many."""
    sentences = rng.sample(of, len(of))
    text: list[str] = []
    while sentences and sum(len(sentence.split()) for sentence in text) < least:
        text.append(sentences.pop())
    return " ".join(text)


def recall_text(rng: Random, fillers: Sequence[str] = FILLERS) -> str:
    """Statements, filler of any length, and the same again in another order, for the training corpus."""
    kind, names, values = _choose(rng, TRAINING_NAMES, rng.randint(1, 4))
    told = [statement(kind, name, value) for name, value in zip(names, values, strict=True)]
    again = rng.sample(told, len(told))
    filler = [_filler(rng, rng.randint(1, 3 * LONGER_THAN), fillers)] if rng.random() < 0.6 else []
    return " ".join(told + filler + again)
