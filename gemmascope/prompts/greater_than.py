"""Greater than: what began in one year ends in a later one."""

from __future__ import annotations

from random import Random

from gemmascope.prompts.pairs import Encoder, Pair, Pairs, collect
from gemmascope.prompts.splits import held_out
from gemmascope.prompts.words import listed

EVENTS: tuple[str, ...] = listed(
    "war siege strike journey project trial reign famine voyage campaign dispute festival plague truce exile"
)
TEMPLATES: tuple[str, ...] = (
    "The {event} lasted from {start} to {century}",
    "The {event} lasted from the year {start} to the year {century}",
    "The {event} went on from {start} until {century}",
    "The {event} that began in {start} ended in {century}",
    "There was a {event} between {start} and {century}",
)
CENTURIES = range(11, 20)


def greater_than(n: int, seed: int = 0, tokenizer: Encoder | None = None) -> Pairs:
    """Sentences such as "The war lasted from 1741 to 17", whose next digit makes a later year.

    The corrupted prompt begins in an earlier decade. The answer is a digit above the start's decade, against one between
    both decades: too early an end after the clean prompt, possible after the corrupted one. nano never saw these starting
    years.

    Args:
        n: How many pairs.
        seed: The same seed gives the same pairs.
        tokenizer: The tokenizer that the pairs must fit, such as `model.tokenizer`. None for nano's.

    Returns:
        The pairs that fit, and why others were left out.

    Raises:
        PromptError: `n` is below 1, or an argument is of the wrong kind.

    Examples:
        >>> gs.prompts.greater_than(1)[0]
        Pair(clean='There was a exile between 1942 and 19', ..., answer='7', against='3')

    References:
        Hanna et al., "How does GPT-2 compute greater-than?" (arXiv 2305.00586).
    """
    return collect("greater_than", _draw, n, seed, tokenizer)


def _draw(rng: Random) -> Pair:
    while True:
        century, start = rng.choice(CENTURIES), rng.randint(20, 89)
        if year_held_out(century, start):
            break
    decade, unit = divmod(start, 10)
    earlier = rng.randint(0, decade - 2)
    against = rng.randint(earlier + 1, decade - 1)
    template, event = rng.choice(TEMPLATES), rng.choice(EVENTS)
    clean, corrupt = (
        template.format(event=event, start=f"{century}{begun}{unit}", century=century) for begun in (decade, earlier)
    )
    return Pair(clean, corrupt, str(rng.randint(decade + 1, 9)), str(against))


def year_held_out(century: int, year: int) -> bool:
    """Whether nothing in the training corpus begins in this year of this century."""
    return (century, year) == (17, 41) or held_out("start", str(century), str(year), share=0.15)


def greater_than_text(rng: Random) -> str:
    """One sentence for the training corpus; short spans are more likely, every later year of the century is possible."""
    while True:
        century, start = rng.choice(CENTURIES), rng.randint(2, 97)
        if not year_held_out(century, start):
            break
    last = 99 if rng.random() < 0.5 else min(99, start + 12)
    end = rng.randint(start + 1, last)
    begun = f"{century}{start:02d}"
    return rng.choice(TEMPLATES).format(event=rng.choice(EVENTS), start=begun, century=century) + f"{end:02d}."
