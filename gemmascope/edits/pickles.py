"""Edits with functions in pickles: pickle saves a function as the name under which another process imports it."""

from __future__ import annotations

import pickle
import sys
from types import FrameType, FunctionType

from gemmascope.edits.call_text import name_of
from gemmascope.errors import EditError


def require_importable(fn: object, edit: object) -> None:
    """Raises EditError, while an edit is pickled, for a function that no other process can import, such as a lambda."""
    if not isinstance(fn, FunctionType) or _in_cloudpickle():
        return
    try:
        pickle.dumps(fn)
    except (pickle.PicklingError, AttributeError) as error:
        raise EditError(
            f"{edit!r} cannot be pickled: another process cannot import its function, {name_of(fn)!r}. Define it with def "
            "at the top of a module, or pickle with cloudpickle"
        ) from error


def _in_cloudpickle() -> bool:
    """Whether cloudpickle is pickling, which saves a function's code rather than its name."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if "cloudpickle" in frame.f_globals.get("__name__", ""):
            return True
        frame = frame.f_back
    return False
