"""Bound edits: places are numbers and the source is checked, so they can be applied to their run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

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
    """What an edit selects: a run, a site and layer, and the places on the site's axes."""

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

    def fit(self, source: object, what: str) -> Tensor:
        """A source in the shape of the selected values: it has that shape, or that of its last axes, and is then repeated.

        source: a tensor or an array of real numbers. what: what an error calls it.
        """
        value = real_tensor(source, what, EditError).detach().to(self.model.device)
        shape, axes = self.shape(), self.address.site.axes
        long = [n for n in value.shape if n > 1]  # axes of one place are optional
        squeezed = value.reshape(shape) if long == [n for n in shape if n > 1] else value
        if tuple(squeezed.shape) != shape[len(shape) - squeezed.dim() :]:
            raise EditError(
                f"{what} has shape {tuple(value.shape)}; '{self.address}' at the places named takes {shape} "
                f"({', '.join(axes)}), or the last axes of that"
            )
        return squeezed.expand(shape)


class DeferredValues:
    """The values of a site that another run of the same pass provides, layer by layer."""

    def __init__(self) -> None:
        self._layer, self._value = -1, torch.empty(0)

    def set(self, layer: int, value: Tensor) -> None:
        """Replace the value by that of another layer: the whole site."""
        self._layer, self._value = layer, value

    def at(self, layer: int) -> Tensor:
        assert layer == self._layer, f"the pass is at layer {self._layer}, and layer {layer} is read"
        return self._value


@dataclass(frozen=True)
class DeferredRead:
    """A reading of deferred values, once the pass is at the layer."""

    deferred: DeferredValues
    layer: int
    places: tuple[Tensor, ...]

    def read(self) -> Tensor:
        return self.deferred.at(self.layer)[mesh(self.places)]


# Sites that are part of the residual stream, or are added to it unchanged.
_IN_STREAM = frozenset(("embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"))

# A write at these sites affects other rows through the attention of the same layer.
_SPREADING = frozenset(("embed", "resid_pre", "attn_in", "k", "k_rot", "v"))

# Sites where minus infinity hides an edge or a token.
_MASKED_BY_INFINITY = frozenset(("scores", "scores_capped", "logits_raw", "logits"))


@dataclass(frozen=True)
class BoundEdit:
    """An edit with its places as numbers and its source checked, so that it can be applied to its run.

    places: the selected numbers along the first axes of the site. values: what to write; None if it is computed from the old
    values, DeferredRead if it is known only once the pass is at the layer. hidden: whether it names only masked edges of a
    pattern, where a written weight still counts. written: what a function wrote to the run so far; None if not recorded.
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
        """Whether the edit can change rows of its layer beyond those it names, or needs them to be present."""
        if not self.address.site.is_edges:
            return self.address.site.name in _SPREADING
        if self.edit.needs_all:
            return True
        if not isinstance(self.values, Tensor) or self.address.site.name != "pattern":
            return False
        _, q_pos, k_pos = self.places
        return bool(self.values[:, k_pos[None] > q_pos[:, None]].any())  # a weight on a key after its query

    @cached_property
    def reach(self) -> tuple[int, int]:
        """The first position whose row the edit changes at its layer, and the one after the last."""
        return int(self.positions.min()), int(self.positions.max()) + 1

    def write_to(self, value: Tensor, first: int = 0, read: Tensor | None = None) -> None:
        """Apply the edit to a run's value of the site, in place. The value begins at position `first`.

        read: for an edit that reads another site, the run's rows there, which begin at the same position.
        """
        values = self.values.read() if isinstance(self.values, DeferredRead) else self.values
        places = list(self.places)
        firsts = (0, first, 0) if self.address.site.is_edges else (first, 0)
        for axis, offset in enumerate(firsts[: len(places)]):
            places[axis] = places[axis] - offset
            present = (places[axis] >= 0) & (places[axis] < value.shape[axis])
            if not bool(present.all()):
                places[axis] = places[axis][present]
                values = None if values is None else values.movedim(axis, 0)[present].movedim(0, axis)
        if not all(map(len, places)):  # a user's function is not called with an empty tensor
            return
        if read is not None:
            values = read[places[0]]
        index = mesh(places)
        new = self._new(value[index], values, places, first).to(value)
        if self.edit.computes:
            self._check(value[index], new, places)
        value[index] = new

    def _new(self, old: Tensor, values: Tensor | None, places: Sequence[Tensor], first: int) -> Tensor:
        """The values that replace old."""
        if self.written is None:
            return self.edit.write(old, values)
        axis = self.written.axis

        def write(some: Tensor, rows: Tensor | None) -> Tensor:
            of_rows = values if rows is None or values is None else values.movedim(axis, 0)[rows].movedim(0, axis)
            return self.edit.write(some, of_rows)

        return self.written(write, old, places[axis] + first, places[2] if self.address.site.is_edges else None)

    def _check(self, old: Tensor, new: Tensor, places: Sequence[Tensor]) -> None:
        """EditError for computed values that are not finite, or that leave masked edges at 0."""
        if self.hidden and not bool(new.any()):
            raise EditError(
                f"{self.edit!r} reaches nothing: the mask hides the edges named, whose weights are 0, and it leaves 0"
            )
        if can_normalize_site(self.address.site, new.detach()) and bool(torch.isfinite(new.detach().sum())):
            return  # a finite sum proves all values finite, quickly
        if not bool(self._allowed(old).all()):
            return
        if len(wrong := torch.nonzero(~self._allowed(new))):
            at = ", ".join(
                f"{axis} {int(place[n])}"
                for axis, place, n in zip(self.address.site.axes, places, wrong[0].tolist(), strict=False)
            )
            number = float(new[tuple(wrong[0])])
            raise EditError(
                f"{self.edit!r} made {number} of what stood at '{self.address}' ({at}): no run can go on from there"
            )
        if can_normalize_site(self.address.site, old) and not can_normalize_site(self.address.site, new.detach()):
            raise EditError(
                f"{self.edit!r} made numbers whose squares are infinite of what stood at '{self.address}': a norm would "
                "make zeros of them"
            )

    def _allowed(self, new: Tensor) -> Tensor:
        """Which values a run can continue from: finite ones, and minus infinity where it hides an edge or a token."""
        finite = torch.isfinite(new)
        return finite | torch.isneginf(new) if self.address.site.name in _MASKED_BY_INFINITY else finite


def can_normalize_site(site: Site, values: Tensor) -> bool:
    """Whether a norm after a site can take these rows. Rows of the stream itself are checked at the end of the run."""
    if site.is_edges or "vocab" in site.axes or site.name in _IN_STREAM:
        return True
    return can_normalize(values)


def with_write_record(bound: BoundEdit) -> BoundEdit:
    """An edit of a trace. What a function writes is recorded, so that a layer that runs again repeats it."""
    if not bound.edit.records:
        return bound
    return replace(bound, written=WriteRecord(1 if bound.address.site.is_edges else 0))


def mesh(places: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Indices that select the outer product of the places."""
    n = len(places)
    return tuple(p.view(*(-1 if i == j else 1 for j in range(n))) for i, p in enumerate(places))
