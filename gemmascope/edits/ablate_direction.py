"""The edit that removes a direction: x - (x . u) u, with the unit vector u.

References: Bolukbasi et al. (arXiv 1607.06520); Arditi et al. (arXiv 2406.11717).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from gemmascope.edits.call_text import source_text
from gemmascope.edits.edit import Edit
from gemmascope.edits.target import Target
from gemmascope.errors import EditError
from gemmascope.legible import prints_legibly
from gemmascope.values import in_float64, is_array, real_tensor


class HasVector(Protocol):
    """An object that has a direction as its vector, such as what gs.direction returns."""

    @property
    def vector(self) -> Tensor: ...


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class AblateDirection(Edit):
    vector: Tensor

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

    @prints_legibly
    def __repr__(self) -> str:
        return super().__repr__().replace("gs.ablatedirection(", "gs.ablate_direction(", 1)
