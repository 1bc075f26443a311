"""int8 weights: symmetric, in groups of 128 along the input, each with a float16 scale. Activations are not quantised.

The scale is rounded to float16 before the weights are quantised with it, so that no weight is off by more than half a stored
step. The embedding and the norms are not quantised.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float16, Int8
from torch import Tensor
from torch.nn import functional as F

from gemmascope.errors import CheckpointError
from gemmascope.values import chunks

GROUP = 128

# Rows of a matrix that are processed at once, so that intermediate values stay in the cache. Measured on two cores.
TILE = 64


def n_groups(n_in: int) -> int:
    """The number of groups of an input of this size; the last one may be shorter."""
    return -(-n_in // GROUP)


def quantise(
    weight: Float[Tensor, "out in"], q: Int8[Tensor, "out in"], scale: Float16[Tensor, "out group"], name: str
) -> None:
    """Write a matrix's int8 numbers and scales into q and scale. Raises CheckpointError for NaN and huge weights."""
    missing = -weight.shape[1] % GROUP  # of the last group: padded with zeros, which change no scale
    for rows in chunks(len(weight), TILE):
        tile = F.pad(weight[rows].float(), (0, missing)).view(-1, n_groups(weight.shape[1]), GROUP)  # [row, group, GROUP]
        scale[rows] = _scales(tile.abs().amax(2), name)
        step = scale[rows, :, None].float()
        numbers = torch.where(step > 0, tile / step, 0.0).round_().clamp_(-127, 127)
        q[rows] = numbers.flatten(1)[:, : weight.shape[1]].to(torch.int8)


def _scales(largest: Tensor, name: str) -> Tensor:
    """The float16 step of each group: large enough for 127 steps to reach the group's largest weight."""
    if not bool(torch.isfinite(largest).all()):
        raise CheckpointError(f"tensor {name!r} holds NaN or infinity: it cannot be quantised")
    scale = (largest / 127).half()
    if not bool(torch.isfinite(scale).all()):
        raise CheckpointError(f"tensor {name!r} holds {float(largest.max()):.3g}, too large for a float16 scale")
    # Near float16's smallest numbers, rounding may leave the largest weight out of reach; the next larger step reaches it.
    return torch.where(largest > scale.float() * 127.5, _next_up(scale), scale)


def _next_up(scale: Float16[Tensor, "out group"]) -> Float16[Tensor, "out group"]:
    """The next larger float16 of non-negative numbers: their bits plus one."""
    return (scale.view(torch.int16) + 1).view(torch.float16)


def dequantise(q: Int8[Tensor, "out in"], scale: Float16[Tensor, "out group"], into: Float[Tensor, "out in"]) -> None:
    """Write scale x q, rounded to the dtype of `into`."""
    if q.device.type != "cpu" and q.shape[1] % GROUP == 0:
        by_group = (*scale.shape, GROUP)
        torch.mul(q.view(by_group), scale.float()[..., None], out=into.view(by_group))
        return
    if q.shape[1] % GROUP:
        step = scale.float().repeat_interleave(GROUP, dim=1)[:, : q.shape[1]]
        into.copy_(q * step)
        return
    tile = torch.empty(TILE, scale.shape[1], GROUP)
    for rows in chunks(len(q), TILE):
        part = tile[: rows.stop - rows.start]
        part.copy_(q[rows].view(part.shape)).mul_(scale[rows, :, None].float())
        into[rows].view(part.shape).copy_(part)
