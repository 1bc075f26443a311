"""Binds an edit to a run: looks up its places and checks its values. Copies and compares arguments of edits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gemmascope.edits.bound import BoundEdit, Target, can_normalize_site
from gemmascope.edits.call_text import plain
from gemmascope.edits.places import find_heads, find_positions
from gemmascope.edits.reach import refuse_hidden
from gemmascope.edits.sources import is_trace
from gemmascope.errors import EditError
from gemmascope.model.model import Model
from gemmascope.sites import find
from gemmascope.values import is_array

if TYPE_CHECKING:
    from gemmascope.edits.edit import Edit


def bind(edit: Edit, model: Model, ids: Tensor) -> BoundEdit:
    """An edit on a run of these ids, with its places as numbers and its values checked."""
    address = find(edit.site, model.n_layers, edit.layer)
    heads = find_heads(edit.head, address.site, model)
    if address.site.is_edges:
        _refuse(edit, "pos", "'{0}' lives on attention edges: say q_pos and k_pos instead of pos")
        axes: tuple[list[int] | None, ...] = (
            heads,
            find_positions(edit.q_pos, model, ids),
            find_positions(edit.k_pos, model, ids),
        )
    else:
        _refuse(edit, "q_pos", "'{0}' has positions, not edges: say pos instead of q_pos and k_pos")
        _refuse(edit, "k_pos", "'{0}' has positions, not edges: say pos instead of q_pos and k_pos")
        positions = find_positions(edit.pos, model, ids)
        axes = (positions, heads)
    places = tuple(torch.tensor(axis, device=model.device) for axis in axes if axis is not None)
    target = Target(model, ids, address, places)
    values = edit.values_at(target)
    if values is not None and not bool(torch.isfinite(values.to(model.dtype)).all()):
        raise EditError(f"the source of {edit!r} holds NaN or infinity, or a number too large for {model.dtype}")
    if values is not None and not edit.computes and not can_normalize_site(address.site, values):
        raise EditError(f"the source of {edit!r} holds numbers whose squares are infinite: a norm would make zeros of them")
    return BoundEdit(edit, address, places, values, refuse_hidden(edit, address, places, values, model))


def _refuse(edit: Edit, argument: str, why: str) -> None:
    if getattr(edit, argument) is not None:
        raise EditError(f"{why.format(edit.site)}; given {argument}={getattr(edit, argument)!r}")


def copy_argument(value: object) -> object:
    """A copy of a tensor, an array or a list; anything else is returned unchanged."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    return [copy_argument(one) for one in value] if isinstance(value, list) else value


def equal_arguments(a: object, b: object) -> bool:
    """Whether two arguments of edits are equal: tensors by their numbers, traces by model, tokens and edits."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.device == b.device and bool(torch.equal(a, b))
    if is_array(a) and is_array(b) and not isinstance(a, Tensor) and not isinstance(b, Tensor):
        return bool(np.array_equal(np.asarray(a), np.asarray(b)))
    if is_trace(a) and is_trace(b):
        return bool(a.model is b.model and a.ids.tolist() == b.ids.tolist() and a.edits == b.edits)
    a, b = plain(a), plain(b)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(equal_arguments(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
