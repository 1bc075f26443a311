"""Edits: changes to a run, as data. Each prints as the call that makes it.

An edit names a site, a layer, places (positions and heads, or edges) and what is written there. Bound to a run (a model
and token ids), its places are looked up and its source is checked, before anything runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gemmascope.errors import EditError, SiteError
from gemmascope.model.maths import visible
from gemmascope.model.model import Model
from gemmascope.run.code import plain
from gemmascope.run.where import Head, Pos, find_heads, find_positions, parting
from gemmascope.sites import Address, find

if TYPE_CHECKING:
    from gemmascope.run.trace import Trace


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class Edit:
    """A change to a run. At row sites pos and head say where, at edge sites (scores, pattern, ...) head, q_pos and k_pos."""

    site: str
    layer: int | None = None
    pos: Pos = None
    head: Head = None
    q_pos: Pos = None
    k_pos: Pos = None

    def bind(self, model: Model, ids: Tensor) -> BoundEdit:
        """This edit, on a run of these ids.

        Raises SiteError for a site, layer, position or head that is not there, EditError for a source that does not fit.
        """
        address = find(self.site, model.n_layers, self.layer)
        heads = find_heads(self.head, address.site, model)
        if address.site.is_edges:
            self._refuse("pos", "'{0}' lives on attention edges: say q_pos and k_pos instead of pos")
            axes: tuple[list[int] | None, ...] = (
                heads,
                find_positions(self.q_pos, model, ids),
                find_positions(self.k_pos, model, ids),
            )
        else:
            self._refuse("q_pos", "'{0}' has positions, not edges: say pos instead of q_pos and k_pos")
            self._refuse("k_pos", "'{0}' has positions, not edges: say pos instead of q_pos and k_pos")
            positions = find_positions(self.pos, model, ids)
            axes = (positions, heads)
        places = tuple(torch.tensor(axis, device=model.device) for axis in axes if axis is not None)
        target = Target(model, ids, address, places)
        values = self._values(target)
        if values is not None and not bool(torch.isfinite(values).all()):
            raise EditError(f"the source of {self!r} holds NaN or infinity")
        return BoundEdit(self, address, places, values)

    def write(self, old: Tensor, values: Tensor | None) -> Tensor:
        """What stands there after the edit. old and values: the selected places, in the axes of the site."""
        raise NotImplementedError

    def _values(self, target: Target) -> Tensor | None:
        """What is to be written, [the selected places], or None if it follows from what stands there."""
        return None

    def _arguments(self) -> list[str]:
        """The positional arguments of the call that makes this edit, printed."""
        return [repr(self.site)]

    def __repr__(self) -> str:
        name = type(self).__name__.lower()
        where = [
            f"{k}={plain(getattr(self, k))!r}"
            for k in ("layer", "pos", "head", "q_pos", "k_pos")
            if getattr(self, k) is not None
        ]
        return f"gs.{name}({', '.join([*self._arguments(), *where])})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and all(_same(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))

    def __hash__(self) -> int:
        return hash((type(self), self.site))

    def _refuse(self, argument: str, why: str) -> None:
        if getattr(self, argument) is not None:
            raise EditError(f"{why.format(self.site)}; given {argument}={getattr(self, argument)!r}")


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

    def fit(self, value: Tensor, what: str) -> Tensor:
        """A source for the selected values: of their shape, or of its last axes and then the same along the others."""
        value = torch.as_tensor(value).to(self.model.device)
        shape, axes = self.shape(), self.address.site.axes
        long = [n for n in value.shape if n > 1]  # an axis of one place may be left out, or be there
        squeezed = value.reshape(shape) if long == [n for n in shape if n > 1] else value
        if tuple(squeezed.shape) != shape[len(shape) - squeezed.dim() :]:
            raise EditError(
                f"{what} has shape {tuple(value.shape)}; '{self.address}' at the places named takes {shape} "
                f"({', '.join(axes)}), or the last axes of that"
            )
        return squeezed.expand(shape)


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class Patch(Edit):
    source: Trace | Tensor

    def write(self, old: Tensor, values: Tensor | None) -> Tensor:
        assert values is not None
        return values

    def _values(self, target: Target) -> Tensor:
        if isinstance(self.source, Tensor):
            return target.fit(self.source, "the source tensor")
        if not hasattr(self.source, "ids"):
            raise EditError(f"a source is a trace or a tensor; given {type(self.source).__name__}")
        return _of_trace(self.source, target)

    def _arguments(self) -> list[str]:
        return [repr(self.site), _source_text(self.source)]


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class Ablate(Edit):
    value: float | str = 0.0
    reference: Sequence[Trace] = ()

    def write(self, old: Tensor, values: Tensor | None) -> Tensor:
        assert values is not None
        return values

    def _values(self, target: Target) -> Tensor:
        if isinstance(self.value, str):
            return _mean(self.value, self.reference, target)
        if self.reference:
            raise EditError("a reference is only for value='mean' or 'mean_by_pos'")
        return torch.full((), float(self.value), device=target.model.device).expand(target.shape())

    def __repr__(self) -> str:
        rest = [] if self.value == 0.0 else [f"value={self.value!r}"]
        rest += [f"reference={_traces_text(self.reference)}"] if self.reference else []
        return super().__repr__()[:-1] + "".join(f", {part}" for part in rest) + ")"


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class Add(Edit):
    vector: Tensor
    scale: float = 1.0

    def write(self, old: Tensor, values: Tensor | None) -> Tensor:
        assert values is not None
        return old + values

    def _values(self, target: Target) -> Tensor:
        if not isinstance(self.vector, Tensor):
            raise EditError(f"the vector is a tensor; given {type(self.vector).__name__}")
        return target.fit(self.vector, "the vector") * self.scale

    def _arguments(self) -> list[str]:
        return [repr(self.site), _source_text(self.vector)]

    def __repr__(self) -> str:
        return super().__repr__() if self.scale == 1.0 else super().__repr__()[:-1] + f", scale={self.scale!r})"


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class Scale(Edit):
    factor: float

    def write(self, old: Tensor, values: Tensor | None) -> Tensor:
        return old * self.factor

    def _values(self, target: Target) -> None:
        if not math.isfinite(self.factor):
            raise EditError(f"factor is a finite number; given {self.factor!r}")

    def _arguments(self) -> list[str]:
        return [repr(self.site), repr(self.factor)]


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class Knockout(Edit):
    site: str = "scores_capped"

    def write(self, old: Tensor, values: Tensor | None) -> Tensor:
        return torch.full_like(old, -torch.inf)

    def _values(self, target: Target) -> None:
        _, q_pos, k_pos = target.places
        assert target.address.layer is not None
        window = target.model.config.window_of(target.address.layer)
        everything = torch.arange(len(target.ids), device=q_pos.device)
        left = visible(q_pos, everything, window).clone()
        left[:, k_pos] = False
        blind = q_pos[~left.any(1)]
        if len(blind):
            raise EditError(f"{self!r} would leave position {int(blind[0])} nothing to attend to: leave it one key at least")

    def _arguments(self) -> list[str]:
        return []


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class Custom(Edit):
    fn: Callable[[Tensor], Tensor]

    def write(self, old: Tensor, values: Tensor | None) -> Tensor:
        new = self.fn(old)
        if not isinstance(new, Tensor) or new.shape != old.shape:
            given = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
            raise EditError(
                f"the function of {self!r} returned {given}; it must return a tensor of shape {tuple(old.shape)}"
            )
        return new

    def _arguments(self) -> list[str]:
        return [repr(self.site), getattr(self.fn, "__name__", repr(self.fn))]

    def __repr__(self) -> str:
        return super().__repr__().replace("gs.custom(", "gs.edit(", 1)


def listed_edits(edits: Any) -> tuple[Edit, ...]:
    """Edits as they were given to a function, checked to be a list of edits. EditError for anything else."""
    if isinstance(edits, Edit):
        raise EditError(f"edits is a list of edits; given one: write edits=[{edits!r}]")
    if not isinstance(edits, Iterable):
        raise EditError(f"edits is a list of edits; given {edits!r}")
    listed = tuple(edits)  # every run of the pass goes through them, so an iterator would not do
    if wrong := [edit for edit in listed if not isinstance(edit, Edit)]:
        raise EditError(f"edits is a list of edits, made by gs.patch, gs.ablate, gs.add, ...; it holds {wrong[0]!r}")
    return listed


# A tensor of at most so many numbers is printed whole, and references of at most so many tokens together.
SHOWN_NUMBERS, SHOWN_TOKENS = 16, 256

# What is written here reaches other rows through the attention of the same layer.
_SPREADING = frozenset(("embed", "resid_pre", "attn_in", "k", "k_rot", "v"))


@dataclass(frozen=True)
class BoundEdit:
    """An edit whose places are numbers and whose source is checked: ready to be written to its run.

    places: the selected numbers along the first axes of the site. values: what to write, or None.
    """

    edit: Edit
    address: Address
    places: tuple[Tensor, ...]
    values: Tensor | None

    @property
    def positions(self) -> Tensor:
        """The positions whose rows the edit changes at its layer: those named; query positions at edge sites."""
        return self.places[1 if self.address.site.is_edges else 0]

    @cached_property
    def spreads(self) -> bool:
        """Whether the edit can change, within its layer, other rows than those it names, or needs them to be there."""
        if not self.address.site.is_edges:
            return self.address.site.name in _SPREADING
        if isinstance(self.edit, Custom):
            return True  # its function sees all the keys that it names
        if self.values is None or self.address.site.name != "pattern":
            return False
        _, q_pos, k_pos = self.places
        return bool(self.values[:, k_pos[None] > q_pos[:, None]].any())  # a weight on a key ahead of its query

    @cached_property
    def reach(self) -> tuple[int, int]:
        """The first position whose row the edit changes at its layer, and the one after the last."""
        return int(self.positions.min()), int(self.positions.max()) + 1

    def write_to(self, value: Tensor, first: int = 0) -> None:
        """Write the edit to a run's value of the site, in place. The value begins at position `first`."""
        places, values = list(self.places), self.values
        firsts = (0, first, 0) if self.address.site.is_edges else (first, 0)
        for axis, offset in enumerate(firsts[: len(places)]):
            places[axis] = places[axis] - offset
            there = (places[axis] >= 0) & (places[axis] < value.shape[axis])
            if not bool(there.all()):
                places[axis] = places[axis][there]
                values = None if values is None else values.movedim(axis, 0)[there].movedim(0, axis)
        index = mesh(places)
        value[index] = self.edit.write(value[index], values).to(value.dtype)


