"""The exercises' checks: the right answer passes, and every usual wrong answer gets the message of its mistake."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gemmascope.workshop import check
from gemmascope.workshop.check import CheckFailed, exercises
from gemmascope.workshop.grading import Exercise

ALL = exercises()
WRONG = [(number, i) for number, exercise in ALL.items() for i in range(len(exercise.wrong))]
SEEDS = (1, 123456)


@pytest.mark.parametrize("number", ALL)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_right_answer_passes(number: str, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    ALL[number](ALL[number].right, seed)
    assert capsys.readouterr().out == f"{number}: right, on 3 random inputs\n"


@pytest.mark.parametrize(("number", "i"), WRONG)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_wrong_answer_gets_the_message_of_its_mistake(number: str, i: int, seed: int) -> None:
    exercise = ALL[number]
    with pytest.raises(CheckFailed) as caught:
        exercise(exercise.wrong[i].answer, seed)
    assert str(caught.value).startswith(f"{number}: {exercise.wrong[i].message} (check.ex_")


def test_messages_differ() -> None:
    for exercise in ALL.values():
        messages = [wrong.message for wrong in exercise.wrong]
        assert len(messages) == len(set(messages)) >= 3


def test_inputs_are_fresh_and_a_seed_repeats_them() -> None:
    inputs: list[torch.Tensor] = []

    def remembered(logits: torch.Tensor, token: int) -> torch.Tensor:
        inputs.append(logits)
        return logits.softmax(-1)[-1, token]

    for seed in (None, None, 5, 5):
        check.ex_0_2(remembered, seed)
    first, second, third, fourth = (inputs[i : i + 3] for i in range(0, 12, 3))
    assert not torch.equal(first[0], second[0])
    assert all(torch.equal(a, b) for a, b in zip(third, fourth, strict=True))
    assert not torch.equal(third[0], third[1])


def message_for(exercise: Exercise, answer: Any) -> str:
    with pytest.raises(CheckFailed) as caught:
        exercise(answer, 3)
    return str(caught.value)


def test_other_failures_have_their_own_messages() -> None:
    def unwritten(x: Any, *args: Any) -> Any:
        raise NotImplementedError

    def broken(x: Any, *args: Any) -> Any:
        raise ValueError("boom")

    assert message_for(check.ex_1_2, unwritten) == "1.2: still to be written; it returns soft-capped logits [vocab]"
    assert "your function raised ValueError: boom" in message_for(check.ex_1_2, broken)
    assert "your function returned nothing" in message_for(check.ex_1_2, lambda *_: None)
    assert "the shape is [3] and should be [40]" in message_for(check.ex_1_2, lambda *_: torch.zeros(3))
    assert "your function returned str" in message_for(check.ex_1_2, lambda *_: "a")
    assert "the shape is right, and 100% of the numbers are not" in message_for(
        check.ex_1_2, lambda *_: torch.full((40,), 9.0)
    )
    assert "give the function itself" in message_for(check.ex_1_2, torch.zeros(3))
    assert "return the trace of the patched run" in message_for(check.ex_3_2, lambda *_: torch.zeros(40))
    nan = check.ex_1_2.right(*check.ex_1_2.inputs(0)) * torch.nan
    assert "of the numbers are not" in message_for(check.ex_1_2, lambda *_: nan)


def test_an_answer_that_writes_to_its_arguments_is_checked_by_its_result() -> None:
    def in_place(value: torch.Tensor, clean: torch.Tensor, pos: int) -> torch.Tensor:
        value[pos] = clean[pos]
        return value

    check.ex_3_1(in_place, 1)


def test_a_notebook_shows_the_sentence_and_no_traceback() -> None:
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    shell = InteractiveShell()
    with capture_output() as output:
        shell.run_cell("from gemmascope.workshop import check\ncheck.ex_0_1(lambda *given: None)")
    assert (
        output.stdout.strip() == "CheckFailed: 0.1: your function returned nothing; it returns the position, a whole number"
    )
