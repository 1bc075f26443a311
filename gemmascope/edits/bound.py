"""Bound edits: edits whose places are numbers and whose source is checked, ready to be written to their run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gemmascope.edits.write_record import WriteRecord
from gemmascope.errors import EditError
from gemmascope.model.finite import can_normalize
from gemmascope.model.model import Model
from gemmascope.sites import Address, Site
from gemmascope.values import real_tensor

if TYPE_CHECKING:
    from gemmascope.edits.edit import Edit


@dataclass(frozen=True)
class Target:
    """Where an edit will be written: a run, an address in it, and the places on the site's axes."""

    model: Model
    ids: Tensor
    address: Address
    places: tuple[Tensor, ...]

    def shape(self) -> tuple[int, ...]:
        """The shape of the selected values."""
        axes = self.address.site.axes[len(self.places) :]
        return (*map(len, self.places), *(self.model.config.size_of(axis, len(self.ids)) for axis in axes))

    def select(self, value: Tensor) -> Tensor:
        """The selected places of a site's value."""
        return value[mesh(self.places)]

    def fit(self, given: Any, what: str) -> Tensor:
        """A source for the selected values: of their shape, or of its last axes and then the same along the others.

        given: a tensor or a numpy array of real numbers.
        """
        value = real_tensor(given, what, EditError).detach().to(self.model.device)
        shape, axes = self.shape(), self.address.site.axes
        long = [n for n in value.shape if n > 1]  # an axis of one place may be left out, or be there
        squeezed = value.reshape(shape) if long == [n for n in shape if n > 1] else value
        if tuple(squeezed.shape) != shape[len(shape) - squeezed.dim() :]:
            raise EditError(
                f"{what} has shape {tuple(value.shape)}; '{self.address}' at the places named takes {shape} "
                f"({', '.join(axes)}), or the last axes of that"
            )
        return squeezed.expand(shape)


class DeferredValues:
    """The values of a site that come from a run of the same pass: handed over layer by layer, as the pass goes."""

    def __init__(self) -> None:
        self._layer, self._value = -1, torch.empty(0)

    def hand(self, layer: int, value: Tensor) -> None:
        """Take a layer's value of the site, whole, in the place of the one before."""
        self._layer, self._value = layer, value

    def at(self, layer: int) -> Tensor:
        assert layer == self._layer, f"the pass is at layer {self._layer}, and layer {layer} is read"
        return self._value


@dataclass(frozen=True)
class DeferredRead:
    """Values that a feed will have when the pass is at this layer."""

    feed: DeferredValues
    layer: int
    places: tuple[Tensor, ...]

    def read(self) -> Tensor:
        return self.feed.at(self.layer)[mesh(self.places)]


# What is part of the residual stream or joins it as it stands.
_IN_STREAM = frozenset(("embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"))

# What is written here reaches other rows through the attention of the same layer.
_SPREADING = frozenset(("embed", "resid_pre", "attn_in", "k", "k_rot", "v"))


# Where minus infinity is a way to say "not this one".
_MASKED_BY_INFINITY = frozenset(("scores", "scores_capped", "logits_raw", "logits"))


