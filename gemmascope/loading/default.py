"""The default model: nano, loaded once."""

from __future__ import annotations

from gemmascope.arguments import short_repr
from gemmascope.checkpoints.at_hand.models import at_hand
from gemmascope.errors import GemmascopeError
from gemmascope.model.model import Model


def model_or_nano(model: Model | None) -> Model:
    """The given model, or nano for None.

    Raises:
        GemmascopeError: The argument is not a model; the message says how to load one.
        DeviceError: The model is on the meta device, so it has no values and cannot be run.
    """
    if model is None:
        from gemmascope.loading.load import nano

        return nano()
    if not isinstance(model, Model):
        raise GemmascopeError(
            f"model is what gs.load returns; given {type(model).__name__}: load it first, model=gs.load({short_repr(model)})"
            + (f".{here}" if isinstance(model, str) and (here := at_hand(model)) else "")
        )
    model.require_values()
    return model
