"""Warns of edits without effect, which the user may have intended: on masked edges, overwritten by a later edit, or patching
a run into itself. An edit that names masked edges only is an error (edit.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gemmascope.edits.edit import BoundEdit, Edit
from gemmascope.edits.sources import is_trace
from gemmascope.edits.target import seen_edges, what_is_seen
from gemmascope.errors import warn
from gemmascope.model.model import Model


def warn_of_no_effect(
    edits: Sequence[BoundEdit], model: Model, ids: Tensor, user_edits: Sequence[Edit] | None = None
) -> None:
    """Warn of each edit of a run, or numbered place of one, that cannot change anything.

    user_edits: the edits as the user wrote them, if the bound ones have other places.
    """
    for text in no_effect_messages(edits, model, ids, user_edits):
        warn(text)


def no_effect_messages(
    edits: Sequence[BoundEdit], model: Model, ids: Tensor, user_edits: Sequence[Edit] | None = None
) -> Iterator[str]:
    """The warnings of warn_of_no_effect, as texts."""
    for at, bound in enumerate(edits):
        yield from _masked_messages(bound, user_edits[at] if user_edits else bound.edit, model)
        if over := next((later for later in edits[at + 1 :] if _overwrites(later, bound)), None):
            yield f"{bound.edit!r} has no effect: {over.edit!r}, later in the list, overwrites all of it"
    if edits and all(_is_own(bound, model, ids) for bound in edits):
        yield f"{edits[0].edit!r} patches a run into itself, which changes nothing: its source has its tokens and no edits"


def warn_if_not_reached(user_edit: Edit, bound: BoundEdit, n_pos: int, *, applied: bool) -> None:
    """Warn of an edit whose positions a generated text did not reach. user_edit: the edit as the user wrote it."""
    ended = f"the text ended with {n_pos} positions, 0 to {n_pos - 1}"
    if not applied:
        warn(f"{user_edit!r} was never made: {ended}")
        return
    names = ("q_pos", "k_pos") if bound.address.site.is_edges else ("pos",)
    for name, places in zip(names, bound.places[-2:] if len(names) == 2 else bound.places[:1], strict=True):
        numbers = [at for at in places.tolist() if at >= n_pos]
        if numbers and _by_number(getattr(user_edit, name)):
            warn(f"{user_edit!r} was not made at {name}={numbers}: {ended}")


def _masked_messages(bound: BoundEdit, user_edit: Edit, model: Model) -> Iterator[str]:
    """A text for the queries or keys, selected by number, whose selected edges are all masked."""
    may_write_weight = bound.edit.needs_all or bound.values is not None  # a weight on a masked edge of a pattern counts
    if not bound.address.site.is_edges or (bound.address.site.name == "pattern" and may_write_weight):
        return
    seen = seen_edges(bound.address, bound.places, model)
    for name, axis in (("q_pos", 1), ("k_pos", 0)):
        numbers = bound.places[1 if name == "q_pos" else 2][~seen.any(axis)]
        if len(numbers) and _by_number(getattr(user_edit, name)):
            yield (
                f"{user_edit!r} reaches nothing at {name}={numbers.tolist()}: {what_is_seen(bound.address, model)}, and "
                "no edge named there is among them"
            )


def _by_number(place: object) -> bool:
    return place is not None and not isinstance(place, (slice, range))


def _overwrites(later: BoundEdit, bound: BoundEdit) -> bool:
    """Whether a later edit of the same site overwrites everything that this one writes."""
    if not later.edit.overwrites or later.address != bound.address:
        return False
    return all(bool(torch.isin(mine, theirs).all()) for mine, theirs in zip(bound.places, later.places, strict=True))


def _is_own(bound: BoundEdit, model: Model, ids: Tensor) -> bool:
    """Whether an edit patches from an unedited trace of the same run."""
    source = getattr(bound.edit, "source", None)
    if not is_trace(source):
        return False
    return source.model is model and not source.edits and source.ids.tolist() == ids.tolist()
