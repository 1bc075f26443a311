"""Exercises that check themselves: an answer is run on fresh random inputs beside the right one and the usual wrong ones.

A wrong answer is kept as code, with the sentence that names the mistake: an answer that gives the same numbers as it made
the same mistake.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gemmascope.errors import GemmascopeError, GemmascopeWarning

ROUNDS = 3


class CheckFailed(GemmascopeError, AssertionError):
    """An answer that is not right yet, with what is wrong about it."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows of it: the sentence alone. Where the check stands in this package helps nobody."""
        return [f"{type(self).__name__}: {self}"]


@dataclass(frozen=True)
class Wrong:
    """A usual wrong answer: code that gives what it gives, and the sentence that names the mistake."""

    answer: Callable[..., Any]
    message: str


@dataclass(frozen=True)
class Exercise:
    """check.ex_3_2 is one: call it with the answer, a function.

    number: "3.2". inputs: a seed to the arguments of one call. right: the right answer. wrong: the usual wrong ones.
    result: what the answer returns, in words with its shape. read: what is compared, from the arguments and what an
    answer returned: a tensor; by default what it returned. tolerance: of the largest number.
    """

    number: str
    inputs: Callable[[int], tuple[Any, ...]]
    right: Callable[..., Any]
    wrong: Sequence[Wrong]
    result: str
    read: Callable[..., Any] = field(default=lambda found, *_: found)
    tolerance: float = 1e-4

    def __call__(self, answer: Callable[..., Any], seed: int | None = None) -> None:
        """Run the answer on fresh inputs. Prints one line if it is right; CheckFailed says what is wrong otherwise.

        seed: of the inputs, to repeat a check that failed.
        """
        if not callable(answer):
            raise CheckFailed(
                f"{self.number}: give the function itself, check.ex_{self._name}(my_function); given {answer!r}"
            )
        seed = random.SystemRandom().randrange(10**6) if seed is None else seed
        with warnings.catch_warnings():  # the usual wrong answers are run too, and a check names them itself
            warnings.simplefilter("ignore", GemmascopeWarning)
            self._check(answer, seed)

    def _check(self, answer: Callable[..., Any], seed: int) -> None:
        rounds = [self.inputs(seed * ROUNDS + i) for i in range(ROUNDS)]
        expected = [self._read(self.right, given) for given in rounds]
        found = [self._answered(answer, given, seed) for given in rounds]
        again = f" (check.ex_{self._name}(..., seed={seed}) repeats this check)"
        odd = [wrong for f, e in zip(found, expected, strict=True) if (wrong := self._shape_is_wrong(f, e))]
        if odd:
            raise CheckFailed(f"{self.number}: {self._named(found, rounds) or odd[0]}{again}")
        if not all(self._same(f, e) for f, e in zip(found, expected, strict=True)):
            raise CheckFailed(f"{self.number}: {self._named(found, rounds) or self._difference(found, expected)}{again}")
        print(f"{self.number}: right, on {ROUNDS} random inputs")

    @property
    def _name(self) -> str:
        return self.number.replace(".", "_")

    def _answered(self, answer: Callable[..., Any], given: tuple[Any, ...], seed: int) -> Tensor:
        try:
            return self._read(answer, given)
        except NotImplementedError:
            raise CheckFailed(f"{self.number}: still to be written; it returns {self.result}") from None
        except CheckFailed:
            raise
        except Exception as error:
            raise CheckFailed(
                f"{self.number}: your function raised {type(error).__name__}: {error} "
                f"(check.ex_{self._name}(..., seed={seed}) repeats this check)"
            ) from error

    def _read(self, answer: Callable[..., Any], given: tuple[Any, ...]) -> Tensor:
        """What an answer gives on a copy of the arguments, so that writing to them spoils nothing; as a tensor."""
        copies = tuple(one.clone() if isinstance(one, Tensor) else one for one in given)
        returned = answer(*copies)
        if returned is None:
            raise CheckFailed(f"{self.number}: your function returned nothing; it returns {self.result}")
        found = self.read(returned, *given)
        try:
            return torch.as_tensor(found).detach().double()
        except (TypeError, ValueError, RuntimeError):
            raise CheckFailed(
                f"{self.number}: your function returned {type(returned).__name__}; it returns {self.result}"
            ) from None

    def _same(self, a: Tensor, b: Tensor) -> bool:
        if a.shape != b.shape:
            return False
        size = max(1e-12, float(b[torch.isfinite(b)].abs().max())) if bool(torch.isfinite(b).any()) else 1.0
        return bool(torch.allclose(a, b, rtol=0, atol=self.tolerance * size, equal_nan=True))

    def _named(self, found: Sequence[Tensor], rounds: Sequence[tuple[Any, ...]]) -> str | None:
        """The sentence of the wrong answer that gives these numbers in every round."""
        for wrong in self.wrong:
            if all(self._same(f, self._read(wrong.answer, given)) for f, given in zip(found, rounds, strict=True)):
                return wrong.message
        return None

    def _shape_is_wrong(self, found: Tensor, expected: Tensor) -> str | None:
        if found.shape == expected.shape:
            return None
        return f"the shape is {list(found.shape)} and should be {list(expected.shape)}: it returns {self.result}"

    def _difference(self, found: Sequence[Tensor], expected: Sequence[Tensor]) -> str:
        worst = max(range(len(found)), key=lambda i: float((found[i] - expected[i]).abs().nan_to_num(torch.inf).max()))
        gap = (found[worst] - expected[worst]).abs().nan_to_num(torch.inf)
        at = [int(i) for i in torch.unravel_index(gap.argmax(), gap.shape)] if gap.dim() else []
        got, right = float(found[worst][tuple(at)]), float(expected[worst][tuple(at)])
        share = float((gap > self.tolerance * max(1e-12, float(expected[worst].abs().max()))).double().mean())
        place = f" at {at}" if at else ""
        return f"the shape is right, and {share:.0%} of the numbers are not: {got:.5g} should be {right:.5g}{place}"
