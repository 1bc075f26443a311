"""Edits with a condition: made only at the positions whose rows satisfy it, in a prompt and in generation alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from gemmascope.arguments import short_repr
from gemmascope.edits.arguments import require_importable
from gemmascope.edits.call_text import name_of
from gemmascope.edits.edit import PLACES, Edit
from gemmascope.edits.target import Target
from gemmascope.errors import EditError
from gemmascope.legible import prints_legibly

# rows of the site, [pos, ...] -> which of them to edit, bool [pos].
Condition = Callable[[Tensor], Tensor]


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class Conditional(Edit):
    """An edit that is made where a condition holds of the rows that stand at its site before it."""

    inner: Edit
    when: Condition
    records = True

    @property
    def extra_hash(self) -> object:
        return (self.inner.extra_hash, self.when)

    def snapshot(self) -> Edit:
        return replace(self, inner=self.inner.snapshot())

    def write(self, old: Tensor, values: Tensor | None) -> Tensor:
        holds = self.when(old)
        if not isinstance(holds, Tensor) or holds.dtype != torch.bool or tuple(holds.shape) != (len(old),):
            given = f"{holds.dtype} {tuple(holds.shape)}" if isinstance(holds, Tensor) else type(holds).__name__
            raise EditError(
                f"the condition of {self!r} returned {given}; for rows {tuple(old.shape)} it must return a bool for each "
                f"position, shape ({len(old)},)"
            )
        new = self.inner.write(old, values).to(old)
        return torch.where(holds.to(old.device).view(-1, *[1] * (old.dim() - 1)), new, old)

    def values_at(self, target: Target) -> Tensor | None:
        if target.address.site.is_edges:
            raise EditError(f"'{target.address.site.name}' lives on attention edges: when= is for sites with positions")
        if callable(check := getattr(self.when, "require_fit", None)):
            check(target)
        return self.inner.values_at(target)

    def __getstate__(self) -> dict[str, object]:
        """For pickles. Raises EditError for a condition that pickle cannot import elsewhere, such as a lambda."""
        require_importable(self.when, self)
        return dict(vars(self))

    @prints_legibly
    def __repr__(self) -> str:
        named = name_of(self.when) if hasattr(self.when, "__name__") else repr(self.when)
        return f"{self.inner!r}"[:-1] + f", when={named})"


def under_condition(edit: Edit, when: object) -> Edit:
    """An edit with a condition; itself for none. EditError for what is no condition."""
    if when is None:
        return edit
    if not callable(when):
        raise EditError(
            f"when is a condition, gs.feature_on(...) or gs.probe_above(...), or a function of the rows; given "
            f"{short_repr(when)}"
        )
    places = {f.name: getattr(edit, f.name) for f in fields(Edit)}
    assert set(places) == {"site", "layer", *PLACES}
    return Conditional(inner=edit, when=when, **places)
