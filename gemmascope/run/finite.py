"""Refuses runs that hold NaN or infinity, with the site at which they began.

The check is one sum over the final stream, or over the logits that are read. Only if it fails does a layer run again,
to find the site.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from gemmascope.edits.edit import BoundEdit
from gemmascope.errors import EditError, GemmascopeError
from gemmascope.model.finite import FirstNonFinite, can_normalize, damaged, is_finite, require_sound_weights, valid_logits
from gemmascope.model.layout import Block, Layout
from gemmascope.model.model import Model
from gemmascope.model.tap import Chain
from gemmascope.run.taps import EditTap
from gemmascope.sites import Address, find_site


def require_finite(model: Model, ids: Tensor, stream: Sequence[Tensor], edits: Sequence[BoundEdit]) -> None:
    """EditError or CheckpointError for a run that ends in NaN or infinity, with the site and the cause.

    Args:
        model: The model of the run.
        ids: The tokens of the run, or of its prompt, [pos].
        stream: The stream at the entry of every layer and after the last, each [pos, d_model].
        edits: The edits of the run.
    """
    norm = model.network.model.norm.weight
    if is_finite(stream[-1]) and is_finite(norm):
        if edits and (large := next((i for i, x in enumerate(stream) if not can_normalize(x)), None)) is not None:
            at = Address(find_site("resid_post" if large else "embed"), large - 1 if large else None)
            listed = ", ".join(repr(bound.edit) for bound in edits)
            raise EditError(
                f"the edits make numbers whose squares are infinite, first at '{at}': the norm after it would make zeros of "
                f"them: {listed}"
            )
        return
    first = FirstNonFinite()
    if not is_finite(stream[0]):
        first.see("embed", None, stream[0], 0)
    elif is_finite(stream[-1]):
        raise damaged(model.name, "from 'final' on")
    else:
        tap = Chain(EditTap([edits]), first)
        layer = next(i for i, x in enumerate(stream[1:]) if not is_finite(x))
        layout = Layout.of_lengths([len(stream[0])], model.device)
        model.layer(layer)(stream[layer], layout, tap.at(layer, layout))
    raise _error(model, ids, first, edits)


def require_logits(model: Model, ids: Tensor, logits: Tensor, row: Tensor, pos: int, edits: Sequence[BoundEdit]) -> None:
    """EditError or CheckpointError for logits that hold NaN. row: the stream row at pos that they are read from."""
    if valid_logits(logits):
        return
    first = FirstNonFinite()
    layout = Layout.of_blocks([Block(0, 1, 1, start=pos)], model.device)
    after = [edit for edit in edits if edit.address.layer is None]
    model.network.unembed(row[None], Chain(EditTap([after]), first).at(None, layout))
    raise _error(model, ids, first, edits)


def _error(model: Model, ids: Tensor, first: FirstNonFinite, edits: Sequence[BoundEdit]) -> GemmascopeError:
    if edits:
        require_sound_weights(model.network, model.name, ids)
        listed = ", ".join(repr(bound.edit) for bound in edits)
        return EditError(f"the edits make a run that holds NaN or infinity, {first}; without them it does not: {listed}")
    return damaged(model.name, str(first))
