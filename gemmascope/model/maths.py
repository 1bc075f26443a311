"""The pure functions of Gemma 2: norm, RoPE, soft cap, which keys a query sees; and index arrays. No state, no modules.

Those marked one_kernel have twins in kernels/, for CUDA and for the CPU, which compute the same to rounding.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gemmascope.kernels.switch import one_kernel
from gemmascope.values import Array


@one_kernel
def rms_norm(
    x: Float[Tensor, "*rows d_model"], weight: Float[Tensor, " d_model"], eps: float
) -> Float[Tensor, "*rows d_model"]:
    """x over its root mean square, times (1 + weight), computed in float32 and returned in x's dtype."""
    x32, weight = x.float(), weight.float()
    scaled = x32 * rms_scale(x32, eps)
    # In place unless a gradient is recorded: one pass over memory less, and the same numbers.
    return (scaled.addcmul(scaled, weight) if torch.is_grad_enabled() else scaled.addcmul_(scaled, weight)).to(x.dtype)


def rms_scale(x: Float[Tensor, "*rows d_model"], eps: float) -> Float[Tensor, "*rows 1"]:
    """The factor by which an RMS norm multiplies each row of x, before its gain. Float32; NaN if the square overflows."""
    norm = torch.linalg.vector_norm(x.float(), dim=-1, keepdim=True)
    grad = torch.is_grad_enabled()  # in place without one: for a single row each new tensor costs time
    square = norm.square() if grad else norm.square_()
    mean = square / x.shape[-1] + eps if grad else square.div_(x.shape[-1]).add_(eps)
    # If the mean square overflows, rsqrt gives 0 and would silently turn finite numbers into zeros. Adding 0 x mean makes it
    # NaN (0 x inf), which every run checks for, and changes nothing otherwise.
    return torch.add(torch.rsqrt(mean), mean, alpha=0)


def kl_divergence(log_p: Float[Tensor, "*#rows vocab"], log_q: Float[Tensor, "*#rows vocab"]) -> Tensor:
    """KL(p || q) in nats, from log-probabilities whose rows may broadcast."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def root_mean_square(x: Float[Tensor, "*rows d_model"], eps: float) -> Float[Tensor, " *rows"]:
    """What an RMS norm divides each row of x by. Float32."""
    return rms_scale(x, eps).squeeze(-1).reciprocal()


@one_kernel
def gelu_gate(gate: Float[Tensor, "row d_mlp"], up: Float[Tensor, "row d_mlp"]) -> Float[Tensor, "row d_mlp"]:
    """gelu(gate) x up, with GELU's tanh form."""
    active = torch.nn.functional.gelu(gate, approximate="tanh")
    return active * up if torch.is_grad_enabled() else active.mul_(up)  # in place: one pass over memory less


@one_kernel
def soft_cap(x: Tensor, cap: float | None) -> Tensor:
    """cap * tanh(x / cap): x squeezed into (-cap, cap). cap None: x as it is."""
    if cap is None:
        return x
    scaled = x / cap
    # In place unless a gradient is recorded: of wide logits or scores each copy counts, and the numbers are the same.
    return torch.tanh(scaled) * cap if torch.is_grad_enabled() else scaled.tanh_().mul_(cap)


def rope_table(
    positions: Int[Tensor, " row"], d_head: int, theta: float, factor: float = 1.0
) -> tuple[Float[Tensor, "row d_head"], Float[Tensor, "row d_head"]]:
    """Cosines and sines that rotate a query or key at each position, float32. Halves pair up, as in the checkpoint.

    factor: what positions are divided by (linear scaling).
    """
    exponents = torch.arange(0, d_head, 2, dtype=torch.float32, device=positions.device) / d_head
    angles = positions[:, None].float() * (1.0 / theta**exponents / factor)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


@one_kernel
def rotate(
    x: Float[Tensor, "row heads d_head"], cos: Float[Tensor, "row d_head"], sin: Float[Tensor, "row d_head"]
) -> Float[Tensor, "row heads d_head"]:
    """x turned by its position's angles (RoPE)."""
    return turn(x, *half_tables(cos, sin, x.dtype))


def half_tables(
    cos: Float[Tensor, "row d_head"], sin: Float[Tensor, "row d_head"], dtype: torch.dtype
) -> tuple[Float[Tensor, "row 1 half"], Float[Tensor, "row 1 half"]]:
    """What turn needs of the cosines and sines: one of each pair, in the dtype of what is turned."""
    half = cos.shape[-1] // 2
    return cos[:, None, :half].to(dtype), sin[:, None, :half].to(dtype)


def turn(
    x: Float[Tensor, "row heads d_head"], cos: Float[Tensor, "row 1 half"], sin: Float[Tensor, "row 1 half"]
) -> Float[Tensor, "row heads d_head"]:
    """rotate in plain torch, with tables that are ready for it."""
    first, second = x.chunk(2, dim=-1)
    if torch.is_grad_enabled():
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    turned = torch.empty_like(x)  # in place: ten times faster, since allocating dominates
    left, right = turned.chunk(2, dim=-1)
    torch.mul(first, cos, out=left).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=right).addcmul_(first, sin)
    return turned


def first_visible(q_pos: int, window: int | None) -> int:
    """The earliest key that a query at this position sees."""
    return 0 if window is None else max(0, q_pos - window + 1)


def visible(q_pos: Int[Tensor, " q"], k_pos: Int[Tensor, " k"], window: int | None) -> Bool[Tensor, "q k"]:
    """Which keys each query sees: none after it and, with a window, only the `window` latest, its own included."""
    distance = q_pos[:, None] - k_pos[None, :]
    seen = distance >= 0
    return seen if window is None else seen & (distance < window)


def index_tensor(array: Array, device: torch.device) -> Tensor:
    """An array as a tensor on the device. The host does not wait for the copy."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    # From other memory than page-locked the copy of a large array is waited for.
    return tensor.pin_memory(device).to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def ranges(starts: Array, lengths: Array) -> Array:
    """The numbers of several ranges, one range behind the other: those from each start on, as many as its length."""
    starts, lengths = np.asarray(starts, dtype=np.int64), np.asarray(lengths, dtype=np.int64)
    offsets = np.cumsum(lengths) - lengths
    return np.repeat(starts - offsets, lengths) + np.arange(int(lengths.sum()), dtype=np.int64)
