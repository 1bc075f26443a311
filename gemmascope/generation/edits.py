"""Edits of a run that is still growing: placed and bound when it begins, cut to what came of it when it ends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gemmascope.edits.bound import BoundEdit
from gemmascope.edits.edit import Ablate, Add, Edit, Patch
from gemmascope.edits.places import find_generation_positions
from gemmascope.edits.reach import is_hidden
from gemmascope.errors import EditError
from gemmascope.model.model import Model

_PLACES = ("pos", "q_pos", "k_pos")


def bind_for_generation(edit: Edit, model: Model, prompt: Tensor, n_total: int) -> BoundEdit:
    """An edit bound to a run that begins with a prompt and may come to have n_total positions.

    Its positions are numbers from here on, which mean the same while the run grows. SiteError for a position that cannot
    be there, EditError for a source that does not fit, and for weights of a pattern that need positions still to come.
    """
    numbers: dict[str, Any] = {
        name: find_generation_positions(getattr(edit, name), model, prompt, n_total) for name in _PLACES
    }
    to_come = prompt.new_zeros(n_total - len(prompt))
    try:
        bound = replace(edit, **numbers).bind(model, torch.cat((prompt, to_come)))
    except EditError as error:
        if edit.pos is not None or edit.q_pos is not None:
            raise
        raise EditError(
            f"in generation an edit without a position is made at all {n_total} positions, the generated ones included; for "
            f"the prompt alone say pos=slice(0, {len(prompt)}). ({error})"
        ) from error
    if bound.address.site.name == "pattern" and bound.spreads and not edit.needs_all:
        raise EditError(
            f"{edit!r} gives weight to keys ahead of their query, which are not there yet when that token is generated: "
            "say q_pos and k_pos so that no key is after its query"
        )
    return bound


def cut(bound: BoundEdit, model: Model, ids: Tensor) -> BoundEdit | None:
    """An edit as far as a run came, which ended with these ids; None where it came to none of the edit's positions.

    A source that has values for positions that never came is cut with them.
    """
    edit, values, places = bound.edit, bound.values, list(bound.places)
    assert values is None or isinstance(values, Tensor)
    axes = (1, 2) if bound.address.site.is_edges else (0,)
    for axis in axes:
        there = places[axis] < len(ids)
        places[axis] = places[axis][there]
        values = None if values is None else values.movedim(axis, 0)[there].movedim(0, axis)
    if not all(map(len, places)) or (is_hidden(bound.address, places, model) and not bound.hidden):
        return None
    names = ("q_pos", "k_pos") if bound.address.site.is_edges else ("pos",)
    came: dict[str, Any] = {name: places[axis].tolist() for name, axis in zip(names, axes, strict=True)}
    edit = replace(edit, **{name: at for name, at in came.items() if getattr(edit, name) is not None})
    try:
        found = edit.bind(model, ids)
    except EditError:
        found = _with_values(edit, values).bind(model, ids)
    return replace(found, written=bound.written)


def _with_values(edit: Edit, values: Tensor | None) -> Edit:
    """An edit that writes values of its own as one that is given them: what they came from has other positions."""
    where: dict[str, Any] = {name: getattr(edit, name) for name in ("site", "layer", "head", *_PLACES)}
    assert values is not None
    assert isinstance(edit, (Patch, Ablate, Add)), f"{edit!r} writes nothing that has positions of its own"
    return Add(vector=values, **where) if isinstance(edit, Add) else Patch(source=values, **where)
