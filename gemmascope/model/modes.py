"""Torch's modes: what a user's session has switched on must change no number that we compute.

Under torch.autocast a product would be rounded to another dtype; what is made under torch.inference_mode takes part in no
gradient; torch.set_default_device decides where a tensor without a device is made. All three are of the thread, so they
are set aside for as long as one of our functions runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar, cast

import torch

from gemmascope.model.shutdown import stopping_at_exit

_F = TypeVar("_F", bound=Callable[..., Any])


@contextmanager
def own_modes() -> Iterator[None]:
    """Around whatever computes: no autocast, no inference mode, new tensors on the CPU unless they say where."""
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


def computes(fn: _F) -> _F:
    """A public function: sets the modes of the user's session aside (own_modes), and stops when the interpreter ends."""

    @functools.wraps(fn)
    def called(*args: Any, **kwargs: Any) -> Any:
        with stopping_at_exit(), own_modes():
            return fn(*args, **kwargs)

    return cast(_F, called)


def _autocasting() -> list[str]:
    """The kinds of device for which autocast is on."""
    return [
        kind for kind in ("cpu", "cuda", "mps") if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    ]
