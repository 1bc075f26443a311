"""The model a function uses when it is given none: nano, loaded once."""

from __future__ import annotations

from gemmascope.arguments import shown
from gemmascope.errors import GemmascopeError
from gemmascope.model.model import Model


def model_or_nano(model: Model | None) -> Model:
    """The model given, or nano for None.

    GemmascopeError for anything else, with what to do; DeviceError for one on the meta device, which cannot be run.
    """
    if model is None:
        from gemmascope.loading.load import nano

        return nano()
    if not isinstance(model, Model):
        raise GemmascopeError(
            f"model is what gs.load returns; given {type(model).__name__}: load it first, model=gs.load({shown(model)})"
        )
    model.require_values()
    return model
