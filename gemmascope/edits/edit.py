"""Edits: changes to a run, as data, and the same bound to a run. The repr of an edit is the call that makes it.

An edit names a site, a layer, places (positions and heads, or edges) and what to write there. Binding it to a run (a model
and token ids) looks up its places and checks its source, before anything runs. The kinds of edits are in kinds.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from gemmascope.arguments import as_list, is_list, short_repr
from gemmascope.edits.arguments import argument_digest, copy_argument, equal_arguments
from gemmascope.edits.call_text import plain
from gemmascope.edits.places import Head, Pos, find_heads
from gemmascope.edits.target import (
    DeferredRead,
    Target,
    can_continue_from,
    can_normalize_site,
    find_target,
    is_hidden,
    mesh,
    what_is_seen,
    why_not_normalized,
)
from gemmascope.edits.write_record import WriteRecord
from gemmascope.errors import EditError, SiteError
from gemmascope.legible import prints_legibly
from gemmascope.model.digests import join_digests
from gemmascope.model.model import Model
from gemmascope.sites import Address, find
from gemmascope.values import is_array, moved

PLACES = ("pos", "head", "q_pos", "k_pos")

# A write at these sites affects other rows through the attention of the same layer.
_SPREADING = frozenset(("embed", "resid_pre", "attn_in_scale", "attn_in", "k_raw", "k", "k_rot", "v"))


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class Edit(ABC):
    """A change to a run. At row sites pos and head select places, at edge sites (scores, pattern) head, q_pos and k_pos."""

    site: str
    layer: int | None = None
    pos: Pos = None
    head: Head = None
    q_pos: Pos = None
    k_pos: Pos = None

    def __post_init__(self) -> None:
        for name in PLACES:
            if isinstance(place := getattr(self, name), Iterator):  # read once, while an edit may be bound many times
                object.__setattr__(self, name, as_list(place, name, error=SiteError))

    # The function of gs that makes the edit; "" for the name of the class.
    function: ClassVar[str] = ""
    # Whether write() must see all named places at once, even where the run equals its base run.
    needs_all: ClassVar[bool] = False
    # Whether the written values are recorded with a run, because a second call may return others.
    records: ClassVar[bool] = False
    # Whether the written values do not depend on the old ones.
    overwrites: ClassVar[bool] = False
    # Whether the written values are computed in the run, and may then overflow.
    computes: ClassVar[bool] = True

    @property
    def reads(self) -> str | None:
        """An earlier row site of the layer whose rows are passed to write() as values; None for most edits."""
        return None

    @property
    def basis(self) -> object:
        """What splits the rows that it writes, such as a dictionary. Two bases cannot share a row. None for most edits."""
        return None

    @property
    def extra_hash(self) -> object:
        """Extra identity for the sweep's hash, such as a function; None if the call and its values say it all."""
        return None

    def bind(self, model: Model, ids: Tensor) -> BoundEdit:
        """This edit on a run of these ids, with the present values of its tensors and lists.

        Raises:
            SiteError: A site, layer, position or head does not exist.
            EditError: The source does not fit.
        """
        return self.snapshot()._bind(model, ids)

    def require_places(self, model: Model) -> None:
        """SiteError for a site, layer or head that the model lacks, whatever the run."""
        find_heads(self.head, find(self.site, model.n_layers, self.layer).site, model)

    def digest(self) -> str:
        """A digest of the edit and of the numbers that it writes."""
        return join_digests(
            [self.function, type(self).__name__, *(argument_digest(getattr(self, f.name)) for f in fields(self))]
        )

    def snapshot(self) -> Edit:
        """This edit with copies of its tensors and lists, which the user may change later."""
        arguments = {f.name: getattr(self, f.name) for f in fields(self)}
        copies = {name: new for name, value in arguments.items() if (new := copy_argument(value)) is not value}
        snapshot = copy(self)
        for name, new in copies.items():
            object.__setattr__(snapshot, name, new)
        return snapshot if copies else self

    def _bind(self, model: Model, ids: Tensor) -> BoundEdit:
        places = {name: getattr(self, name) for name in PLACES}
        target = find_target(model, ids, self.site, self.layer, places)
        values = self.values_at(target)
        if values is not None and not bool(torch.isfinite(values.to(model.dtype)).all()):
            raise EditError(f"the source of {self!r} holds NaN or infinity, or a number too large for {model.dtype}")
        if values is not None and not self.computes and not can_normalize_site(target.address.site, values):
            raise EditError(f"the source of {self!r} holds {why_not_normalized(target.address.site)}")
        hidden = self._names_masked_edges_only(target, values)
        return BoundEdit(self, target.address, target.places, values, hidden, home=model.device)

    def _names_masked_edges_only(self, target: Target, values: Tensor | None) -> bool:
        """Whether all selected edges are masked. EditError if the edit cannot change anything there.

        A pattern is written after the mask, so a weight on a masked edge counts; what a function returns for one is known
        only when it is called.
        """
        address = target.address
        if not is_hidden(address, target.places, target.model):
            return False
        if address.site.name == "pattern" and (self.needs_all or (values is not None and bool(values.any()))):
            return True
        raise EditError(f"{self!r} reaches nothing: {what_is_seen(address, target.model)}, and no edge named is among them")

    @abstractmethod
    def write(self, old: Tensor, values: Tensor | None) -> Tensor:
        """The new values of the selected places. old, values: [the selected places], in the axes of the site."""

    def values_at(self, target: Target) -> Tensor | None:
        """The values to write, [the selected places]; None if they are computed from the old ones."""
        return None

    def _arguments(self) -> list[str]:
        """The positional arguments of the call that makes this edit, as Python code."""
        return [repr(self.site)]

    @prints_legibly
    def __repr__(self) -> str:
        name = self.function or type(self).__name__.lower()
        places = [f"{k}={plain(getattr(self, k))!r}" for k in ("layer", *PLACES) if getattr(self, k) is not None]
        return f"gs.{name}({', '.join([*self._arguments(), *places])})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and all(
            equal_arguments(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)
        )

    def __hash__(self) -> int:
        return hash((type(self), self.site))


