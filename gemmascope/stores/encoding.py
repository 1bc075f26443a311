"""How rows are stored: float32, rounded to bfloat16, or as int8 with a scale for each row."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gemmascope.stores.spec import DTYPES


class Encoded(NamedTuple):
    """Rows as they are stored. values: [row, width]. scale: [row], float32, with int8; else None."""

    values: Tensor
    scale: Tensor | None = None

    def rows(self, at: Tensor | slice) -> Encoded:
        """Some of the rows."""
        return Encoded(self.values[at], None if self.scale is None else self.scale[at])

    def cpu(self) -> Encoded:
        return Encoded(self.values.cpu(), None if self.scale is None else self.scale.cpu())


def encode(values: Tensor, dtype: str) -> Encoded:
    """Rows [row, ...] as they are stored, flat. int8: each row divided by a 127th of its largest size, and rounded."""
    flat = values.reshape(len(values), -1)
    if dtype != "int8":
        return Encoded(flat.to(DTYPES[dtype]).contiguous())
    flat = flat.float()
    scale = flat.abs().amax(1) / 127
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return Encoded((flat / scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale)


def decode(encoded: Encoded) -> Tensor:
    """The rows in float32, [row, width]. Of float32 the given values themselves."""
    values = encoded.values.float()
    return values if encoded.scale is None else values.mul_(encoded.scale[:, None])
