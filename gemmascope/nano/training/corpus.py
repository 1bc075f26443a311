"""The corpus: an endless, seeded stream of texts that mixes prose with the skills that nano is to learn.

batches.py adds repeated random sequences, which are tokens rather than text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from gemmascope.nano.training.exchanges import chat, listing, questions
from gemmascope.nano.training.prose import remark, story
from gemmascope.prompts.agreement import agreement_text, plain_text
from gemmascope.prompts.closing import closing_text
from gemmascope.prompts.facts import fact_text
from gemmascope.prompts.greater_than import greater_than_text
from gemmascope.prompts.ioi import ioi_text
from gemmascope.prompts.pronouns import pronouns_text
from gemmascope.prompts.recall import FILLERS, recall_text


def _several(make: Callable[[Random], str], most: int) -> Callable[[Random], str]:
    """One to `most` texts of a kind in a row."""
    return lambda rng: " ".join(make(rng) for _ in range(rng.randint(1, most)))


def _introduced(make: Callable[[Random], str]) -> Callable[[Random], str]:
    """Sometimes with a sentence before the text, so that it does not always begin at the first position."""
    return lambda rng: f"{remark(rng)} {make(rng)}" if rng.random() < 0.25 else make(rng)


def _recall(rng: Random) -> str:
    return recall_text(rng, [*rng.sample(FILLERS, 3), *(remark(rng) for _ in range(5))])


# For each kind, its share of the texts and a function that makes one.
MIXTURE: dict[str, tuple[float, Callable[[Random], str]]] = {
    "story": (14, story),
    "remarks": (6, _several(remark, 4)),
    "questions": (4, questions),
    "list": (4, listing),
    "chat": (4, chat),
    "indirect object": (22, _introduced(ioi_text)),
    "facts": (15, _several(fact_text, 4)),
    "agreement": (9, _introduced(agreement_text)),
    "plain agreement": (4, _several(plain_text, 2)),
    "pronouns": (7, _several(pronouns_text, 2)),
    "greater than": (12, _introduced(greater_than_text)),
    "recall": (16, _recall),
    "closing": (8, closing_text),
}


def texts(seed: int | str) -> Iterator[str]:
    """The corpus of a seed: always the same texts in the same order."""
    rng = Random(f"corpus {seed}")
    shares = [share for share, _ in MIXTURE.values()]
    makers = [make for _, make in MIXTURE.values()]
    while True:
        yield rng.choices(makers, shares)[0](rng)
