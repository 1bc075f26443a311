"""Values that edits read from traces of other runs, checked to fit the selected places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeGuard

import torch
from torch import Tensor

from gemmascope.arguments import as_list, is_list, short_repr
from gemmascope.edits.places import differing_position, first_difference
from gemmascope.edits.target import Target
from gemmascope.errors import EditError
from gemmascope.model.model import Model
from gemmascope.sites import SiteKey
from gemmascope.values import is_array


class ReadableRun(Protocol):
    """A run whose values can be read by site: a Trace."""

    model: Model

    @property
    def ids(self) -> Tensor: ...
    @property
    def tokens(self) -> list[str]: ...
    @property
    def edits(self) -> Sequence[object]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, key: object) -> Tensor: ...


def is_trace(value: object) -> TypeGuard[ReadableRun]:
    """Whether this is a run that can be read by site: what gs.trace returns."""
    return hasattr(value, "residuals") and hasattr(value, "layout")


def not_a_trace(value: object) -> str:
    """Describes, for an error, a value that is not a trace."""
    if hasattr(value, "stream") and hasattr(value, "trace"):
        return f"a {type(value).__name__}: give its trace, g.trace()"
    if isinstance(value, (list, tuple)) and value and all(map(is_trace, value)):
        return f"a list of {len(value)} traces: take one of them"
    return type(value).__name__


def values_from_trace(source: ReadableRun, target: Target) -> Tensor:
    """A trace's values at the selected places. EditError if its positions or sizes do not match."""
    ids, source_ids = target.ids, source.ids
    axes = range(1, 3) if target.address.site.is_edges else range(1)
    if any(len(target.places[axis]) == len(ids) for axis in axes) and len(ids) != len(source_ids):
        n_run, n_source, pos = len(ids), len(source_ids), differing_position(target.model, ids, source_ids)
        name = "q_pos= and k_pos=" if target.address.site.is_edges else "pos="
        raise EditError(
            f"an edit of all positions needs a source of as many tokens: the run has {n_run}, the source {n_source}; they "
            f"first differ at position {pos}. Name {name}, or give a tensor"
        )
    if any(int(target.places[axis].max()) >= len(source_ids) for axis in axes):
        last = max(int(target.places[axis].max()) for axis in axes)
        raise EditError(f"the source has no position {last}: {first_difference(target.model, ids, source_ids)}")
    value: Tensor = source[target.address.key]
    of_positions = target.address.site.is_edges or target.address.site.is_scale  # every model has those axes
    if not of_positions and value.shape[-1] != target.shape()[-1]:
        raise EditError(
            f"the source is a trace of {source.model.name!r}, whose '{target.address}' has shape {tuple(value.shape)}"
        )
    return target.select(value.to(target.model.device))


MEANS = ("mean", "mean_by_pos")


def listed_reference(reference: object) -> tuple[ReadableRun, ...]:
    """The user's reference as a tuple. EditError if it is not a list of traces."""
    if is_trace(reference):
        raise EditError("reference is a list of traces; given one: write reference=[trace]")
    if is_array(reference) or not is_list(reference):
        described = not_a_trace(reference) if hasattr(reference, "stream") else short_repr(reference)
        raise EditError(f"reference is a list of traces; given {described}")
    traces = as_list(reference, "reference", error=EditError)
    if wrong := [one for one in traces if not is_trace(one)]:
        described = not_a_trace(wrong[0]) if hasattr(wrong[0], "stream") else short_repr(wrong[0])
        raise EditError(f"reference is a list of traces, made by gs.trace; it holds {described}")
    return tuple(one for one in traces if is_trace(one))


def check_reference(how: str, reference: Sequence[ReadableRun], target: Target) -> None:
    """EditError if a mean of this kind cannot be taken over the reference."""
    if how not in MEANS:
        raise EditError(f"value is a number, 'mean' or 'mean_by_pos'; given {short_repr(how)}")
    if not reference:
        raise EditError(f"{how!r} needs reference=[traces] to take the mean over")
    by_position, n_pos = _by_position(how, target), len(target.ids)
    for trace in reference:
        if trace.model is not target.model and _sizes(trace.model, target) != _sizes(target.model, target):
            raise EditError(
                f"the reference holds a trace of {trace.model.name!r}, whose '{target.address}' has other sizes "
                f"than that of {target.model.name!r}"
            )
        if by_position and len(trace) != n_pos:
            raise EditError(
                f"a mean at each position needs equal lengths: {first_difference(target.model, target.ids, trace.ids)}"
            )
    if not by_position and all(len(trace) == 1 for trace in reference):
        raise EditError("the reference has no position after its first one to take the mean over")


def mean_of(
    how: str, reference: Sequence[ReadableRun], target: Target, means: dict[SiteKey, Tensor] | None = None
) -> Tensor:
    """The mean of a site over traces: over all positions but the first ("mean"), or at each ("mean_by_pos").

    means: a cache of the means of this reference by site and layer.
    """
    check_reference(how, reference, target)
    means = {} if means is None else means
    key = target.address.key
    if key not in means:
        means[key] = _mean(reference, target, by_pos=_by_position(how, target))
    mean = means[key].to(target.model.device)
    if _by_position(how, target):
        return target.select(mean)
    return (mean if len(target.places) == 1 else mean[target.places[1]]).expand(target.shape())


def _mean(reference: Sequence[ReadableRun], target: Target, *, by_pos: bool) -> Tensor:
    values = [trace[target.address.key] for trace in reference]
    # <bos> carries a huge, prompt-independent value: it would swamp the mean of the other positions.
    return torch.stack(values).mean(0) if by_pos else torch.cat([value[1:] for value in values]).mean(0)


def _by_position(how: str, target: Target) -> bool:
    return how == "mean_by_pos" or target.address.site.is_edges


def _sizes(model: Model, target: Target) -> list[int]:
    """The sizes of a site in a model, without its positions."""
    return [model.config.size_of(axis, 0) for axis in target.address.site.axes if not axis.endswith("pos")]
