"""What a trace answers to the methods that a cache has elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gemmascope.peer_calls import OF_TRACE, hint


class CacheHints:
    """Errors that name the call here, for Trace."""

    # A trace reads by site, and without this Python would iterate over it, and search it, by t[0], t[1], ...
    __iter__ = None

    if not TYPE_CHECKING:  # else a checker would take every name for an attribute

        def __getattr__(self, name: str) -> object:
            if hasattr(type(self), name):  # a property raised AttributeError: raise that again, rather than hide it
                return object.__getattribute__(self, name)
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{hint(OF_TRACE, name)}")
