"""ExampleSettings: what top examples were asked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gemmascope.examples.statistics import BINS
from gemmascope.values import Array


@dataclass(frozen=True)
class ExampleSettings:
    """What is kept of each unit.

    Attributes:
        k: How many of the strongest.
        sample: How many drawn at random.
        around: How many tokens before and after each are shown.
        one_per_text: Whether a text counts once for each unit.
        co_active: How many features are named that are active together.
        seed: The seed of the sample.
    """

    k: int
    sample: int
    around: tuple[int, int]
    one_per_text: bool
    co_active: int
    seed: int

    @property
    def offsets(self) -> Array:
        """The positions around an entry that are shown, 0 being its own."""
        return np.arange(-self.around[0], self.around[1] + 1)

    def bytes_of_unit(self, signed: bool) -> int:
        """How much memory the examples and statistics of one unit take."""
        entries = self.k * (2 if signed else 1) + self.sample
        return entries * (20 + 8 * len(self.offsets)) + 8 * BINS + 48
