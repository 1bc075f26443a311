"""The kinds of edits: patch, ablate, ablate a direction, add, scale, knockout, and an edit by a user's function."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from gemmascope.edits.arguments import require_importable
from gemmascope.edits.call_text import name_of, source_text, traces_text
from gemmascope.edits.edit import Edit
from gemmascope.edits.sources import ReadableRun, is_trace, mean_of, not_a_trace, values_from_trace
from gemmascope.edits.target import DeferredValues, Target
from gemmascope.errors import EditError
from gemmascope.legible import prints_legibly
from gemmascope.model.maths import visible
from gemmascope.sites import SiteKey
from gemmascope.values import in_float64, is_array, real_tensor


class Overwrite(Edit):
    """An edit that writes values which do not depend on the old ones."""

    overwrites = True
    computes = False

    def write(self, old: Tensor, values: Tensor | None) -> Tensor:
        assert values is not None
        return values


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class Patch(Overwrite):
    source: ReadableRun | Tensor | DeferredValues

    def values_at(self, target: Target) -> Tensor:
        if is_array(self.source):
            return target.fit(self.source, "the source tensor")
        if isinstance(self.source, DeferredValues) or not is_trace(self.source):
            raise EditError(f"a source is a trace or a tensor; given {not_a_trace(self.source)}")
        return values_from_trace(self.source, target)

    def _arguments(self) -> list[str]:
        return [repr(self.site), source_text(self.source)]


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class Ablate(Overwrite):
    value: float | str = 0.0
    reference: Sequence[ReadableRun] = ()

    @cached_property
    def _means(self) -> dict[SiteKey, Tensor]:
        """The means computed so far, shared by all runs that this edit is bound to."""
        return {}

    def snapshot(self) -> Edit:
        self._means  # noqa: B018 (created before copying, so that the copies share it)
        return super().snapshot()

    def values_at(self, target: Target) -> Tensor:
        if isinstance(self.value, str):
            return mean_of(self.value, self.reference, target, self._means)
        if self.reference:
            raise EditError("a reference is only for value='mean' or 'mean_by_pos'")
        value = torch.tensor(float(self.value), dtype=torch.float64).to(target.model.device, torch.float32)
        return value.expand(target.shape())

    @prints_legibly
    def __repr__(self) -> str:
        extra = [] if self.value == 0.0 else [f"value={self.value!r}"]
        extra += [f"reference={traces_text(self.reference)}"] if self.reference else []
        return super().__repr__()[:-1] + "".join(f", {part}" for part in extra) + ")"


class HasVector(Protocol):
    """An object that has a direction as its vector, such as what gs.direction returns."""

    @property
    def vector(self) -> Tensor: ...


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class AblateDirection(Edit):
    """Removes a direction: x - (x . u) u, with the unit vector u.

    References: Bolukbasi et al. (arXiv 1607.06520); Arditi et al. (arXiv 2406.11717).
    """

    vector: Tensor
    function = "ablate_direction"

    def write(self, old: Tensor, values: Tensor | None) -> Tensor:
        assert values is not None
        # Normalised here, in float64, so that a vector that was saved and opened again gives the same bits.
        x, along = in_float64(old), in_float64(values)
        along = along / along.abs().amax(-1, keepdim=True)  # keeps its square within the range of floats
        share = (x * along).sum(-1, keepdim=True) / along.square().sum(-1, keepdim=True)
        return x - share * along

    def values_at(self, target: Target) -> Tensor:
        site, vector = target.address.site, self.vector
        if site.is_edges:
            raise EditError(f"'{site.name}' lives on attention edges, where there is no direction to remove")
        if not is_array(vector):
            kind = type(vector).__name__
            raise EditError(f"a direction is a tensor of real numbers, or what gs.direction returns; given {kind}")
        vector = real_tensor(vector, "the direction", EditError).detach()
        width, axis = target.shape()[-1], site.axes[-1]
        if tuple(vector.shape) != (width,):
            raise EditError(
                f"the direction has shape {tuple(vector.shape)}; '{target.address}' takes one of {width} numbers ({axis})"
            )
        if not bool(vector.any()):
            raise EditError("the direction is a vector of zeros, which points nowhere")
        return target.fit(vector, "the direction")

    def _arguments(self) -> list[str]:
        return [repr(self.site), source_text(self.vector)]


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

    @prints_legibly
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
class Knockout(Overwrite):
    site: str = "scores_capped"

    def write(self, old: Tensor, values: Tensor | None) -> Tensor:
        return torch.full_like(old, -torch.inf)

    def values_at(self, target: Target) -> None:
        _, q_pos, k_pos = target.places
        assert target.address.layer is not None
        window = target.model.config.window_of(target.address.layer)
        all_keys = torch.arange(len(target.ids), device=q_pos.device)
        attended = visible(q_pos, all_keys, window).clone()
        attended[:, k_pos] = False
        blind = q_pos[~attended.any(1)]
        if len(blind):
            raise EditError(f"{self!r} would leave position {int(blind[0])} nothing to attend to: leave it one key at least")

    def _arguments(self) -> list[str]:
        return []


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class Custom(Edit):
    fn: Callable[[Tensor], Tensor | None]
    function = "edit"
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
        returned = self.fn(old)
        new = old if returned is None else returned  # which the function may have written to in place
        if isinstance(new, Tensor):
            new = real_tensor(new, f"what the function of {self!r} returned", EditError)
        if not isinstance(new, Tensor) or new.shape != old.shape:
            given = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
            raise EditError(
                f"the function of {self!r} returned {given}; it must return a tensor of shape {tuple(old.shape)}"
            )
        new = new.to(old.device)  # a function may have read the values on the CPU
        return new if torch.is_grad_enabled() else new.detach()

    def _arguments(self) -> list[str]:
        return [repr(self.site), name_of(self.fn)]
