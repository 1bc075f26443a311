"""Runs whose numbers are none: NaN and infinity are found at the end of a pass, and named by where they began.

Looking is cheap: one sum over the last stream, or over the logits that are read. Only where one is found is a layer run
again, to say at which site it began.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gemmascope.errors import CheckpointError, EditError, GemmascopeError
from gemmascope.model.layout import Block, Layout
from gemmascope.model.model import Model
from gemmascope.model.tap import Chain, Tap
from gemmascope.sites import Address, find_site

if TYPE_CHECKING:
    from gemmascope.run.bound import BoundEdit

# Where a tap or an edit may say minus infinity: "not this edge", "not this token".
_MAY_HIDE = frozenset(("scores", "scores_capped", "logits_raw", "logits"))


def is_finite(value: Tensor) -> bool:
    """Whether all numbers are numbers. Quick: a sum that is finite has nothing else in it."""
    return bool(torch.isfinite(value.sum())) or bool(torch.isfinite(value).all())


def are_logits(logits: Tensor) -> bool:
    """Whether these can be logits, [..., vocab]: minus infinity rules a token out, and one at least is left."""
    most = logits.amax(-1)  # NaN where there is one
    return bool(torch.isfinite(most).all())


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
        return
    found = _Finding()
    if not is_finite(stream[0]):
        found.see("embed", None, stream[0], 0)
    elif is_finite(stream[-1]):
        raise _damaged(model, "from 'final' on")
    else:
        tap = Chain(_editing(edits), found)
        layer = next(i for i, x in enumerate(stream[1:]) if not is_finite(x))
        layout = Layout.of_lengths([len(stream[0])], model.device)
        model.layer(layer)(stream[layer], layout, tap.at(layer, layout))
    raise _error(model, ids, found, edits)


def require_logits(model: Model, ids: Tensor, logits: Tensor, row: Tensor, pos: int, edits: Sequence[BoundEdit]) -> None:
    """EditError or CheckpointError for logits that hold NaN. row: that of the stream that they are read from, at pos."""
    if are_logits(logits):
        return
    found = _Finding()
    layout = Layout.of_blocks([Block(0, 1, 1, start=pos)], model.device)
    after = [edit for edit in edits if edit.address.layer is None]
    model.network.unembed(row[None], Chain(_editing(after), found).at(None, layout))
    raise _error(model, ids, found, edits)


def _editing(edits: Sequence[BoundEdit]) -> Tap:
    from gemmascope.run.passes import Editing

    return Editing([edits])


class _Finding(Tap):
    """Notes the first site whose value holds what is no number."""

    def __init__(self) -> None:
        self.where: Address | None = None
        self.pos = 0

    def rows(self, site: str, layer: int | None, value: Tensor, layout: Layout) -> Tensor:
        self.see(site, layer, value, layout.starts[0])
        return value

    def see(self, site: str, layer: int | None, value: Tensor, first: int) -> None:
        if self.where is None and not _allowed(site, value):
            self.where = Address(find_site(site), layer)
            self.pos = int(torch.nonzero(~torch.isfinite(value))[0, 0]) + first

    def __str__(self) -> str:
        return "at its end" if self.where is None else f"first at '{self.where}', position {self.pos}"


def _allowed(site: str, value: Tensor) -> bool:
    return is_finite(value) or (site in _MAY_HIDE and not bool((value.isnan() | value.isposinf()).any()))


def _error(model: Model, ids: Tensor, found: _Finding, edits: Sequence[BoundEdit]) -> GemmascopeError:
    if edits:
        require_sound(model, ids)
        made = ", ".join(repr(bound.edit) for bound in edits)
        return EditError(f"the edits make a run that holds NaN or infinity, {found}; without them it does not: {made}")
    return _damaged(model, str(found))


def require_sound(model: Model, ids: Tensor) -> None:
    """CheckpointError for a model whose run without edits holds NaN or infinity as well."""
    from gemmascope.run.passes import streams

    (stream,) = streams(model, [ids], [()])
    row = stream[-1][-1]
    require_logits(model, ids, model.network.unembed(row[None])[0], row, len(ids) - 1, ())


def _damaged(model: Model, where: str) -> CheckpointError:
    return CheckpointError(
        f"a run of {model.name!r} holds NaN or infinity, {where}, without any edit: its weights are damaged. "
        "gs.load(..., check=True) finds the tensor"
    )
