"""Pairs of prompts with the same number of tokens, and the check whether a tokenizer can use a pair."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from typing import Protocol, overload

from gemmascope.arguments import MAX_ITEMS, short_repr, whole_number
from gemmascope.errors import PromptError
from gemmascope.legible import prints_legibly

DRAWS_PER_PAIR = 20  # how many cases are drawn at most for each one that is wanted


class Encoder(Protocol):
    """What a family of prompts needs of a tokenizer, such as model.tokenizer."""

    def ids(self, prompt: str, /) -> list[int]:
        """The ids of a prompt, beginning with `<bos>`."""


@dataclass(frozen=True)
class Pair:
    """Two prompts that differ in the tokens that decide the answer.

    A model with the skill prefers `answer` after `clean`, and `against` after `corrupt`; in `greater_than`, where both are
    right after `corrupt`, it merely prefers neither.

    Attributes:
        clean: The clean prompt.
        corrupt: The corrupted prompt, with as many tokens.
        answer: The right next token after `clean`, with its space.
        against: The token to compare it with.
    """

    clean: str
    corrupt: str
    answer: str
    against: str


@dataclass(frozen=True)
class Pairs(Sequence[Pair]):
    """The pairs of one family that fit a tokenizer.

    Attributes:
        family: The name of the family, such as "ioi".
        pairs: The pairs.
        reasons: Why other pairs were left out: how many for each reason.
    """

    family: str
    pairs: tuple[Pair, ...]
    reasons: Mapping[str, int] = field(default_factory=dict)

    @property
    def left_out(self) -> int:
        """How many pairs were left out."""
        return sum(self.reasons.values())

    def __len__(self) -> int:
        return len(self.pairs)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Pair, ...]: ...
    def __getitem__(self, index: int | slice) -> Pair | tuple[Pair, ...]:
        return self.pairs[index]

    @prints_legibly
    def __repr__(self) -> str:
        first = f", first: {self.pairs[0].clean!r} -> {self.pairs[0].answer!r}" if self.pairs else ""
        dropped = "".join(f"; {count} left out: {why}" for why, count in self.reasons.items())
        return f"<{len(self)} {self.family} pairs{first}{dropped}>"


def unfit(pair: Pair, tokenizer: Encoder) -> str | None:
    """Why `pair` cannot be used with `tokenizer`, or None if it can."""
    clean, corrupt = tokenizer.ids(pair.clean), tokenizer.ids(pair.corrupt)
    for prompt, ids in ((pair.clean, clean), (pair.corrupt, corrupt)):
        for answer in (pair.answer, pair.against):
            # Tokenized together: a tokenizer may join the answer to the end of the prompt.
            whole = tokenizer.ids(prompt + answer)
            if len(whole) != len(ids) + 1 or whole[: len(ids)] != ids:
                return "an answer is not one token"
    if len(clean) != len(corrupt):
        return "the pair does not align token by token"
    return None


def collect(family: str, draw: Callable[[Random], Pair], n: int, seed: int, tokenizer: Encoder | None) -> Pairs:
    """`n` pairs that fit the tokenizer, or fewer if too many do not. None means nano's tokenizer."""
    n = whole_number(n, f"prompts.{family}: n", least=1, most=MAX_ITEMS, error=PromptError)
    seed = whole_number(seed, f"prompts.{family}: seed", least=-(2**63), most=2**63, error=PromptError)
    if tokenizer is not None and not hasattr(tokenizer, "ids"):
        raise PromptError(f"tokenizer has ids(text), as model.tokenizer does; given {short_repr(tokenizer)}")
    tokenizer = tokenizer if tokenizer is not None else nano_tokenizer()
    rng = Random(f"{family} {seed}")
    pairs: list[Pair] = []
    reasons: Counter[str] = Counter()
    for pair in (draw(rng) for _ in range(DRAWS_PER_PAIR * n)):
        why = unfit(pair, tokenizer)
        if why is None:
            pairs.append(pair)
        else:
            reasons[why] += 1
        if len(pairs) == n:
            break
    return Pairs(family, tuple(pairs), dict(reasons))


@lru_cache(maxsize=1)
def nano_tokenizer() -> Encoder:
    """nano's tokenizer."""
    from gemmascope.checkpoints.source import NANO
    from gemmascope.tokens.tokenizer import Tokenizer

    return Tokenizer.from_folder(NANO)