@dataclass(frozen=True)
class BoundEdit:
    """An edit whose places are numbers and whose source is checked: ready to be written to its run.

    places: the selected numbers along the first axes of the site. values: what to write; None if that follows from what
    stands there; Fed if it is known only when the pass is at the layer. hidden: whether it names only edges that the mask
    hides, at a pattern, where what is written there is read all the same. written: what a function wrote to the run so far;
    None where it is not kept.
    """

    edit: Edit
    address: Address
    places: tuple[Tensor, ...]
    values: Tensor | DeferredRead | None
    hidden: bool = False
    written: WriteRecord | None = field(default=None, compare=False, repr=False)

    @property
    def positions(self) -> Tensor:
        """The positions whose rows the edit changes at its layer: those named; query positions at edge sites."""
        return self.places[1 if self.address.site.is_edges else 0]

    @cached_property
    def spreads(self) -> bool:
        """Whether the edit can change, within its layer, other rows than those it names, or needs them to be there."""
        if not self.address.site.is_edges:
            return self.address.site.name in _SPREADING
        if self.edit.needs_all:
            return True
        if not isinstance(self.values, Tensor) or self.address.site.name != "pattern":
            return False
        _, q_pos, k_pos = self.places
        return bool(self.values[:, k_pos[None] > q_pos[:, None]].any())  # a weight on a key ahead of its query

    @cached_property
    def reach(self) -> tuple[int, int]:
        """The first position whose row the edit changes at its layer, and the one after the last."""
        return int(self.positions.min()), int(self.positions.max()) + 1

    def write_to(self, value: Tensor, first: int = 0, read: Tensor | None = None) -> None:
        """Write the edit to a run's value of the site, in place. The value begins at position `first`.

        read: of an edit that reads another site, the run's rows there, which begin at that position too.
        """
        values = self.values.read() if isinstance(self.values, DeferredRead) else self.values
        places = list(self.places)
        firsts = (0, first, 0) if self.address.site.is_edges else (first, 0)
        for axis, offset in enumerate(firsts[: len(places)]):
            places[axis] = places[axis] - offset
            there = (places[axis] >= 0) & (places[axis] < value.shape[axis])
            if not bool(there.all()):
                places[axis] = places[axis][there]
                values = None if values is None else values.movedim(axis, 0)[there].movedim(0, axis)
        if not all(map(len, places)):  # a user's function is not asked about nothing
            return
        if read is not None:
            values = read[places[0]]
        index = mesh(places)
        new = self._new(value[index], values, places, first).to(value)
        if self.edit.computes:
            self._check(value[index], new, places)
        value[index] = new

    def _new(self, old: Tensor, values: Tensor | None, places: Sequence[Tensor], first: int) -> Tensor:
        """What is written in the place of old."""
        if self.written is None:
            return self.edit.write(old, values)
        axis = self.written.axis

        def write(some: Tensor, rows: Tensor | None) -> Tensor:
            mine = values if rows is None or values is None else values.movedim(axis, 0)[rows].movedim(0, axis)
            return self.edit.write(some, mine)

        return self.written(write, old, places[axis] + first, places[2] if self.address.site.is_edges else None)

    def _check(self, old: Tensor, new: Tensor, places: Sequence[Tensor]) -> None:
        """EditError for a computed value that is no number, or that leaves hidden edges as they are."""
        if self.hidden and not bool(new.any()):
            raise EditError(
                f"{self.edit!r} reaches nothing: the mask hides the edges named, whose weights are 0, and it leaves 0"
            )
        if can_normalize_site(self.address.site, new.detach()) and bool(torch.isfinite(new.detach().sum())):
            return  # sums are quick, and what is no number makes them none
        if not bool(self._allowed(old).all()):
            return
        if len(wrong := torch.nonzero(~self._allowed(new))):
            at = ", ".join(
                f"{axis} {int(place[n])}"
                for axis, place, n in zip(self.address.site.axes, places, wrong[0].tolist(), strict=False)
            )
            made = float(new[tuple(wrong[0])])
            raise EditError(
                f"{self.edit!r} made {made} of what stood at '{self.address}' ({at}): no run can go on from there"
            )
        if can_normalize_site(self.address.site, old) and not can_normalize_site(self.address.site, new.detach()):
            raise EditError(
                f"{self.edit!r} made numbers whose squares are infinite of what stood at '{self.address}': a norm would "
                "make zeros of them"
            )

    def _allowed(self, new: Tensor) -> Tensor:
        """Which numbers a run can go on from: finite ones, and minus infinity where it hides an edge or a token."""
        finite = torch.isfinite(new)
        return finite | torch.isneginf(new) if self.address.site.name in _MASKED_BY_INFINITY else finite


def can_normalize_site(site: Site, values: Tensor) -> bool:
    """Whether a norm can take what comes of the rows of a site. Of the stream's own rows, that is seen at the run's end."""
    if site.is_edges or "vocab" in site.axes or site.name in _IN_STREAM:
        return True
    return can_normalize(values)


def with_write_record(bound: BoundEdit) -> BoundEdit:
    """An edit of a run that is kept: what a function writes to it is kept as well, for layers that run again."""
    if not bound.edit.records:
        return bound
    return replace(bound, written=WriteRecord(1 if bound.address.site.is_edges else 0))


def mesh(places: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Indices that select the outer product of the places."""
    n = len(places)
    return tuple(p.view(*(-1 if i == j else 1 for j in range(n))) for i, p in enumerate(places))
