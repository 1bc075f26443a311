"""How some dictionaries scale each row before they encode it, and scale the reconstruction back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

LAYER_NORM, CONSTANT_NORM = "layer_norm", "constant_norm"
# What SAELens adds to the standard deviation of a row.
_EPS = 1e-5


@dataclass(frozen=True)
class Normalization:
    """A scale for each row, from the row itself.

    Attributes:
        kind: "layer_norm": less the row's mean, divided by its standard deviation. "constant_norm": scaled to the length
            sqrt(d_in).
        scales_back: Whether the reconstruction is scaled back. A transcoder's is not: it writes another site.
    """

    kind: str
    scales_back: bool = True

    def apply(self, x: Float[Tensor, "pos d_in"]) -> Float[Tensor, "pos d_in"]:
        """What the encoder reads of rows."""
        if self.kind == LAYER_NORM:
            return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + _EPS)
        return x / self._length(x)

    def scale(self, x: Float[Tensor, "pos d_in"]) -> Float[Tensor, "pos 1"]:
        """What a feature's decoder is multiplied by in the reconstruction of rows x."""
        if not self.scales_back:
            return torch.ones_like(x[:, :1])
        return x.std(-1, keepdim=True) if self.kind == LAYER_NORM else self._length(x)

    def undo(self, decoded: Float[Tensor, "pos d_out"], x: Float[Tensor, "pos d_in"]) -> Float[Tensor, "pos d_out"]:
        """The reconstruction of rows x, from what was decoded of their scaled form."""
        if not self.scales_back:
            return decoded
        shift = x.mean(-1, keepdim=True) if self.kind == LAYER_NORM else 0.0
        return decoded * self.scale(x) + shift

    @staticmethod
    def _length(x: Float[Tensor, "pos d_in"]) -> Float[Tensor, "pos 1"]:
        """A row's length over sqrt(d_in); a row of zeros counts as very short."""
        shortest = torch.finfo(torch.float32).tiny
        length: Tensor = x.norm(dim=-1, keepdim=True).clamp_min(shortest) / float(x.shape[-1]) ** 0.5
        return length
