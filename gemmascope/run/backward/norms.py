"""Gradients through an RMS norm, from what comes out of it to what goes in."""

from __future__ import annotations

from torch import Tensor

from gemmascope.model.maths import rms_scale
from gemmascope.model.modules import RMSNorm


def through_norm(norm: RMSNorm, gradient: Tensor, x: Tensor, *, keep_scale: bool = False) -> Tensor:
    """A gradient at the rows that a norm returns, as one at rows x that it is given, in float32.

    gradient, x: [..., d_model], of shapes that broadcast. keep_scale: take the norm's scale as a constant, as RelP does.
    """
    gradient, x = gradient.float() * (1.0 + norm.weight.float()), x.float()
    scale = rms_scale(x, norm.eps)
    if keep_scale:
        return scale * gradient
    along = (gradient * x).sum(-1, keepdim=True)
    return scale * gradient - x * along * scale**3 / x.shape[-1]
