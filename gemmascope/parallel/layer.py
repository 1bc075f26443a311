"""A layer that is divided among processes: each has some heads and some columns of the MLP, and their outputs are added.

Norms and the stream are whole in every process. A tap sees whole values: at a site that is divided they are gathered, if the
tap reads it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from gemmascope.config import GemmaConfig
from gemmascope.errors import DeviceError
from gemmascope.model.gemma2 import Layer
from gemmascope.model.layout import Block, Layout, PrefixKV
from gemmascope.model.maths import gelu_gate
from gemmascope.model.modules import MLP, Attention
from gemmascope.model.tap import BoundTap, Chain, Tap
from gemmascope.parallel.group import Group

# The sites that are divided, and the axis of the heads or of the columns in a value of the pass.
DIVIDED = {
    "q_raw": 1, "k_raw": 1, "q": 1, "k": 1, "v": 1, "q_rot": 1, "k_rot": 1, "z": 1, "head_out": 1,
    "mlp_gate": 1, "mlp_up": 1, "mlp_act": 1, "scores": 1, "scores_capped": 1, "pattern": 1,
}  # fmt: skip


class DividedLinear(nn.Module):
    """This process's part of a matrix: its rows (dim 0), or its columns (dim 1), of which the products are added."""

    def __init__(self, d_in: int, d_out: int, dim: int, group: Group) -> None:
        super().__init__()
        shape = [d_out, d_in]
        shape[dim] //= group.size
        self.dim, self.group = dim, group
        self.part = nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False)

    def own(self, whole: Tensor) -> Tensor:
        """This process's part of the whole matrix."""
        rows = self.group.own(whole.shape[self.dim])
        return whole.narrow(self.dim, rows.start, rows.stop - rows.start)

    def product(self, x: Tensor) -> Tensor:
        """The product with this process's part."""
        return F.linear(x, self.part)

    @property
    def weight(self) -> Tensor:
        raise _whole_matrix_error()

    def forward(self, x: Tensor) -> Tensor:
        raise _whole_matrix_error()


def _whole_matrix_error() -> DeviceError:
    return DeviceError(
        "this reads a whole matrix of a layer, and each process has a part of it: use a model that gs.load loaded, on one "
        "device or spread over several"
    )


class DividedAttention(Attention):
    """The heads of this process. What they write is added to what the others' write."""

    def __init__(self, config: GemmaConfig, layer: int, group: Group) -> None:
        super().__init__(config, layer)
        self.group = group
        d_q, d_kv = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        self.q_proj = DividedLinear(config.d_model, d_q, 0, group)  # type: ignore[assignment]
        self.k_proj = DividedLinear(config.d_model, d_kv, 0, group)  # type: ignore[assignment]
        self.v_proj = DividedLinear(config.d_model, d_kv, 0, group)  # type: ignore[assignment]
        self.o_proj = DividedLinear(d_q, config.d_model, 1, group)  # type: ignore[assignment]

    def forward(self, x: Tensor, layout: Layout, tap: BoundTap) -> tuple[Tensor, Tensor]:
        prefixes = [None if prefix is None else self._own(prefix) for prefix in layout.prefixes]
        return super().forward(self.group.shared(x), replace(layout, prefixes=tuple(prefixes)), tap)

    def project(self, site: str, rows: Tensor) -> Tensor:
        matrix: DividedLinear = getattr(self, f"{site}_proj")
        return matrix.product(rows)

    def write(self, z: Tensor) -> Tensor:
        matrix: DividedLinear = self.o_proj  # type: ignore[assignment]
        return self.group.total(matrix.product(rearrange(z, "row head d -> row (head d)")))

    def output_weights(self) -> Tensor:
        matrix: DividedLinear = self.o_proj  # type: ignore[assignment]
        return matrix.part

    def _own(self, prefix: PrefixKV) -> PrefixKV:
        """The keys and values of this process's heads. A generation's cache has no others."""
        if len(prefix.k) < self.config.n_kv_heads:
            return prefix
        heads = self.group.own(self.config.n_kv_heads)
        return replace(prefix, k=prefix.k[heads], v=prefix.v[heads])


class DividedMLP(MLP):
    """The columns of this process. What they write is added to what the others' write."""

    def __init__(self, config: GemmaConfig, group: Group) -> None:
        super().__init__(config)
        self.group = group
        self.gate_proj = DividedLinear(config.d_model, config.d_mlp, 0, group)  # type: ignore[assignment]
        self.up_proj = DividedLinear(config.d_model, config.d_mlp, 0, group)  # type: ignore[assignment]
        self.down_proj = DividedLinear(config.d_mlp, config.d_model, 1, group)  # type: ignore[assignment]

    def forward(self, x: Tensor, tap: BoundTap) -> Tensor:
        x = self.group.shared(x)
        gate, up, down = (getattr(self, f"{name}_proj") for name in ("gate", "up", "down"))
        active = gelu_gate(tap("mlp_gate", gate.product(x)), tap("mlp_up", up.product(x)))
        return self.group.total(down.product(tap("mlp_act", active)))


class DividedLayer(Layer):
    """A layer of which this process has a part."""

    def __init__(self, config: GemmaConfig, index: int, group: Group) -> None:
        super().__init__(config, index)
        self.group = group
        self.self_attn = DividedAttention(config, index, group)
        self.mlp = DividedMLP(config, group)

    def bring(self, x: Tensor, layout: Layout, tap: BoundTap) -> tuple[Tensor, Layout, BoundTap]:
        x, layout, tap = super().bring(x, layout, tap)
        return x, layout, _WholeTap(tap, self.group)

    def sum_of_heads(self, heads: Tensor) -> Tensor:
        return self.group.total(heads.sum(1))


class _WholeTap(BoundTap):
    """Shows whole values to taps that read a divided site, and goes on with this process's part of what they return."""

    __slots__ = ("group",)

    def __init__(self, bound: BoundTap, group: Group) -> None:
        super().__init__(bound.tap, bound.layer, bound.layout)
        self.group = group

    def __call__(self, site: str, value: Tensor) -> Tensor:
        if site not in DIVIDED:
            return super().__call__(site, value)
        for tap in _each(self.tap):
            if tap.own_heads:
                value = tap.rows(site, self.layer, value, self.layout)
            elif tap.reads(site, self.layer):
                whole = self.group.gathered(value, DIVIDED[site])
                changed = tap.rows(site, self.layer, whole, self.layout)
                value = value if changed is whole else self.group.part(changed, DIVIDED[site])
        return value

    def edges(self, site: str, value: Tensor, block: Block) -> Tensor:
        whole = self.group.gathered(value, DIVIDED[site])
        changed = super().edges(site, whole, block)
        return value if changed is whole else self.group.part(changed, DIVIDED[site])

    def takes_pattern(self) -> bool:
        return False  # it would be that of this process's heads


def _each(tap: Tap) -> list[Tap]:
    return [one for part in tap.taps for one in _each(part)] if isinstance(tap, Chain) else [tap]
