"""FitSettings: which positions of how long texts a Jacobian lens is fitted on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FitSettings:
    """How a Jacobian lens is fitted.

    Attributes:
        max_length: Of a longer text, the first so many tokens are used.
        skip_first: The first so many positions of a text, `<bos>` among them, are left out, and so is the last one.
    """

    max_length: int
    skip_first: int

    def used(self, n_pos: int) -> slice:
        """The positions of a text of so many that the mean is over; empty for a text that is too short."""
        return slice(self.skip_first, max(self.skip_first, n_pos - 1))