def mesh(places: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Indices that select the outer product of the places."""
    n = len(places)
    return tuple(p.view(*(-1 if i == j else 1 for j in range(n))) for i, p in enumerate(places))


def _of_trace(source: Trace, target: Target) -> Tensor:
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


def _mean(how: str, reference: Sequence[Trace], target: Target) -> Tensor:
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


def _source_text(source: Trace | Tensor) -> str:
    if isinstance(source, Tensor):
        if source.numel() > SHOWN_NUMBERS:
            return f"<tensor {list(source.shape)}>"
        as_read = source.dtype in (torch.float32, torch.int64, torch.bool)
        return f"torch.tensor({source.tolist()!r}{'' if as_read else f', dtype={source.dtype}'})"
    if not hasattr(source, "ids"):
        return f"<{type(source).__name__}>"
    edits = f", edits={list(source.edits)!r}" if source.edits else ""
    return f"gs.trace({source.ids.tolist()}, model=model{edits})"


def _traces_text(traces: Sequence[Trace]) -> str:
    if sum(len(trace) for trace in traces) > SHOWN_TOKENS:
        return f"<{len(traces)} traces>"
    return f"[{', '.join(map(_source_text, traces))}]"


def _same(a: Any, b: Any) -> bool:
    """Whether two arguments of edits are equal: tensors by their numbers, traces by model, tokens and edits."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.device == b.device and bool(torch.equal(a, b))
    if hasattr(a, "ids") and hasattr(b, "ids"):
        return bool(a.model is b.model and a.ids.tolist() == b.ids.tolist() and a.edits == b.edits)
    a, b = plain(a), plain(b)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


__all__ = ["Ablate", "Add", "BoundEdit", "Custom", "Edit", "EditError", "Knockout", "Patch", "Scale", "SiteError"]
