"""Numbers that users type, as Python, numpy and torch write them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gemmascope.arguments import finite_number, whole_number
from gemmascope.errors import GemmascopeWarning, SweepError, warn


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), torch.tensor(3), np.array(3)], ids=repr)
def test_a_whole_number_may_be_of_python_numpy_or_torch(value: Any) -> None:
    number = whole_number(value, "top", least=1, most=5, error=SweepError)
    assert number == 3
    assert type(number) is int


@pytest.mark.parametrize(
    "value",
    [True, np.True_, torch.tensor(True), 3.0, np.float64(3), torch.tensor(3.0), "3", None, [3], np.array([3]),
     torch.tensor([3]), 0, 6, 10**5000, torch.tensor(3, device="meta"), 3 + 0j],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_value_that_is_no_whole_number_in_bounds_is_refused_and_quoted(value: Any) -> None:
    with pytest.raises(SweepError, match="top is a whole number from 1 to 5; given "):
        whole_number(value, "top", least=1, most=5, error=SweepError)


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.int8(2), torch.tensor(2.0), torch.tensor(2)], ids=repr)
def test_a_finite_number_may_be_of_python_numpy_or_torch(value: Any) -> None:
    number = finite_number(value, "scale", error=SweepError)
    assert number == 2.0
    assert type(number) is float


@pytest.mark.parametrize(
    "value",
    [True, np.True_, float("nan"), float("inf"), 10**400, "2", None, [2.0], torch.ones(1), 2j, torch.tensor(2j),
     torch.tensor(2.0, device="meta")],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_value_that_is_no_finite_number_is_refused_and_quoted(value: Any) -> None:
    with pytest.raises(SweepError, match="scale is a finite number; given "):
        finite_number(value, "scale", error=SweepError)


def test_a_warning_points_at_the_line_of_the_user() -> None:
    with pytest.warns(GemmascopeWarning, match="^told$") as caught:
        warn("told")
    assert caught[0].filename == __file__
