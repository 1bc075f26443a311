"""real_model(): the model of a notebook that needs a real Gemma, or one sentence that says how to get one."""

from __future__ import annotations

from gemmascope.errors import GemmascopeError
from gemmascope.loading.load import load
from gemmascope.model.model import Model


class NoRealModel(GemmascopeError):
    """A notebook that needs a real Gemma was given none. What runs all cells stops at it."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the sentence alone."""
        return [f"{type(self).__name__}: {self}"]


def real_model(source: str) -> Model:
    """Load the real Gemma that a notebook's questions are for.

    Args:
        source: A hub id, a folder, or a GGUF file. Empty where none is at hand.

    Returns:
        The model, as gs.load gives it.

    Raises:
        NoRealModel: `source` is empty or "nano", or cannot be loaded. A notebook shows the sentence alone.

    Examples:
        >>> try:
        ...     gs.workshop.real_model("")
        ... except gs.GemmascopeError as error:
        ...     print(error)
        this notebook needs a real Gemma, and MODEL names none: get one as said above, write its name or file into MODEL...
    """
    again = "get one as said above, write its name or file into MODEL, and run again from there"
    if not source:
        raise NoRealModel(f"this notebook needs a real Gemma, and MODEL names none: {again}")
    if source == "nano":
        raise NoRealModel(f"this notebook needs a real Gemma, and nano is the small one of notebooks 0 to 6: {again}")
    try:
        return load(source)
    except (GemmascopeError, ImportError, OSError) as error:
        raise NoRealModel(f"{source!r} cannot be loaded: {error}. Otherwise {again}") from error
