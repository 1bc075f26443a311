"""Switches off the torch modes of the user's session while one of our functions runs, so that they change no number.

torch.autocast would round products to another dtype, tensors made under torch.inference_mode have no gradient, and
torch.set_default_device decides where new tensors are created.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import ParamSpec, TypeVar

import torch

from gemmascope.model.shutdown import stopping_at_exit

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def default_modes() -> Iterator[None]:
    """No autocast, no inference mode, and new tensors on the CPU by default."""
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            grad = torch.is_grad_enabled()
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.set_grad_enabled(grad))
        for kind in _autocasting():
            stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


def computes(fn: Callable[P, R]) -> Callable[P, R]:
    """Decorates public functions: they run in default_modes, and stop when the interpreter exits."""

    @functools.wraps(fn)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        with stopping_at_exit(), default_modes():
            return fn(*args, **kwargs)

    return called


def _autocasting() -> list[str]:
    """The device types for which autocast is on."""
    return [
        kind for kind in ("cpu", "cuda", "mps") if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    ]
