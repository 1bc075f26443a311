"""Closing: nested brackets and quotes, closed from the inside out."""

from __future__ import annotations

from random import Random

from gemmascope.prompts.pairs import Encoder, Pair, Pairs, collect
from gemmascope.prompts.splits import held_out
from gemmascope.prompts.words import COLOURS, NOUNS

CLOSERS: dict[str, str] = {"(": ")", "[": "]", "{": "}", '"': '"', "'": "'"}
DEEPEST = 4


def closing(n: int, seed: int = 0, tokenizer: Encoder | None = None) -> Pairs:
    """Nested brackets and quotes, of which the prompt closes some; the answer closes the next.

    The corrupted prompt opens that one with another mark. nano never saw these marks in this order.

    Args:
        n: How many pairs.
        seed: The same seed gives the same pairs.
        tokenizer: The tokenizer that the pairs must fit, such as `model.tokenizer`. None for nano's.

    Returns:
        The pairs that fit, and why others were left out.

    Raises:
        PromptError: `n` is below 1, or an argument is of the wrong kind.

    Examples:
        >>> gs.prompts.closing(1)[0]
        Pair(clean="The list is (the brown idea 'the pink coin'", ..., answer=')', against='"')
    """
    return collect("closing", _draw, n, seed, tokenizer)


def _draw(rng: Random) -> Pair:
    while True:
        openers = _openers(rng)
        # Not the innermost, where opening another bracket would be as good a guess as closing this one.
        closed = rng.randrange(len(openers) - 1)
        other = rng.choice([opener for opener in CLOSERS if opener not in openers])
        if order_held_out(openers):
            break
    contents = [_content(rng) for _ in openers]
    changed = [*openers[:closed], other, *openers[closed + 1 :]]
    inside = [CLOSERS[opener] for opener in reversed(openers[closed + 1 :])]
    clean, corrupt = ("The list is" + _opening(list(order), contents) + "".join(inside) for order in (openers, changed))
    return Pair(clean, corrupt, CLOSERS[openers[closed]], CLOSERS[other])


def _openers(rng: Random) -> list[str]:
    # No mark twice: a quote inside the same quote would close it.
    return rng.sample(list(CLOSERS), rng.randint(2, DEEPEST))


def _content(rng: Random) -> str:
    return f"the {rng.choice(COLOURS)} {rng.choice(NOUNS)[0]}"


def _opening(openers: list[str], contents: list[str]) -> str:
    return "".join(f" {opener}{content}" for opener, content in zip(openers, contents, strict=True))


def order_held_out(openers: list[str]) -> bool:
    """Whether these openings, in this order, are kept out of the training corpus."""
    return held_out("openers", *openers, share=0.2)


def closing_text(rng: Random) -> str:
    """A nested group for the training corpus, in an order that is not held out."""
    while True:
        openers = _openers(rng) if rng.random() < 0.8 else [rng.choice(list(CLOSERS))]
        if len(openers) == 1 or not order_held_out(openers):
            break
    closers = "".join(CLOSERS[opener] for opener in reversed(openers))
    return f"The list is{_opening(openers, [_content(rng) for _ in openers])}{closers}."
