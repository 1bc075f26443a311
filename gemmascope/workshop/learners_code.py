"""What a check does with a learner's function: gives it copies, reads what it returns, finds the line that failed."""

from __future__ import annotations

import linecache
import sys
import traceback
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


class Head(tuple[int, int]):
    """A head as (layer, head). It equals a list, an array or a tensor of the same two numbers as well as a tuple.

    Learners write heads as (2, 3) or as [2, 3], and look for either among the heads that they are given.
    """

    __slots__ = ()

    def __new__(cls, layer: int, head: int) -> Head:
        return super().__new__(cls, (layer, head))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, (str, bytes)):
            return False
        try:
            return tuple(self) == tuple(other)  # type: ignore[arg-type]
        except (TypeError, ValueError, RuntimeError):  # no sequence, or an array of several heads
            return False

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = tuple.__hash__


def copied(argument: object) -> object:
    """An argument that a function may write to without changing what the next one is given."""
    if isinstance(argument, Tensor):
        return argument.clone()
    pandas = sys.modules.get("pandas")  # without it there is no table
    if pandas is not None and isinstance(argument, pandas.DataFrame):
        return argument.copy()
    return list(argument) if isinstance(argument, list) else argument


def numbers_of(returned: object) -> Tensor:
    """Numbers, as float64: a tensor, an array (labelled too), a number, or sequences of them. TypeError, ValueError else."""
    if isinstance(returned, Sequence) and any(isinstance(one, Tensor) for one in returned):
        return torch.stack([numbers_of(one) for one in returned])
    if not isinstance(returned, Tensor) and hasattr(returned, "__array__"):  # NumPy, xarray, pandas
        returned = np.array(returned)
    return torch.as_tensor(returned).detach().double()


def failing_line(error: Exception, answer: Callable[..., object]) -> str:
    """The innermost line of a learner's own code that an error passed through: its number and text, on a line of its own.

    Empty if no line of the traceback is theirs, or its text cannot be found.
    """
    theirs = getattr(answer, "__module__", None)
    walked = traceback.walk_tb(error.__traceback__)
    found = [(frame.f_code, line) for frame, line in walked if frame.f_globals.get("__name__") == theirs]
    if not found:
        return ""
    code, number = found[-1]
    text = linecache.getline(code.co_filename, number).strip()
    return f"\n  in {code.co_name}, line {number}: {text}" if text else ""
