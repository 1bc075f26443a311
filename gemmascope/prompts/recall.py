"""Long recall: a statement about a person, asked for again once it is outside a local layer's window."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from gemmascope.prompts.pairs import Encoder, Pair, Pairs, collect
from gemmascope.prompts.splits import HELD_OUT_NAMES, TRAINING_NAMES
from gemmascope.prompts.words import COLOURS, NUMBERS, OBJECTS

# What a statement is about, and the values it can have.
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
LONGER_THAN = 16  # words between the statement and the question: nano's window


def recall(n: int, seed: int = 0, tokenizer: Encoder | None = None) -> Pairs:
    """Two or three statements such as "The key of Anna is seven.", filler, and the start of one again.

    The filler is longer than nano's window of 16 tokens. The corrupted prompt states another value. nano never saw these
    names in such a text.

    Args:
        n: How many pairs.
        seed: The same seed gives the same pairs.
        tokenizer: The tokenizer that the pairs must fit, such as `model.tokenizer`. None for nano's.

    Returns:
        The pairs that fit, and why others were left out.

    Raises:
        PromptError: `n` is below 1, or an argument is of the wrong kind.

    Examples:
        >>> gs.prompts.recall(1)[0].answer
        ' sixty'
    """
    return collect("recall", _draw, n, seed, tokenizer)


def statement(kind: str, name: str, value: str) -> str:
    """A statement, such as "The key of Anna is seven."."""
    return f"The {kind} of {name} is {value}."


def _draw(rng: Random) -> Pair:
    kind, names, values = _choose(rng, tuple(sorted(HELD_OUT_NAMES)), rng.randint(2, 3))
    question = rng.randrange(len(names))
    other = rng.choice([value for value in VALUES[kind] if value not in values])
    changed = [other if index == question else value for index, value in enumerate(values)]
    filler = _filler(rng)
    clean, corrupt = (
        " ".join(
            [statement(kind, name, value) for name, value in zip(names, stated, strict=True)]
            + [filler, f"The {kind} of {names[question]} is"]
        )
        for stated in (values, changed)
    )
    return Pair(clean, corrupt, f" {values[question]}", f" {other}")


def _choose(rng: Random, names: tuple[str, ...], count: int) -> tuple[str, list[str], list[str]]:
    kind = rng.choice(list(VALUES))
    return kind, rng.sample(names, count), rng.sample(VALUES[kind], count)


def _filler(rng: Random, least: int = LONGER_THAN, of: Sequence[str] = FILLERS) -> str:
    """Sentences that have at least `least` words together, if there are enough."""
    sentences = rng.sample(of, len(of))
    text: list[str] = []
    while sentences and sum(len(sentence.split()) for sentence in text) < least:
        text.append(sentences.pop())
    return " ".join(text)


def recall_text(rng: Random, fillers: Sequence[str] = FILLERS) -> str:
    """Statements, filler of any length, and the statements again in another order, for the training corpus."""
    kind, names, values = _choose(rng, TRAINING_NAMES, rng.randint(1, 4))
    statements = [statement(kind, name, value) for name, value in zip(names, values, strict=True)]
    again = rng.sample(statements, len(statements))
    filler = [_filler(rng, rng.randint(1, 3 * LONGER_THAN), fillers)] if rng.random() < 0.6 else []
    return " ".join(statements + filler + again)
