"""The processes that share a model, and what they exchange, in both directions of a gradient.

Every process runs the same program, so each meets every exchange, in the same order.
Source: Shoeybi et al., "Megatron-LM" (arXiv 1909.08053).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gemmascope.errors import DeviceError


@dataclass(frozen=True)
class Group:
    """The default group of torch.distributed. rank: the number of this process; size: how many there are."""

    rank: int
    size: int

    @classmethod
    def current(cls) -> Group:
        """Raises DeviceError where there is no group."""
        if not dist.is_available() or not dist.is_initialized():
            raise DeviceError(
                "a model is divided among the processes of torch.distributed, and this process is in no group: start the "
                "script with torchrun, and call torch.distributed.init_process_group() first"
            )
        return cls(dist.get_rank(), dist.get_world_size())

    def own(self, n: int) -> slice:
        """This process's part of n things that are divided."""
        each = n // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def total(self, value: Tensor) -> Tensor:
        """The sum of every process's value."""
        total: Tensor = _Total.apply(value)  # type: ignore[no-untyped-call]
        return total

    def shared(self, value: Tensor) -> Tensor:
        """A value that all processes have, from which each goes on with its own part: their gradients add up."""
        same: Tensor = _Shared.apply(value)  # type: ignore[no-untyped-call]
        return same

    def gathered(self, value: Tensor, dim: int) -> Tensor:
        """The values of all processes side by side."""
        whole: Tensor = _Gathered.apply(value, dim, self)  # type: ignore[no-untyped-call]
        return whole

    def part(self, value: Tensor, dim: int) -> Tensor:
        """This process's part of a value that all processes have."""
        own: Tensor = _Part.apply(value, dim, self)  # type: ignore[no-untyped-call]
        return own


def _all_reduced(value: Tensor) -> Tensor:
    total = value.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def _all_gathered(value: Tensor, dim: int, group: Group) -> Tensor:
    own = value.detach().contiguous()
    parts = [torch.empty_like(own) for _ in range(group.size)]
    dist.all_gather(parts, own)
    return torch.cat(parts, dim)


def _own_part(value: Tensor, dim: int, group: Group) -> Tensor:
    rows = group.own(value.shape[dim])
    return value.narrow(dim, rows.start, rows.stop - rows.start).contiguous()


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return _all_reduced(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _all_reduced(grads[0])


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, dim: int, group: Group) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return _all_gathered(value, dim, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _own_part(grads[0], ctx.dim, ctx.group), None, None


class _Part(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, dim: int, group: Group) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return _own_part(value, dim, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _all_gathered(grads[0], ctx.dim, ctx.group), None, None
