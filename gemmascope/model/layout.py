"""The layout of a pass: which run and position each row is, and which keys it may see.

A pass carries the rows of many runs, flat, with no padding. Runs that start at the same position and have the same
length stand side by side in a block, so that attention over them is one batched product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby

import torch
from jaxtyping import Int
from torch import Tensor

from gemmascope.model.maths import rope_table


@dataclass(frozen=True)
class Block:
    """`count` runs of `length` rows each, side by side from row `first` of the pass, each from position 0.

    run: the number of the first of them in the pass.
    """

    first: int
    count: int
    length: int
    run: int = 0

    @property
    def rows(self) -> slice:
        return slice(self.first, self.first + self.count * self.length)


@dataclass(frozen=True)
class Layout:
    """The blocks of a pass, in the order of their rows, and the position of every row."""

    blocks: tuple[Block, ...]
    positions: Int[Tensor, " row"]
    _ropes: dict[tuple[int, float], tuple[Tensor, Tensor]] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of_lengths(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> Layout:
        """The layout of whole prompts, in the order given. Neighbours of equal length share a block."""
        blocks, first, run = [], 0, 0
        for length, same in groupby(lengths):
            blocks.append(Block(first, len(list(same)), length, run))
            first, run = blocks[-1].rows.stop, run + blocks[-1].count
        positions = [torch.arange(b.length, device=device).repeat(b.count) for b in blocks]
        return cls(tuple(blocks), torch.cat(positions))

    @property
    def n_rows(self) -> int:
        return len(self.positions)

    @cached_property
    def spans(self) -> tuple[slice, ...]:
        """The rows of each run."""
        return tuple(
            slice(b.first + i * b.length, b.first + (i + 1) * b.length) for b in self.blocks for i in range(b.count)
        )

    def rope(self, d_head: int, theta: float) -> tuple[Tensor, Tensor]:
        """Cosines and sines of every row's angles, made once a pass."""
        if (d_head, theta) not in self._ropes:
            self._ropes[d_head, theta] = rope_table(self.positions, d_head, theta)
        return self._ropes[d_head, theta]


# For a computation outside any pass, such as reading logits from rows of a stream.
NO_ROWS = Layout((), torch.zeros(0, dtype=torch.long))
