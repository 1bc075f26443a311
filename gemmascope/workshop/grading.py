"""Exercises that check themselves: an answer runs on fresh random inputs beside the right answer and the usual wrong ones.

The wrong answers are code, each with a sentence that names the mistake. An answer that gives the same numbers as one of them
contains the same mistake.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gemmascope.errors import GemmascopeError, GemmascopeWarning
from gemmascope.workshop.learners_code import copied, failing_line, numbers_of

ROUNDS = 3

Arguments = tuple[object, ...]

# What the last check of each exercise found, by its number; check.summary() reads it.
RIGHT, WRONG, UNWRITTEN = "right", "not right yet", "still to be written"
OUTCOMES: dict[str, str] = {}


class CheckFailed(GemmascopeError, AssertionError):
    """An answer that is not right yet, with what is wrong about it."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the sentence alone, as a traceback into this package would not help."""
        return [f"{type(self).__name__}: {self}"]


@dataclass(frozen=True)
class Wrong:
    """A usual wrong answer, as code, and the sentence that names the mistake."""

    answer: Callable[..., object]
    message: str


@dataclass(frozen=True)
class Exercise:
    """An exercise, such as check.ex_3_2. Call it with the answer, which is a function.

    Attributes:
        number: "3.2".
        inputs: Makes the arguments of one call from a seed.
        right: The right answer.
        wrong: The usual wrong answers.
        result: What the answer returns, in words, with its shape.
        read: Makes the numbers to compare from what an answer returned and the arguments.
        tolerance: How far numbers may be off, as a share of the largest.
    """

    number: str
    inputs: Callable[[int], Arguments]
    right: Callable[..., object]
    wrong: Sequence[Wrong]
    result: str
    read: Callable[..., object] = field(default=lambda returned, *_: returned)
    tolerance: float = 1e-4

    def __call__(self, answer: Callable[..., object], seed: int | None = None) -> None:
        """Run an answer on fresh random inputs, and print a line if it is right.

        Args:
            answer: The function to check.
            seed: Chooses the inputs, to repeat a check that failed. None for a random one.

        Raises:
            CheckFailed: The answer is not right; the message says what is wrong with it.
        """
        if not callable(answer):
            raise CheckFailed(
                f"{self.number}: give the function itself, check.ex_{self._name}(my_function); given {answer!r}"
            )
        seed = random.SystemRandom().randrange(10**6) if seed is None else seed
        OUTCOMES[self.number] = WRONG
        with warnings.catch_warnings():  # the usual wrong answers run too, and the check names their mistakes itself
            warnings.simplefilter("ignore", GemmascopeWarning)
            self._check(answer, seed)

    def _check(self, answer: Callable[..., object], seed: int) -> None:
        rounds = [self.inputs(seed * ROUNDS + i) for i in range(ROUNDS)]
        expected = [self._result(self.right, arguments) for arguments in rounds]
        results = [self._answer_result(answer, arguments, seed) for arguments in rounds]
        pairs = list(zip(results, expected, strict=True))
        repeat = f"\n(check.ex_{self._name}(..., seed={seed}) repeats this check)"
        wrong_shapes = [message for result, right in pairs if (message := self._shape_message(result, right))]
        if wrong_shapes:
            raise CheckFailed(f"{self.number}: {self._mistake(results, rounds) or wrong_shapes[0]}{repeat}")
        if not all(self._same(result, right) for result, right in pairs):
            message = self._mistake(results, rounds) or self._difference(results, expected)
            raise CheckFailed(f"{self.number}: {message}{repeat}")
        OUTCOMES[self.number] = RIGHT
        print(f"{self.number}: right, on {ROUNDS} random inputs")

    @property
    def _name(self) -> str:
        return self.number.replace(".", "_")

    def _answer_result(self, answer: Callable[..., object], arguments: Arguments, seed: int) -> Tensor:
        try:
            return self._result(answer, arguments)
        except NotImplementedError:
            OUTCOMES[self.number] = UNWRITTEN
            raise CheckFailed(f"{self.number}: still to be written; it returns {self.result}") from None
        except CheckFailed:
            raise
        except Exception as error:
            raise CheckFailed(
                f"{self.number}: your function raised {type(error).__name__}: {error}{failing_line(error, answer)}\n"
                f"(check.ex_{self._name}(..., seed={seed}) repeats this check)"
            ) from error

    def _result(self, answer: Callable[..., object], arguments: Arguments) -> Tensor:
        """What an answer returns, as a tensor. It gets copies of the arguments, so that it may write to them."""
        returned = answer(*map(copied, arguments))
        if returned is None:
            raise CheckFailed(f"{self.number}: your function returned nothing; it returns {self.result}")
        try:
            return numbers_of(self.read(returned, *arguments))
        except CheckFailed as error:
            raise CheckFailed(f"{self.number}: {error}") from None
        except (TypeError, ValueError, RuntimeError):
            raise CheckFailed(
                f"{self.number}: your function returned {type(returned).__name__}; it returns {self.result}"
            ) from None

    def _same(self, result: Tensor, right: Tensor) -> bool:
        if result.shape != right.shape:
            return False
        finite = right[torch.isfinite(right)]
        size = max(1e-12, float(finite.abs().max())) if finite.numel() else 1.0
        return bool(torch.allclose(result, right, rtol=0, atol=self.tolerance * size, equal_nan=True))

    def _mistake(self, results: Sequence[Tensor], rounds: Sequence[Arguments]) -> str | None:
        """The message of the wrong answer that gives these results in every round, if there is one."""
        for wrong in self.wrong:
            if all(
                self._same(result, self._result(wrong.answer, arguments))
                for result, arguments in zip(results, rounds, strict=True)
            ):
                return wrong.message
        return None

    def _shape_message(self, result: Tensor, right: Tensor) -> str | None:
        if result.shape == right.shape:
            return None
        if not right.dim():
            n = result.numel()
            what = "one number in a list or an array" if n == 1 else f"{n} numbers, of the shape {list(result.shape)}"
            return f"your function returned {what}: it returns {self.result}"
        return f"the shape is {list(result.shape)} and should be {list(right.shape)}: it returns {self.result}"

    def _difference(self, results: Sequence[Tensor], expected: Sequence[Tensor]) -> str:
        gaps = [(result - right).abs().nan_to_num(torch.inf) for result, right in zip(results, expected, strict=True)]
        worst = max(range(len(gaps)), key=lambda i: float(gaps[i].max()))
        gap = gaps[worst]
        if not gap.dim():
            return f"{float(results[worst]):.5g} is not right: it should be {float(expected[worst]):.5g}"
        index = [int(i) for i in torch.unravel_index(gap.argmax(), gap.shape)]
        actual, right = float(results[worst][tuple(index)]), float(expected[worst][tuple(index)])
        share = float((gap > self.tolerance * max(1e-12, float(expected[worst].abs().max()))).double().mean())
        return f"the shape is right, and {share:.0%} of the numbers are not: {actual:.5g} should be {right:.5g} at {index}"
