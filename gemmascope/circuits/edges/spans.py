"""Which positions an edge covers: all together, each by itself, or spans with names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from gemmascope.arguments import short_repr
from gemmascope.edits.places import Pos, find_positions
from gemmascope.errors import SweepError
from gemmascope.model.model import Model
from gemmascope.values import Array

# "each", positions of which each stands by itself, or names with positions.
Positions = Pos | Mapping[str, Pos]

EACH = "each"


@dataclass(frozen=True)
class Spans:
    """The spans of one prompt. axis: their axis in a result; "" where one span covers all. names: along that axis."""

    axis: str
    names: tuple[str | int, ...]
    positions: tuple[tuple[int, ...], ...]

    def members(self, n_pos: int) -> Array:
        """Which positions each span holds, bool [span, pos]."""
        held = np.zeros((len(self.positions), n_pos), bool)
        for span, positions in zip(held, self.positions, strict=True):
            span[list(positions)] = True
        return held


def spans_of(positions: object, model: Model, ids: Tensor) -> Spans:
    """The spans that a user asks for in a prompt. SweepError for none, SiteError for a position that is not there."""
    if positions is None:
        return Spans("", ("all",), (tuple(range(len(ids))),))
    if isinstance(positions, Mapping):
        return _named(positions, model, ids)
    numbers = find_positions(None if isinstance(positions, str) and positions == EACH else positions, model, ids)
    return Spans("pos", tuple(numbers), tuple((number,) for number in numbers))


def _named(positions: Mapping[object, object], model: Model, ids: Tensor) -> Spans:
    if not positions:
        raise SweepError("positions is an empty mapping: name a span at least, {'name': positions}")
    if wrong := [name for name in positions if not isinstance(name, str) or not name]:
        raise SweepError(f"the names of spans are texts; given {short_repr(wrong[0])}")
    found = {str(name): tuple(find_positions(at, model, ids)) for name, at in positions.items()}
    taken: dict[int, str] = {}
    for name, numbers in found.items():
        for number in numbers:
            if number in taken:
                raise SweepError(f"position {number} is in two spans, {taken[number]!r} and {name!r}: name it in one")
            taken[number] = name
    return Spans("span", tuple(found), tuple(found.values()))


def require_same(spans: Sequence[Spans]) -> None:
    """SweepError if positions, not spans with names, differ between the prompts of several pairs."""
    if spans[0].axis == "pos" and any(one != spans[0] for one in spans):
        raise SweepError(
            "the pairs have other positions (their lengths differ), so that no position is the same in all: give spans with "
            "names, positions={'subject': ..., 'end': -1}, or leave positions out"
        )
