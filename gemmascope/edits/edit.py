"""Edits: changes to a run, as data. The repr of each is the call that makes it.

An edit names a site, a layer, places (positions and heads, or edges) and what to write there. Binding it to a run (a model
and token ids) looks up its places and checks its source, before anything runs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from gemmascope.arguments import as_list, shown
from gemmascope.edits.binding import bind, copy_argument, equal_arguments
from gemmascope.edits.bound import BoundEdit, DeferredValues, Target
from gemmascope.edits.call_text import name_of, plain, source_text, traces_text
from gemmascope.edits.pickles import require_importable
from gemmascope.edits.places import Head, Pos
from gemmascope.edits.sources import is_trace, mean_of, not_a_trace, values_from_trace
from gemmascope.errors import EditError, SiteError
from gemmascope.legible import legibly
from gemmascope.model.maths import visible
from gemmascope.model.model import Model
from gemmascope.values import is_array, real_tensor

if TYPE_CHECKING:
    from gemmascope.run.trace import Trace


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
        for name in ("pos", "head", "q_pos", "k_pos"):
            if isinstance(place := getattr(self, name), Iterator):  # read once, while an edit may be bound many times
                object.__setattr__(self, name, as_list(place, name, error=SiteError))

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
    def extra_hash(self) -> object:
        """Extra identity for the sweep's hash, such as a function; None if the call and its values say it all."""
        return None

    def bind(self, model: Model, ids: Tensor) -> BoundEdit:
        """This edit on a run of these ids, with the present values of its tensors and lists.

        Raises:
            SiteError: A site, layer, position or head does not exist.
            EditError: The source does not fit.
        """
        return self._snapshot()._bind(model, ids)

    def _snapshot(self) -> Edit:
        """This edit with copies of its tensors and lists, which the user may change later."""
        arguments = {f.name: getattr(self, f.name) for f in fields(self)}
        copies = {name: new for name, value in arguments.items() if (new := copy_argument(value)) is not value}
        snapshot = copy(self)
        for name, new in copies.items():
            object.__setattr__(snapshot, name, new)
        return snapshot if copies else self

    def _bind(self, model: Model, ids: Tensor) -> BoundEdit:
        return bind(self, model, ids)

    @abstractmethod
    def write(self, old: Tensor, values: Tensor | None) -> Tensor:
        """The new values of the selected places. old, values: [the selected places], in the axes of the site."""

    def values_at(self, target: Target) -> Tensor | None:
        """The values to write, [the selected places]; None if they are computed from the old ones."""
        return None

    def _arguments(self) -> list[str]:
        """The positional arguments of the call that makes this edit, as Python code."""
        return [repr(self.site)]

    @legibly
    def __repr__(self) -> str:
        name = type(self).__name__.lower()
        places = [
            f"{k}={plain(getattr(self, k))!r}"
            for k in ("layer", "pos", "head", "q_pos", "k_pos")
            if getattr(self, k) is not None
        ]
        return f"gs.{name}({', '.join([*self._arguments(), *places])})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and all(
            equal_arguments(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)
        )

    def __hash__(self) -> int:
        return hash((type(self), self.site))


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class Patch(Edit):
    source: Trace | Tensor | DeferredValues
    overwrites = True
    computes = False

    def write(self, old: Tensor, values: Tensor | None) -> Tensor:
        assert values is not None
        return values

    def values_at(self, target: Target) -> Tensor:
        if is_array(self.source):
            return target.fit(self.source, "the source tensor")
        if isinstance(self.source, DeferredValues) or not is_trace(self.source):
            raise EditError(f"a source is a trace or a tensor; given {not_a_trace(self.source)}")
        return values_from_trace(self.source, target)

    def _arguments(self) -> list[str]:
        return [repr(self.site), source_text(self.source)]


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class Ablate(Edit):
    value: float | str = 0.0
    reference: Sequence[Trace] = ()
    overwrites = True
    computes = False

    @cached_property
    def _means(self) -> dict[tuple[str, int | None], Tensor]:
        """The means computed so far, shared by all runs that this edit is bound to."""
        return {}

    def _snapshot(self) -> Edit:
        self._means  # noqa: B018 (created before copying, so that the copies share it)
        return super()._snapshot()

    def write(self, old: Tensor, values: Tensor | None) -> Tensor:
        assert values is not None
        return values

    def values_at(self, target: Target) -> Tensor:
        if isinstance(self.value, str):
            return mean_of(self.value, self.reference, target, self._means)
        if self.reference:
            raise EditError("a reference is only for value='mean' or 'mean_by_pos'")
        value = torch.tensor(float(self.value), dtype=torch.float64).to(target.model.device, torch.float32)
        return value.expand(target.shape())

    @legibly
    def __repr__(self) -> str:
        rest = [] if self.value == 0.0 else [f"value={self.value!r}"]
        rest += [f"reference={traces_text(self.reference)}"] if self.reference else []
        return super().__repr__()[:-1] + "".join(f", {part}" for part in rest) + ")"


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class Add(Edit):
    vector: Tensor
    scale: float = 1.0

    def write(self, old: Tensor, values: Tensor | None) -> Tensor:
        assert values is not None
        return old + values

    def values_at(self, target: Target) -> Tensor:
        return target.fit(self.vector, "the vector") * self.scale

    def _arguments(self) -> list[str]:
        return [repr(self.site), source_text(self.vector)]

    @legibly
    def __repr__(self) -> str:
        return super().__repr__() if self.scale == 1.0 else super().__repr__()[:-1] + f", scale={self.scale!r})"


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class Scale(Edit):
    factor: float

    def write(self, old: Tensor, values: Tensor | None) -> Tensor:
        return old * self.factor

    def values_at(self, target: Target) -> None:
        if not math.isfinite(self.factor):
            raise EditError(f"factor is a finite number; given {self.factor!r}")

    def _arguments(self) -> list[str]:
        return [repr(self.site), repr(self.factor)]


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class Knockout(Edit):
    site: str = "scores_capped"
    overwrites = True
    computes = False

    def write(self, old: Tensor, values: Tensor | None) -> Tensor:
        return torch.full_like(old, -torch.inf)

    def values_at(self, target: Target) -> None:
        _, q_pos, k_pos = target.places
        assert target.address.layer is not None
        window = target.model.config.window_of(target.address.layer)
        all_keys = torch.arange(len(target.ids), device=q_pos.device)
        seen = visible(q_pos, all_keys, window).clone()
        seen[:, k_pos] = False
        blind = q_pos[~seen.any(1)]
        if len(blind):
            raise EditError(f"{self!r} would leave position {int(blind[0])} nothing to attend to: leave it one key at least")

    def _arguments(self) -> list[str]:
        return []


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class Custom(Edit):
    fn: Callable[[Tensor], Tensor]
    needs_all = True
    records = True

    @property
    def extra_hash(self) -> object:
        return self.fn

    def __copy__(self) -> Custom:
        copied = object.__new__(type(self))
        vars(copied).update(vars(self))
        return copied

    def __deepcopy__(self, memo: dict[int, object]) -> Custom:
        copied = object.__new__(type(self))
        vars(copied).update(deepcopy(vars(self), memo))
        return copied

    def __getstate__(self) -> dict[str, object]:
        """For pickles. Raises EditError for a function that pickle cannot import elsewhere, such as a lambda."""
        require_importable(self.fn, self)
        return dict(vars(self))

    def write(self, old: Tensor, values: Tensor | None) -> Tensor:
        new = self.fn(old)
        if isinstance(new, Tensor):
            new = real_tensor(new, f"what the function of {self!r} returned", EditError)
        if not isinstance(new, Tensor) or new.shape != old.shape:
            returned = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
            inplace = ", also where it writes in place" if new is None else ""
            raise EditError(
                f"the function of {self!r} returned {returned}; it must return a tensor of shape {tuple(old.shape)}{inplace}"
            )
        return new if torch.is_grad_enabled() else new.detach()

    def _arguments(self) -> list[str]:
        return [repr(self.site), name_of(self.fn)]

    @legibly
    def __repr__(self) -> str:
        return super().__repr__().replace("gs.custom(", "gs.edit(", 1)


def listed_edits(edits: object) -> tuple[Edit, ...]:
    """The user's edits as a tuple. EditError if they are not a list of edits."""
    if isinstance(edits, Edit):
        raise EditError(f"edits is a list of edits; given one: write edits=[{edits!r}]")
    if isinstance(edits, (str, bytes, Mapping, type)) or is_array(edits) or not isinstance(edits, Iterable):
        raise EditError(f"edits is a list of edits; given {shown(edits)}")
    listed = as_list(edits, "edits", error=EditError)
    if wrong := [edit for edit in listed if not isinstance(edit, Edit)]:
        raise EditError(f"edits is a list of edits, made by gs.patch, gs.ablate, gs.add, ...; it holds {shown(wrong[0])}")
    return tuple(edit for edit in listed if isinstance(edit, Edit))
