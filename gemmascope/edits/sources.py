"""What edits write: values read from traces of other runs, checked to fit the places they are for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

from gemmascope.arguments import as_list, shown
from gemmascope.edits.bound import Target
from gemmascope.edits.places import first_difference
from gemmascope.errors import EditError
from gemmascope.model.model import Model
from gemmascope.values import is_array

if TYPE_CHECKING:
    from gemmascope.run.trace import Trace


def is_trace(value: object) -> TypeGuard[Trace]:
    """Whether this is a run that can be read by site: what gs.trace returns."""
    return hasattr(value, "residuals") and hasattr(value, "layout")


def not_a_trace(value: object) -> str:
    """Describes, for an error, a value that is not a trace."""
    if hasattr(value, "stream") and hasattr(value, "trace"):
        return f"a {type(value).__name__}: give its trace, g.trace()"
    if isinstance(value, (list, tuple)) and value and all(map(is_trace, value)):
        return f"a list of {len(value)} traces: take one of them"
    return type(value).__name__


def of_trace(source: Trace, target: Target) -> Tensor:
    """A trace's values at the places of an edit. EditError for one whose positions or sizes do not match."""
    ids, there = target.ids, source.ids
    axes = range(1, 3) if target.address.site.is_edges else range(1)
    if any(len(target.places[axis]) == len(ids) for axis in axes) and len(ids) != len(there):
        raise EditError(f"the source's positions must match the run's: {first_difference(target.model, ids, there)}")
    if any(int(target.places[axis].max()) >= len(there) for axis in axes):
        last = max(int(target.places[axis].max()) for axis in axes)
        raise EditError(f"the source has no position {last}: {first_difference(target.model, ids, there)}")
    value: Tensor = source[target.address.site.name, target.address.layer]
    if value.shape[-1] != target.shape()[-1] and not target.address.site.is_edges:
        raise EditError(
            f"the source is a trace of {source.model.name!r}, whose '{target.address}' has shape {tuple(value.shape)}"
        )
    return target.select(value.to(target.model.device))


MEANS = ("mean", "mean_by_pos")


def listed_reference(reference: Any) -> tuple[Trace, ...]:
    """The traces to take a mean over as they were given, checked to be a list of traces. EditError for anything else."""
    if is_trace(reference):
        raise EditError("reference is a list of traces; given one: write reference=[trace]")
    if isinstance(reference, (str, bytes, Mapping, type)) or is_array(reference) or not isinstance(reference, Iterable):
        given = not_a_trace(reference) if hasattr(reference, "stream") else shown(reference)
        raise EditError(f"reference is a list of traces; given {given}")
    found = as_list(reference, "reference", error=EditError)
    if wrong := [given for given in found if not is_trace(given)]:
        held = not_a_trace(wrong[0]) if hasattr(wrong[0], "stream") else shown(wrong[0])
        raise EditError(f"reference is a list of traces, made by gs.trace; it holds {held}")
    return tuple(one for one in found if is_trace(one))


def check_reference(how: str, reference: Sequence[Trace], target: Target) -> None:
    """EditError for traces that no mean of this kind can be taken over."""
    if how not in MEANS:
        raise EditError(f"value is a number, 'mean' or 'mean_by_pos'; given {shown(how)}")
    if not reference:
        raise EditError(f"{how!r} needs reference=[traces] to take the mean over")
    for trace in reference:
        if _sizes(trace.model, target) != _sizes(target.model, target):
            raise EditError(
                f"the reference holds a trace of {trace.model.name!r}, whose '{target.address}' has other sizes "
                f"than that of {target.model.name!r}"
            )
        if _by_position(how, target) and len(trace.ids) != len(target.ids):
            raise EditError(
                f"a mean at each position needs equal lengths: {first_difference(target.model, target.ids, trace.ids)}"
            )
    if not _by_position(how, target) and all(len(trace.ids) == 1 for trace in reference):
        raise EditError("the reference has no position after its first one to take the mean over")


def mean_of(
    how: str, reference: Sequence[Trace], target: Target, made: dict[tuple[str, int | None], Tensor] | None = None
) -> Tensor:
    """The mean of a site over traces: over all positions but the first ("mean"), or at each ("mean_by_pos").

    made: the means that were taken of this reference before, by site and layer: for many runs, one is taken once.
    """
    check_reference(how, reference, target)
    made = {} if made is None else made
    address = (target.address.site.name, target.address.layer)
    if address not in made:
        made[address] = _mean(reference, target, by_pos=_by_position(how, target))
    mean = made[address].to(target.model.device)
    if _by_position(how, target):
        return target.select(mean)
    return (mean if len(target.places) == 1 else mean[target.places[1]]).expand(target.shape())


def _mean(reference: Sequence[Trace], target: Target, *, by_pos: bool) -> Tensor:
    values = [trace[target.address.site.name, target.address.layer] for trace in reference]
    # <bos> carries a huge, prompt-independent value: it would swamp the mean of the other positions.
    return torch.stack(values).mean(0) if by_pos else torch.cat([value[1:] for value in values]).mean(0)


def _by_position(how: str, target: Target) -> bool:
    return how == "mean_by_pos" or target.address.site.is_edges


def _sizes(model: Model, target: Target) -> list[int]:
    """The sizes of a site in a model, but for its positions."""
    return [model.config.size_of(axis, 0) for axis in target.address.site.axes if not axis.endswith("pos")]
