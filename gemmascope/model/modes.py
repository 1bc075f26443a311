"""Switches off the torch modes of the user's session while one of our functions runs, so that they change no number.

torch.autocast would round products to another dtype, tensors made under torch.inference_mode have no gradient, and
torch.set_default_device decides where new tensors are created. TF32 keeps 10 bits of float32 in products, and bfloat16 7:
that setting is the whole process's, so the first of several threads changes it, and the last one puts the session's back.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ParamSpec, TypeVar

import torch

from gemmascope.model.shutdown import stopping_at_exit

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def default_modes() -> Iterator[None]:
    """No autocast, no inference mode, products in full float32, and new tensors on the CPU by default."""
    with ExitStack() as stack:
        stack.enter_context(full_float32())
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


# -- products in full float32 --

FULL = "ieee"

_lock = threading.Lock()
_depth = 0
_before: list[tuple[Any, str]] = []


@contextmanager
def full_float32() -> Iterator[None]:
    """Float32 products are computed in float32."""
    global _depth
    if not _depth and not _reduced():  # nearly always
        yield
        return
    with _lock:
        if not _depth:
            _before[:] = _reduced()
            for backend, _ in _before:
                _set(backend, FULL)
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if not _depth:
                for backend, precision in _before:
                    _put_back(backend, precision)


def _reduced() -> list[tuple[Any, str]]:
    """The backends whose float32 products are computed in fewer bits, and their settings."""
    torch_backends: Any = torch.backends
    backends = [torch_backends.cuda.matmul] if _OLD else [torch_backends.cuda.matmul, torch_backends.mkldnn.matmul]
    settings = [(backend, _precision(backend)) for backend in backends]
    return [(backend, precision) for backend, precision in settings if precision not in (FULL, "none")]


# Before version 2.9, torch has one setting for all backends.
_OLD = not hasattr(torch.backends.cuda.matmul, "fp32_precision")


def _precision(backend: Any) -> str:
    if _OLD:
        return FULL if torch.get_float32_matmul_precision() == "highest" else torch.get_float32_matmul_precision()
    return str(backend.fp32_precision)


def _set(backend: Any, precision: str) -> None:
    if _OLD:
        torch.set_float32_matmul_precision("highest" if precision == FULL else precision)
    else:
        backend.fp32_precision = precision


def _put_back(backend: Any, precision: str) -> None:
    if not _OLD:
        _set(backend, "none")  # what it was if it follows the setting of all backends
    if _OLD or _precision(backend) != precision:
        _set(backend, precision)
