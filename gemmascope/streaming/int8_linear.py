"""Linear maps that compute from int8 weights as they are stored, on devices where kernels run.

Elsewhere a layer is dequantised before it computes (see layer_stream.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

from gemmascope.errors import DeviceError
from gemmascope.kernels.switch import int8_kernels
from gemmascope.model.gemma2 import Layer
from gemmascope.streaming.int8 import GROUP, n_groups
from gemmascope.streaming.packed import MATRICES, SCALE, TensorSlice

WEIGHT = ".weight"


class Int8Linear(nn.Module):
    """A linear map whose matrix stays int8. Few rows are multiplied with it as it is; for more it is dequantised.

    Which of the two depends on the number of rows alone, so that equal rows always give equal bits.

    Attributes:
        numbers: [out, in], int8.
        scale: [out, group], float16.
        dtype: The dtype to compute in.
        scratch: Memory for the dequantised matrix, which is then dequantised once; None: each time, in memory of its own.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        n_out, n_in = linear.weight.shape
        self.dtype = linear.weight.dtype
        self.numbers = _on_meta(n_out, n_in, dtype=torch.int8)
        self.scale = _on_meta(n_out, n_groups(n_in), dtype=torch.float16)
        self.scratch: Tensor | None = None
        self._scratch_is_filled = False

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """The dequantised matrix."""
        if self.numbers.is_meta:
            return torch.empty(self.numbers.shape, dtype=self.dtype, device="meta")
        if self._scratch_is_filled and self.scratch is not None:
            return self.scratch
        weight = self.scratch
        if weight is None:
            weight = torch.empty(self.numbers.shape, dtype=self.dtype, device=self.numbers.device)
        int8_kernels(weight.device).dequantise(self.numbers, self.scale, weight, GROUP)
        self._scratch_is_filled = self.scratch is not None
        return weight

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        if self.dtype != x.dtype:
            raise DeviceError(f"the rows are {x.dtype}, the layer computes in {self.dtype}")
        if torch.is_grad_enabled():
            return _Differentiable.apply(x, self)  # type: ignore[no-any-return, no-untyped-call]
        return self.multiply(x)

    def multiply(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """The products of rows x with the matrix, which record no gradient."""
        flat = x.reshape(-1, x.shape[-1])
        kernels = int8_kernels(x.device)
        if 0 < len(flat) <= kernels.FEW_ROWS[self.dtype]:
            return kernels.product(flat, self.numbers, self.scale, GROUP).view(*x.shape[:-1], -1)
        return F.linear(x, self.weight)


class _Differentiable(torch.autograd.Function):
    """The same product with a gradient for the rows: dequantised once more, rather than kept until then."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, linear: Int8Linear) -> Tensor:
        ctx.linear = linear  # type: ignore[attr-defined]
        return linear.multiply(x)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.linear.weight, None  # type: ignore[attr-defined]


def _on_meta(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False)


def keep_int8(layer: Layer) -> Layer:
    """Replace the linear maps of an empty layer, which is returned, by ones that compute from int8."""
    for name in MATRICES:
        path = name.removesuffix(WEIGHT)
        parent, _, attribute = path.rpartition(".")
        setattr(layer.get_submodule(parent), attribute, Int8Linear(layer.get_submodule(path)))  # type: ignore[arg-type]
    return layer


def share_scratch(layer: Layer, scratch: Mapping[str, Tensor]) -> None:
    """Let the linear maps of a layer dequantise into this memory, by the weights' names. No other layer uses it by then."""
    for name in MATRICES:
        linear = layer.get_submodule(name.removesuffix(WEIGHT))
        assert isinstance(linear, Int8Linear)
        linear.scratch = scratch[name]


def int8_parameters(slices: Sequence[TensorSlice], buffer: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """The parameters of such a layer, by their names, in the bytes of a buffer: views, unless a norm has another dtype."""
    found = {}
    for slice_ in slices:
        value = slice_.view(buffer)
        if slice_.name in MATRICES:
            found[slice_.name.removesuffix(WEIGHT) + ".numbers"] = value
        elif slice_.name.endswith(SCALE):
            found[slice_.name.removesuffix(WEIGHT + SCALE) + ".scale"] = value
        else:
            found[slice_.name] = value.to(dtype)
    return found
