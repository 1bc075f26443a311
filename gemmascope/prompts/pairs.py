"""A clean and a corrupted prompt, token by token aligned, and what makes a drawn case unfit for a tokenizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from typing import Protocol, overload

from gemmascope.arguments import MAX_ITEMS, shown, whole_number
from gemmascope.errors import PromptError
from gemmascope.legible import legibly

DRAWS_PER_PAIR = 20  # how often a case is drawn anew before a family gives up on a tokenizer


class Encoder(Protocol):
    """What a prompt family asks of a tokenizer; `gemmascope.tokens.tokenizer.Tokenizer` is one."""

    def ids(self, prompt: str, /) -> list[int]:
        """The ids of a prompt, with its BOS."""


@dataclass(frozen=True)
class Pair:
    """Two prompts that differ in the tokens that decide the answer.

    After `clean` a model that has the skill puts `answer` before `against`; after `corrupt` it is the other way
    round (for `greater_than`, where both answers are larger years after `corrupt`, the gap closes).
    All four are text; the answers begin with their space.
    """

    clean: str
    corrupt: str
    answer: str
    against: str


@dataclass(frozen=True)
class Pairs(Sequence[Pair]):
    """The cases of one family that fit a tokenizer, and how many did not.

    `left_out` counts the cases drawn and dropped; `reasons` says why, reason -> count.
    """

    family: str
    pairs: tuple[Pair, ...]
    reasons: Mapping[str, int] = field(default_factory=dict)

    @property
    def left_out(self) -> int:
        return sum(self.reasons.values())

    def __len__(self) -> int:
        return len(self.pairs)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Pair, ...]: ...
    def __getitem__(self, index: int | slice) -> Pair | tuple[Pair, ...]:
        return self.pairs[index]

    @legibly
    def __repr__(self) -> str:
        first = f", first: {self.pairs[0].clean!r} -> {self.pairs[0].answer!r}" if self.pairs else ""
        dropped = "".join(f"; {count} left out: {why}" for why, count in self.reasons.items())
        return f"<{len(self)} {self.family} pairs{first}{dropped}>"


def unfit(pair: Pair, tokenizer: Encoder) -> str | None:
    """Why `pair` cannot be used with `tokenizer`, or None if it can."""
    clean, corrupt = tokenizer.ids(pair.clean), tokenizer.ids(pair.corrupt)
    for prompt, ids in ((pair.clean, clean), (pair.corrupt, corrupt)):
        for answer in (pair.answer, pair.against):
            # The whole text decides: a tokenizer may join the answer to the end of the prompt.
            whole = tokenizer.ids(prompt + answer)
            if len(whole) != len(ids) + 1 or whole[: len(ids)] != ids:
                return "an answer is not one token"
    if len(clean) != len(corrupt):
        return "the pair does not align token by token"
    return None


def collect(family: str, draw: Callable[[Random], Pair], n: int, seed: int, tokenizer: Encoder | None) -> Pairs:
    """`n` drawn cases that fit the tokenizer (nano's if it is None), or fewer if too many did not fit."""
    n = whole_number(n, f"prompts.{family}: n", least=1, most=MAX_ITEMS, error=PromptError)
    seed = whole_number(seed, f"prompts.{family}: seed", least=-(2**63), most=2**63, error=PromptError)
    if tokenizer is not None and not hasattr(tokenizer, "ids"):
        raise PromptError(f"tokenizer has ids(text), as model.tokenizer does; given {shown(tokenizer)}")
    fitting = tokenizer if tokenizer is not None else nano_tokenizer()
    rng = Random(f"{family} {seed}")
    kept: list[Pair] = []
    reasons: Counter[str] = Counter()
    for pair in _repeat(draw, rng, DRAWS_PER_PAIR * n):
        why = unfit(pair, fitting)
        if why is None:
            kept.append(pair)
        else:
            reasons[why] += 1
        if len(kept) == n:
            break
    return Pairs(family, tuple(kept), dict(reasons))


def _repeat(draw: Callable[[Random], Pair], rng: Random, times: int) -> Iterator[Pair]:
    return (draw(rng) for _ in range(times))


@lru_cache(maxsize=1)
def nano_tokenizer() -> Encoder:
    """The tokenizer of the embedded model."""
    from gemmascope.checkpoints.source import NANO
    from gemmascope.tokens.tokenizer import Tokenizer

    return Tokenizer.from_folder(NANO)
