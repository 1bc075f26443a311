"""Runs whose numbers are none: NaN and infinity are found at the end of a pass, and named by where they began.

Looking is cheap: one sum over the last stream, or over the logits that are read. Only where one is found is a layer run
again, to say at which site it began.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gemmascope.errors import EditError, GemmascopeError
from gemmascope.model.finite import FirstNonFinite, can_normalize, damaged, is_finite, require_sound_weights, valid_logits
from gemmascope.model.layout import Block, Layout
from gemmascope.model.maths import rms_scale
from gemmascope.model.model import Model
from gemmascope.model.tap import Chain, Tap
from gemmascope.sites import Address, find_site

if TYPE_CHECKING:
    from gemmascope.edits.bound import BoundEdit


def require_finite(model: Model, ids: Tensor, stream: Sequence[Tensor], edits: Sequence[BoundEdit]) -> None:
    """EditError or CheckpointError for a run that ends in NaN or infinity: at which site it began, and what did it.

    Args:
        model: Whose run it is.
        ids: The tokens of the run, or those that it began with.
        stream: The stream at the entry of every layer, and after the last.
        edits: The edits of the run.
    """
    norm = model.network.model.norm.weight
    if is_finite(stream[-1]) and is_finite(norm):
        if edits and (large := next((i for i, x in enumerate(stream) if not can_normalize(x)), None)) is not None:
            at = Address(find_site("resid_post" if large else "embed"), large - 1 if large else None)
            made = ", ".join(repr(bound.edit) for bound in edits)
            raise EditError(
                f"the edits make numbers whose squares are infinite, first at '{at}': the norm after it would make zeros of "
                f"them: {made}"
            )
        return
    found = FirstNonFinite()
    if not is_finite(stream[0]):
        found.see("embed", None, stream[0], 0)
    elif is_finite(stream[-1]):
        raise damaged(model.name, "from 'final' on")
    else:
        tap = Chain(_editing(edits), found)
        layer = next(i for i, x in enumerate(stream[1:]) if not is_finite(x))
        layout = Layout.of_lengths([len(stream[0])], model.device)
        model.layer(layer)(stream[layer], layout, tap.at(layer, layout))
    raise _error(model, ids, found, edits)


def require_logits(model: Model, ids: Tensor, logits: Tensor, row: Tensor, pos: int, edits: Sequence[BoundEdit]) -> None:
    """EditError or CheckpointError for logits that hold NaN. row: that of the stream that they are read from, at pos."""
    if valid_logits(logits):
        return
    found = FirstNonFinite()
    layout = Layout.of_blocks([Block(0, 1, 1, start=pos)], model.device)
    after = [edit for edit in edits if edit.address.layer is None]
    model.network.unembed(row[None], Chain(_editing(after), found).at(None, layout))
    raise _error(model, ids, found, edits)


def require_finite_end(model: Model, ids: Tensor, row: Tensor, edits: Sequence[BoundEdit]) -> None:
    """What require_finite and require_logits say of a run of which the end of the stream alone is there, [d_model].

    Only where it holds what is no number is the run made again, to say where that began.
    """
    if bool(torch.isfinite(rms_scale(row[None], model.config.norm_eps)).all()):
        return
    from gemmascope.run.passes import streams

    (stream,) = streams(model, [ids], [edits])
    last = len(ids) - 1
    require_logits(model, ids, model.network.unembed(stream[-1][-1:])[0], stream[-1][-1], last, edits)


def _editing(edits: Sequence[BoundEdit]) -> Tap:
    from gemmascope.run.passes import EditTap

    return EditTap([edits])


def _error(model: Model, ids: Tensor, found: FirstNonFinite, edits: Sequence[BoundEdit]) -> GemmascopeError:
    if edits:
        require_sound_weights(model.network, model.name, ids)
        made = ", ".join(repr(bound.edit) for bound in edits)
        return EditError(f"the edits make a run that holds NaN or infinity, {found}; without them it does not: {made}")
    return damaged(model.name, str(found))
