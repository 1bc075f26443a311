"""Checks of what users give as a trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

if TYPE_CHECKING:
    from gemmascope.run.trace import Trace


def is_trace(value: object) -> TypeGuard[Trace]:
    """Whether this is a run that can be read by site: what gs.trace returns."""
    return hasattr(value, "residuals") and hasattr(value, "layout")


def no_trace(value: object) -> str:
    """Describes, for an error, a value that is not a trace."""
    if hasattr(value, "stream") and hasattr(value, "trace"):
        return f"a {type(value).__name__}: give its trace, g.trace()"
    if isinstance(value, (list, tuple)) and value and all(map(is_trace, value)):
        return f"a list of {len(value)} traces: take one of them"
    return type(value).__name__
