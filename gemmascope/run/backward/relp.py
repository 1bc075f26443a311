"""RelP: what replaces the gradient of a layer, so that what it says of a large change is nearer the truth.

In place of the slope at the run's values, each nonlinear step hands on its input's share of what it made: a norm keeps its
scale, GELU its ratio gelu(g) / g, and the product gelu(g) u gives half of itself to each factor. Attention, the soft cap and
the metric keep their gradients.

Sources: Jafari et al., "Faithful and efficient circuit discovery via relevance patching" (arXiv 2508.21258), with the rules
for norms, activations and gates; Achtibat et al., "AttnLRP" (arXiv 2402.05602).
"""

from __future__ import annotations

import torch
from torch import Tensor

from gemmascope.model.gemma2 import Layer
from gemmascope.model.layout import Block, Layout
from gemmascope.model.modules import NoNorm
from gemmascope.model.tap import Tap
from gemmascope.sites import SCALE_SITES

# The sites of queries and keys before Gemma 3's norms, by the site after them.
_BEFORE_NORM = {"q": "q_raw", "k": "k_raw"}

_HELD = frozenset(("q_raw", "k_raw", "mlp_gate", "mlp_up"))


class RelevanceTap(Tap):
    """Gives a layer its values with the slopes of RelP. inner: the tap that then sees them. layer: None after the layers."""

    def __init__(self, inner: Tap, layer: Layer | None) -> None:
        self.inner, self.of = inner, layer
        self._held: dict[str, Tensor] = {}

    def wants(self, site: str, layer: int | None) -> bool:
        return site in SCALE_SITES or self.inner.wants(site, layer)

    def rows(self, site: str, layer: int | None, value: Tensor, layout: Layout) -> Tensor:
        if site in SCALE_SITES:
            value = value.detach()
        elif site in _BEFORE_NORM and self.of is not None:
            value = self._normed(site, value)
        elif site == "mlp_act":
            value = gate_relevance(self._held["mlp_gate"], self._held["mlp_up"], value)
        value = self.inner.rows(site, layer, value, layout)
        if site in _HELD:
            self._held[site] = value
        return value

    def edges(self, site: str, layer: int, value: Tensor, block: Block) -> Tensor:
        return self.inner.edges(site, layer, value, block)

    def _normed(self, site: str, value: Tensor) -> Tensor:
        """Queries or keys after Gemma 3's norm, with its scale kept."""
        assert self.of is not None
        norm = self.of.self_attn.q_norm if site == "q" else self.of.self_attn.k_norm
        if isinstance(norm, NoNorm):
            return value
        raw = self._held[_BEFORE_NORM[site]]
        return _with_value((raw.float() * norm.gain(raw.detach())).to(value.dtype), value)


def gate_relevance(gate: Tensor, up: Tensor, value: Tensor) -> Tensor:
    """The neurons gelu(gate) up with the slopes of RelP: (gelu(gate) / gate) up / 2 to gate, gelu(gate) / 2 to up."""
    g, u = gate.detach(), up.detach()
    active = torch.nn.functional.gelu(g, approximate="tanh")
    # gelu(g) / g is the distribution function of GELU's tanh form, which has a value at 0 as well.
    ratio = torch.where(g == 0, torch.full_like(g, 0.5), active / torch.where(g == 0, torch.ones_like(g), g))
    return _with_value(0.5 * (ratio * u * gate + active * up), value)


def _with_value(slopes: Tensor, value: Tensor) -> Tensor:
    """A tensor with the numbers of value and the gradient of slopes."""
    return value.detach() + (slopes - slopes.detach())
