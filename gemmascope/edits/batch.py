"""Writes many edits at once: those that only replace values, in one indexed copy for the rows of a pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gemmascope.edits.edit import BoundEdit
from gemmascope.edits.target import DeferredRead, DeferredValues
from gemmascope.errors import EditError
from gemmascope.model.maths import index_tensor
from gemmascope.values import Array, moved


class RunWrite(NamedTuple):
    """An edit of a run whose rows are in a pass: its first row there, that row's position, and how many rows it has."""

    edit: BoundEdit
    row: int
    start: int
    n_rows: int


def require_one_basis(edits: Sequence[BoundEdit]) -> None:
    """EditError if two edits of a run split the same rows by two dictionaries: each would explain what the other wrote."""
    split = [edit for edit in edits if edit.edit.basis is not None]
    for i, second in enumerate(split):
        for first in split[:i]:
            if first.address.key != second.address.key or first.edit.basis is second.edit.basis:
                continue
            if shared := set(first.positions.tolist()) & set(second.positions.tolist()):
                raise EditError(
                    f"{first.edit!r} and {second.edit!r} are of two dictionaries and both write '{second.address}' at "
                    f"position {min(shared)}: use one dictionary there, or give them different positions"
                )


def write_edits(value: Tensor, writes: Sequence[RunWrite]) -> None:
    """Write edits of different runs at a row site, in place. value: [row, ...], contiguous. Each edit is replaces()."""
    deferred: dict[DeferredValues, list[tuple[Array, Array]]] = defaultdict(list)
    known: list[tuple[Array, Tensor]] = []
    for edit, row, start, n_rows in writes:
        places = [place.numpy() for place in edit.places]
        own = places[0] - start
        present = (own >= 0) & (own < n_rows)
        into = _flat([own[present] + row, *places[1:]], value.shape)
        if isinstance(edit.values, DeferredRead):
            deferred[edit.values.deferred].append((into, _flat([places[0][present], *places[1:]], value.shape)))
        else:
            assert edit.values is not None
            values = moved(edit.values, value.device)
            values = values if present.all() else values[index_tensor(np.flatnonzero(present), value.device)]
            known.append((into, values.flatten(0, len(places) - 1)))
    flat = value.flatten(0, len(writes[0].edit.places) - 1)
    for source, indices in deferred.items():
        rows, taken = (index_tensor(np.concatenate(side), value.device) for side in zip(*indices, strict=True))
        flat.index_copy_(0, rows, source.value.flatten(0, value.dim() - flat.dim()).index_select(0, taken).to(value.dtype))
    if known:
        rows = index_tensor(np.concatenate([into for into, _ in known]), value.device)
        flat.index_copy_(0, rows, torch.cat([values.to(value.dtype) for _, values in known]))


def replaces(edit: BoundEdit) -> bool:
    """Whether an edit of a row site writes values that depend on nothing in its own run."""
    kind = edit.edit
    only_writes = kind.overwrites and not kind.computes and kind.reads is None and edit.written is None
    return only_writes and edit.values is not None and not edit.address.site.is_edges


def _flat(places: Sequence[Array], shape: Sequence[int]) -> Array:
    """The outer product of places on the first axes of a value, as indices of those axes flattened."""
    if len(places) == 1:
        return places[0]
    return (places[0][:, None] * shape[1] + places[1][None, :]).reshape(-1)
