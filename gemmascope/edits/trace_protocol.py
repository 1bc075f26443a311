"""What is asked of what users give as a trace."""

from __future__ import annotations

from typing import Any


def is_trace(given: Any) -> bool:
    """Whether this is a run that can be read by site: what gs.trace returns."""
    return hasattr(given, "residuals") and hasattr(given, "layout")


def no_trace(given: Any) -> str:
    """What was given where a trace is wanted, for an error."""
    if hasattr(given, "stream") and hasattr(given, "trace"):
        return f"a {type(given).__name__}: give its trace, g.trace()"
    if isinstance(given, (list, tuple)) and given and all(map(is_trace, given)):
        return f"a list of {len(given)} traces: take one of them"
    return type(given).__name__
