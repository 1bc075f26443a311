"""What makes a row sparse: JumpReLU with gradients for its thresholds, and the k largest of a row or of a batch."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx


class _Context(FunctionCtx):
    """What the forward leaves for the backward, as torch gives it."""

    saved_tensors: tuple[Tensor, Tensor]
    bandwidth: float


class _JumpReLU(torch.autograd.Function):
    """pre x H(pre - threshold). The threshold's gradient is that of a kernel estimate, as in arXiv 2407.14435."""

    @staticmethod
    def forward(ctx: _Context, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        pre, threshold = ctx.saved_tensors
        (grad,) = grads
        of_threshold = -(threshold / ctx.bandwidth) * (grad * _near(pre, threshold, ctx.bandwidth)).sum(0)
        return grad * (pre > threshold), of_threshold, None


class _Step(torch.autograd.Function):
    """H(pre - threshold), with a gradient for the threshold alone."""

    @staticmethod
    def forward(ctx: _Context, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor) -> tuple[None, Tensor, None]:
        pre, threshold = ctx.saved_tensors
        return None, -(grads[0] * _near(pre, threshold, ctx.bandwidth)).sum(0) / ctx.bandwidth, None


def _near(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """The rectangle kernel: where a value is within half a bandwidth of its threshold."""
    return ((pre - threshold).abs() < bandwidth / 2).to(pre.dtype)


def jump_relu(
    pre: Float[Tensor, "row feature"], threshold: Float[Tensor, " feature"], bandwidth: float
) -> Float[Tensor, "row feature"]:
    """pre where it exceeds the threshold, else 0.

    Its gradient with respect to the threshold is -(threshold / bandwidth) K((pre - threshold) / bandwidth), K being 1 from
    -1/2 to 1/2.
    """
    found: Tensor = _JumpReLU.apply(pre, threshold, bandwidth)  # type: ignore[no-untyped-call]
    return found


def step(
    pre: Float[Tensor, "row feature"], threshold: Float[Tensor, " feature"], bandwidth: float
) -> Float[Tensor, "row feature"]:
    """1 where pre exceeds the threshold, else 0.

    Its gradient with respect to the threshold is -(1 / bandwidth) K((pre - threshold) / bandwidth).
    """
    found: Tensor = _Step.apply(pre, threshold, bandwidth)  # type: ignore[no-untyped-call]
    return found


def top_k(pre: Float[Tensor, "row feature"], k: int) -> Float[Tensor, "row feature"]:
    """The k largest of each row that are above 0; zeros elsewhere."""
    largest = pre.topk(k, dim=1, sorted=False)
    return torch.zeros_like(pre).scatter(1, largest.indices, largest.values.relu())


def batch_cut(pre: Float[Tensor, "row feature"], k: float) -> Tensor:
    """The value that k x rows of a batch's activations reach or exceed, and above 0."""
    n = min(max(1, int(k * len(pre))), pre.numel())
    cut = pre.detach().flatten().topk(n, sorted=False).values.min()
    return cut.clamp(min=torch.finfo(pre.dtype).tiny)
