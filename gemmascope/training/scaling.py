"""How rows are scaled for training, and how the scales go into the weights afterwards.

As in Gemma Scope: one factor for all rows, which gives them a mean squared length of 1 (arXiv 2408.05147). With `centre` the
mean is taken from them first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gemmascope.errors import DictionaryError


@dataclass(frozen=True)
class Scaling:
    """The mean that is taken from rows, [d], and the root mean squared length of what is left, []."""

    mean: Tensor
    size: Tensor

    @classmethod
    def of(cls, rows: Float[Tensor, "row d"], centre: bool) -> Scaling:
        """The scaling of a sample. DictionaryError for rows that are all alike, or not finite."""
        exact = rows.double()
        mean = exact.mean(0) if centre else torch.zeros_like(exact[0])
        size = (exact - mean).square().sum(1).mean().sqrt()
        if not bool(torch.isfinite(size)) or not float(size) > 0:
            why = "NaN or infinity" if not bool(torch.isfinite(size)) else "zeros alone, or one row again and again"
            raise DictionaryError(f"the rows hold {why}: there is nothing to learn from them")
        return cls(mean.float(), size.float())

    def apply(self, rows: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
        return (rows - self.mean) / self.size

    def to(self, device: torch.device) -> Scaling:
        return Scaling(self.mean.to(device), self.size.to(device))


def folded(weights: dict[str, Tensor], threshold: Tensor, read: Scaling, written: Scaling) -> dict[str, Tensor]:
    """The weights for rows as they are: decoder rows keep their length of 1, and activations are in the rows' units.

    Args:
        weights: For scaled rows.
        threshold: What scaled activations must exceed, [feature].
        read: How the input was scaled.
        written: How the output was scaled.
    """
    w = {name: weight.detach().double() for name, weight in weights.items()}
    mean, target = read.mean.double(), written.mean.double()
    ratio = written.size.double() / read.size.double()
    W_enc = w["W_enc"] * ratio
    arrays = {
        "W_enc": W_enc,
        "W_dec": w["W_dec"],
        "b_enc": w["b_enc"] * written.size.double() - mean @ W_enc,
        "b_dec": w["b_dec"] * written.size.double() + target,
        "threshold": threshold.double() * written.size.double(),
    }
    if "W_skip" in w:
        arrays["W_skip"] = w["W_skip"] * ratio
        arrays["b_dec"] = arrays["b_dec"] - mean @ arrays["W_skip"]
    return {name: array.float().cpu().contiguous() for name, array in arrays.items()}
