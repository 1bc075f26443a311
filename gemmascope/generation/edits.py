"""Edits of a growing run: bound for the longest it may become when it begins, cut to its length when it ends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gemmascope.edits.conditional import Conditional
from gemmascope.edits.edit import BoundEdit, Edit
from gemmascope.edits.kinds import Ablate, Add, Patch
from gemmascope.edits.places import find_generation_positions
from gemmascope.edits.target import is_hidden
from gemmascope.errors import EditError
from gemmascope.model.model import Model

_PLACES = ("pos", "q_pos", "k_pos")


def bind_for_generation(edit: Edit, model: Model, prompt: Tensor, n_total: int) -> BoundEdit:
    """An edit bound to a run that begins with a prompt and may reach n_total positions.

    Its positions become numbers, which stay valid while the run grows. SiteError for a position out of reach, EditError for
    a source that does not fit or a pattern that gives weight to later positions.
    """
    numbers: dict[str, Any] = {
        name: find_generation_positions(getattr(edit, name), model, prompt, n_total) for name in _PLACES
    }
    future = prompt.new_zeros(n_total - len(prompt))
    try:
        bound = replace(edit, **numbers).bind(model, torch.cat((prompt, future)))
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


def cut_to_length(bound: BoundEdit, model: Model, ids: Tensor) -> BoundEdit | None:
    """An edit without the positions that a run, which ended with these ids, did not reach; None if it reached none.

    The values of its source are cut in the same way.
    """
    edit, values, places = bound.edit, bound.values, list(bound.places)
    assert values is None or isinstance(values, Tensor)
    axes = (1, 2) if bound.address.site.is_edges else (0,)
    for axis in axes:
        reached = places[axis] < len(ids)
        places[axis] = places[axis][reached]
        values = None if values is None else values.movedim(axis, 0)[reached].movedim(0, axis)
    if not all(map(len, places)) or (is_hidden(bound.address, places, model) and not bound.hidden):
        return None
    names = ("q_pos", "k_pos") if bound.address.site.is_edges else ("pos",)
    numbers: dict[str, Any] = {name: places[axis].tolist() for name, axis in zip(names, axes, strict=True)}
    edit = replace(edit, **{name: at for name, at in numbers.items() if getattr(edit, name) is not None})
    try:
        rebound = edit.bind(model, ids)
    except EditError:
        rebound = _with_values(edit, values).bind(model, ids)
    return replace(rebound, written=bound.written)


def _with_values(edit: Edit, values: Tensor | None) -> Edit:
    """An edit that writes these values: its own source has other positions."""
    places: dict[str, Any] = {name: getattr(edit, name) for name in ("site", "layer", "head", *_PLACES)}
    assert values is not None
    if isinstance(edit, Conditional):
        return replace(edit, inner=_with_values(edit.inner, values))
    assert isinstance(edit, (Patch, Ablate, Add)), f"{edit!r} writes nothing that has positions of its own"
    return Add(vector=values, **places) if isinstance(edit, Add) else Patch(source=values, **places)
