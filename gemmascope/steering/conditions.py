"""Conditions of edits: where a dictionary's feature is on, and where a probe exceeds a value."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from gemmascope.arguments import finite_number, short_repr
from gemmascope.edits.arguments import argument_digest
from gemmascope.edits.target import Target
from gemmascope.errors import EditError
from gemmascope.model.digests import join_digests
from gemmascope.steering.direction import Direction
from gemmascope.values import in_float64, is_array, moved, real_tensor


@dataclass(frozen=True, eq=False)
class ProbeAbove:
    """Where rows . vector + bias exceeds a value. Made by gs.probe_above."""

    vector: Tensor = field(repr=False)
    bias: float
    above: float

    def __call__(self, rows: Tensor) -> Tensor:
        return in_float64(rows) @ moved(in_float64(self.vector), in_float64(rows).device) + self.bias > self.above

    def digest(self) -> str:
        return join_digests([argument_digest(self.vector), repr(self.bias), repr(self.above)])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ProbeAbove) and self.digest() == other.digest()

    def __hash__(self) -> int:
        return hash((self.bias, self.above))

    def require_fit(self, target: Target) -> None:
        """EditError for rows of another width."""
        shape = target.shape()
        if len(shape) != 2 or shape[-1] != len(self.vector):
            raise EditError(
                f"the probe has {len(self.vector)} weights; '{target.address}' has rows {shape[1:]}: a condition is for "
                "sites with one row a position"
            )


def probe_above(probe: Direction | Tensor, above: float = 0.0) -> ProbeAbove:
    """The condition that a linear probe exceeds a value, for an edit's when=.

    Args:
        probe: What gs.direction returns, whose probe gives log-odds; or a vector [d_model], whose product with a row counts.
        above: The value to exceed. Default 0.0: of log-odds, where the positive class is the likelier one.

    Returns:
        The condition, for when= of gs.add, gs.patch, gs.ablate, gs.ablate_direction and gs.scale at the site that it reads.

    Raises:
        EditError: The probe is neither, or the value is no finite number.

    Examples:
        >>> t = gs.trace("When Mary and John went to the store")
        >>> rows = t["resid_post", 2]
        >>> v = rows[2]  # " Mary"
        >>> level = 0.5 * float(v @ v)
        >>> moved = gs.trace(t.ids, edits=[gs.add("resid_post", v, layer=2, when=gs.probe_above(v, level))])
        >>> bool(((moved["resid_post", 2] != rows).any(1) == (rows @ v > level)).all())
        True

    References:
        Lee et al., "Programming refusal with conditional activation steering" (arXiv 2409.05907).
    """
    value = finite_number(above, "above", error=EditError)
    if isinstance(probe, Direction):
        return ProbeAbove(probe.probe, float(probe.bias), value)
    if not is_array(probe):
        raise EditError(f"a probe is what gs.direction returns, or a vector; given {short_repr(probe)}")
    vector = real_tensor(probe, "the probe", EditError).detach().clone()
    if vector.dim() != 1 or not bool(torch.isfinite(vector).all()):
        raise EditError(f"a probe is a vector of finite numbers, [d_model]; given shape {tuple(vector.shape)}")
    return ProbeAbove(vector, 0.0, value)