@dataclass(frozen=True)
class BoundEdit:
    """An edit with its places as numbers and its source checked, so that it can be applied to its run.

    places: the selected numbers along the first axes of the site. values: what to write; None if it is computed from the old
    values, DeferredRead if it is known only once the pass is at the layer. hidden: whether it names only masked edges of a
    pattern, where a written weight still counts. written: what a function wrote to the run so far; None if not recorded.
    unchanged_before: a position before which the run has the values that the edit writes, so that it changes nothing there.
    home: the model's device, on which a user's function is called; None: wherever the layer is.
    """

    edit: Edit
    address: Address
    places: tuple[Tensor, ...]
    values: Tensor | DeferredRead | None
    hidden: bool = False
    written: WriteRecord | None = field(default=None, compare=False, repr=False)
    unchanged_before: int = 0
    home: torch.device | None = field(default=None, compare=False, repr=False)

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
        """The first position whose row the edit changes at its layer, and the one after the last; not above the first if
        it changes none.
        """
        return max(int(self.positions.min()), self.unchanged_before), int(self.positions.max()) + 1

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
        values = None if values is None else moved(values, value.device)
        if not all(map(len, places)):  # a user's function is not called with an empty tensor
            return
        if read is not None:
            values = read[mesh(places[:1], read.device)]
        index = mesh(places, value.device)
        new = self._new(value[index], values, places, first).to(value)
        if self.edit.computes:
            self._check(value[index], new, places)
        value[index] = new

    def _new(self, old: Tensor, values: Tensor | None, places: Sequence[Tensor], first: int) -> Tensor:
        """The values that replace old."""
        if self.edit.records and self.home is not None:
            old = moved(old, self.home)
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
        if not bool(can_continue_from(self.address.site, old).all()):
            return
        if len(wrong := torch.nonzero(~can_continue_from(self.address.site, new))):
            at = ", ".join(
                f"{axis} {int(place[n])}"
                for axis, place, n in zip(self.address.site.axes, places, wrong[0].tolist(), strict=False)
            )
            number = float(new[tuple(wrong[0])])
            raise EditError(
                f"{self.edit!r} made {number} of what stood at '{self.address}' ({at}): no run can go on from there"
            )
        if can_normalize_site(self.address.site, old) and not can_normalize_site(self.address.site, new.detach()):
            why = f"numbers whose squares are infinite of what stood at '{self.address}': a norm would make zeros of them"
            raise EditError(f"{self.edit!r} made {why}")


def with_write_record(bound: BoundEdit) -> BoundEdit:
    """An edit of a trace. What a function writes is recorded, so that a layer that runs again repeats it."""
    if not bound.edit.records:
        return bound
    return replace(bound, written=WriteRecord(1 if bound.address.site.is_edges else 0))


def listed_edits(edits: object) -> tuple[Edit, ...]:
    """The user's edits as a tuple. EditError if they are not a list of edits."""
    if isinstance(edits, Edit):
        raise EditError(f"edits is a list of edits; given one: write edits=[{edits!r}]")
    if is_array(edits) or not is_list(edits):
        raise EditError(f"edits is a list of edits; given {short_repr(edits)}")
    listed = as_list(edits, "edits", error=EditError)
    if wrong := [edit for edit in listed if not isinstance(edit, Edit)]:
        raise EditError(
            f"edits is a list of edits, made by gs.patch, gs.ablate, gs.add, ...; it holds {short_repr(wrong[0])}"
        )
    return tuple(edit for edit in listed if isinstance(edit, Edit))
