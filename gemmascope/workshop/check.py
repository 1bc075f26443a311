"""The exercises of the workshop, as checks to call: check.ex_3_2(answer). Each is defined in its notebook's file."""

from __future__ import annotations

from gemmascope.workshop.checks_0_1 import ex_0_1, ex_0_2, ex_1_1, ex_1_2, ex_1_3
from gemmascope.workshop.checks_2 import ex_2_1, ex_2_2, ex_2_3, ex_2_4, ex_2_5
from gemmascope.workshop.checks_3_4 import ex_3_1, ex_3_2, ex_3_3, ex_3_4, ex_4_1, ex_4_2
from gemmascope.workshop.checks_5_6 import ex_5_1, ex_5_2, ex_5_3, ex_5_4, ex_6_1, ex_6_2
from gemmascope.workshop.checks_7 import ex_7_1, ex_7_2
from gemmascope.workshop.grading import CheckFailed, Exercise

__all__ = [
    "CheckFailed", "ex_0_1", "ex_0_2", "ex_1_1", "ex_1_2", "ex_1_3", "ex_2_1", "ex_2_2", "ex_2_3", "ex_2_4", "ex_2_5",
    "ex_3_1", "ex_3_2", "ex_3_3", "ex_3_4", "ex_4_1", "ex_4_2", "ex_5_1", "ex_5_2", "ex_5_3", "ex_5_4", "ex_6_1", "ex_6_2",
    "ex_7_1", "ex_7_2",
]  # fmt: skip


def exercises() -> dict[str, Exercise]:
    """Every exercise, by its number."""
    return {value.number: value for name, value in globals().items() if name.startswith("ex_")}
