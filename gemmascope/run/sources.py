"""What edits write: values read from traces of other runs, checked to fit the places they are for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gemmascope.errors import EditError
from gemmascope.run.bound import Target
from gemmascope.run.where import parting

if TYPE_CHECKING:
    from gemmascope.run.trace import Trace


def of_trace(source: Trace, target: Target) -> Tensor:
    """A trace's values at the places of an edit. EditError for one whose positions or sizes do not match."""
    ids, there = target.ids, source.ids
    axes = range(1, 3) if target.address.site.is_edges else range(1)
    if any(len(target.places[axis]) == len(ids) for axis in axes) and len(ids) != len(there):
        raise EditError(f"the source's positions must match the run's: {parting(target.model, ids, there)}")
    if any(int(target.places[axis].max()) >= len(there) for axis in axes):
        last = max(int(target.places[axis].max()) for axis in axes)
        raise EditError(f"the source has no position {last}: {parting(target.model, ids, there)}")
    value: Tensor = source[target.address.site.name, target.address.layer]
    if value.shape[-1] != target.shape()[-1] and not target.address.site.is_edges:
        raise EditError(
            f"the source is a trace of {source.model.name!r}, whose '{target.address}' has shape {tuple(value.shape)}"
        )
    return target.select(value.to(target.model.device))


def mean_of(how: str, reference: Sequence[Trace], target: Target) -> Tensor:
    """The mean of a site over traces: over all positions but the first ("mean"), or at each ("mean_by_pos")."""
    if how not in ("mean", "mean_by_pos"):
        raise EditError(f"value is a number, 'mean' or 'mean_by_pos'; given {how!r}")
    if not reference:
        raise EditError(f"value={how!r} needs reference=[traces] to take the mean over")
    site, layer = target.address.site, target.address.layer
    if how == "mean_by_pos" or site.is_edges:
        for trace in reference:
            if len(trace.ids) != len(target.ids):
                raise EditError(
                    f"a mean at each position needs equal lengths: {parting(target.model, target.ids, trace.ids)}"
                )
        return target.select(torch.stack([trace[site.name, layer] for trace in reference]).mean(0))
    # <bos> carries a huge, prompt-independent value: it would swamp the mean of the others.
    rows = torch.cat([trace[site.name, layer][1:] for trace in reference])
    if not len(rows):
        raise EditError("the reference has no position after its first one to take the mean over")
    mean = rows.mean(0)
    return (mean if len(target.places) == 1 else mean[target.places[1]]).expand(target.shape())
