"""Rows that are sums of a few of some known directions, and how well a dictionary finds these."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize


@dataclass(frozen=True)
class KnownFeatures:
    """Directions [feature, d] of length 1, and how often each is active, [feature]."""

    directions: Tensor
    density: Tensor

    @classmethod
    def random(cls, n: int, d: int, n_active: float, seed: int) -> KnownFeatures:
        """Random directions; the first is active most often, the last a tenth as often. n_active: in a row, on average."""
        rng = torch.Generator().manual_seed(seed)
        density = torch.logspace(0, -1, n)
        return cls(normalize(torch.randn(n, d, generator=rng), dim=1), density * n_active / density.sum())

    def rows(self, n: int, seed: int) -> Tensor:
        """Rows [n, d]: active features with values from 0.5 to 1.5, and a little noise."""
        rng = torch.Generator().manual_seed(seed)
        shape = n, len(self.directions)
        values = (torch.rand(shape, generator=rng) < self.density) * (0.5 + torch.rand(shape, generator=rng))
        return values @ self.directions + 0.01 * torch.randn(n, self.directions.shape[1], generator=rng)

    def recovered(self, W_dec: Tensor) -> float:
        """The mean over the known features of the largest cosine with a row of a decoder [feature, d]."""
        return float((self.directions @ normalize(W_dec.float(), dim=1).T).amax(1).mean())
