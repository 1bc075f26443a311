"""The exercises of the workshop, as checks to call: check.ex_3_2(answer). Each is defined in its notebook's file."""

from __future__ import annotations

from gemmascope.errors import GemmascopeError
from gemmascope.workshop.exercises.checks_0_1 import ex_0_1, ex_0_2, ex_1_1, ex_1_2, ex_1_3
from gemmascope.workshop.exercises.checks_2 import ex_2_1, ex_2_2, ex_2_3, ex_2_4, ex_2_5
from gemmascope.workshop.exercises.checks_3_4 import ex_3_1, ex_3_2, ex_3_3, ex_3_4, ex_4_1, ex_4_2
from gemmascope.workshop.exercises.checks_5_6 import ex_5_1, ex_5_2, ex_5_3, ex_5_4, ex_6_1, ex_6_2
from gemmascope.workshop.exercises.checks_7 import ex_7_1, ex_7_2
from gemmascope.workshop.exercises.checks_8 import ex_8_1, ex_8_2, ex_8_3
from gemmascope.workshop.grading import OUTCOMES, RIGHT, UNWRITTEN, WRONG, CheckFailed, Exercise

__all__ = [
    "CheckFailed", "ex_0_1", "ex_0_2", "ex_1_1", "ex_1_2", "ex_1_3", "ex_2_1", "ex_2_2", "ex_2_3", "ex_2_4", "ex_2_5",
    "ex_3_1", "ex_3_2", "ex_3_3", "ex_3_4", "ex_4_1", "ex_4_2", "ex_5_1", "ex_5_2", "ex_5_3", "ex_5_4", "ex_6_1", "ex_6_2",
    "ex_7_1", "ex_7_2", "ex_8_1", "ex_8_2", "ex_8_3", "exercises", "summary",
]  # fmt: skip

NOT_RUN = "check not run"


def exercises() -> dict[str, Exercise]:
    """Every exercise, by its number."""
    return {value.number: value for name, value in globals().items() if name.startswith("ex_")}


def summary(notebook: int) -> None:
    """Print how the exercises of a notebook stand: which are right, which are not yet, which are still to be written.

    Args:
        notebook: The number of the notebook, such as 3.

    Raises:
        GemmascopeError: The notebook has no exercises.

    Examples:
        >>> gs.workshop.check.summary(7)
        Exercises of notebook 7
          check not run: 7.1, 7.2
    """
    numbers = [number for number in exercises() if number.split(".")[0] == str(notebook)]
    if not numbers:
        there = sorted({number.split(".")[0] for number in exercises()})
        raise GemmascopeError(f"notebook {notebook!r} has no exercises; those that have some are {', '.join(there)}")
    print(f"Exercises of notebook {notebook}")
    for outcome in (RIGHT, WRONG, UNWRITTEN, NOT_RUN):
        if found := [number for number in numbers if OUTCOMES.get(number, NOT_RUN) == outcome]:
            print(f"  {outcome}: {', '.join(found)}")
