"""The check of shape annotations that the tests run under.

Only annotations with a shape are checked. The plain ones are for readers and mypy: a test gives a function values that it
refuses, and must meet the package's own error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray


def checked(fn: Callable[..., Any]) -> Callable[..., Any]:
    """fn, with a check of the arguments and the result whose annotations say a shape."""
    fn.__annotations__ = {name: hint for name, hint in fn.__annotations__.items() if _says_shape(hint)}
    return beartype(fn)


def _says_shape(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(_says_shape(part) for part in get_args(hint))
