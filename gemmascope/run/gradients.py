"""Gradients of a metric with respect to the sites of a run.

The forward kept the stream at every layer's entry; backward re-runs each layer from there with gradients on, the last
one first. So no graph spans two layers, and layers that stream in are asked for once, in reverse order.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import closing
from typing import Any

import torch
from torch import Tensor

from gemmascope.arguments import is_whole
from gemmascope.errors import EditError, MetricError, SiteError
from gemmascope.memory.limits import explain_oom
from gemmascope.model.gemma2 import Layer
from gemmascope.model.layout import Block, Layout
from gemmascope.model.tap import Chain, Tap
from gemmascope.run.metric import Metric, bind_metric, measure, try_metric
from gemmascope.run.passes import EditTap
from gemmascope.run.trace import Trace
from gemmascope.sites import Address, find

Key = tuple[str, int | None]


class _Grabbing(Tap):
    """Puts a copy of each wanted site's value in the graph's way, so that a gradient can be asked at it."""

    def __init__(self, wanted: Collection[Key]) -> None:
        self.wanted, self.held = frozenset(wanted), dict[Key, Tensor]()

    def wants(self, site: str, layer: int | None) -> bool:
        return (site, layer) in self.wanted

    def rows(self, site: str, layer: int | None, value: Tensor, layout: Layout) -> Tensor:
        return self._grab(site, layer, value) if (site, layer) in self.wanted else value

    def edges(self, site: str, layer: int, value: Tensor, block: Block) -> Tensor:
        return self._grab(site, layer, value[0])[None]

    def _grab(self, site: str, layer: int | None, value: Tensor) -> Tensor:
        copy = value.clone()
        if not copy.requires_grad:  # an edit wrote all of it: nothing before it matters to it, but what follows does
            copy.requires_grad_()
        self.held[site, layer] = copy
        return copy


def gradient(trace: Trace, metric: Any, sites: Any) -> Any:
    """The gradient of a metric of the next token with respect to sites of the run, each of the shape of its value.

    metric: as in gs.sweep. sites: one site, as in t[...], which gives a tensor; or a list of them, which gives a dict.
    Raises SiteError for a site that is not there, or that comes after the layers.
    """
    many = isinstance(sites, list)
    if many and not sites:
        raise SiteError("sites is an empty list: name one site at least")
    addresses = {_hashable(key): _before_the_end(find(key, trace.model.n_layers)) for key in (sites if many else [sites])}
    bound = bind_metric(metric, trace.model)
    try_metric(bound, trace.model, trace.ids)
    found = gradients(trace, bound, {_key(a) for a in addresses.values()})
    if many:
        return {key: found[_key(address)] for key, address in addresses.items()}
    return found[_key(addresses[_hashable(sites)])]


def _hashable(key: Any) -> Any:
    """A site as it was asked for, its layer a plain number, so that it can be a key."""
    return (key[0], int(key[1])) if isinstance(key, tuple) and len(key) == 2 and is_whole(key[1]) else key


def gradients(trace: Trace, metric: Metric, wanted: Collection[Key]) -> dict[Key, Tensor]:
    """The gradient of a bound metric at each wanted (site, layer)."""
    with torch.inference_mode(False):
        return _gradients(trace, metric, wanted)


def _gradients(trace: Trace, metric: Metric, wanted: Collection[Key]) -> dict[Key, Tensor]:
    found: dict[Key, Tensor] = {}
    grad = _at_the_end(trace, metric)
    lowest = min(layer or 0 for _, layer in wanted)
    with explain_oom(trace.model), closing(trace.model.layers(reverse=True)) as layers:
        for layer in layers:
            here = [key for key in wanted if key[1] == layer.index]
            grad, grads = _through_layer(trace, layer, grad, here)
            found.update(grads)
            if layer.index == lowest:
                break
    if ("embed", None) in wanted:
        found["embed", None] = grad
    return found


def _at_the_end(trace: Trace, metric: Metric) -> Tensor:
    """The gradient at the stream after the last layer: only the last position's logits are asked."""
    if any(edit.address.layer is None and edit.address.site.name != "embed" for edit in trace.bound_edits):
        raise EditError("the run has an edit after its layers (final, logits_raw or logits), which gradients do not pass")
    trace.require_weights(None)
    with torch.enable_grad():
        last = trace.residuals[-1][-1:].detach().requires_grad_()
        value = measure(metric, trace.model.network.unembed(last))
        if not value.requires_grad:
            raise MetricError("the metric has no gradient: it detaches its numbers, or counts, as gs.rank does")
        (grad,) = torch.autograd.grad(value.sum(), last)
    return torch.cat((torch.zeros_like(trace.residuals[-1][:-1]), grad))


def _through_layer(trace: Trace, layer: Layer, grad: Tensor, wanted: Collection[Key]) -> tuple[Tensor, dict[Key, Tensor]]:
    trace.require_weights(layer.index)
    grabbing = _Grabbing(wanted)
    tap = Chain(EditTap([trace.bound_edits]), grabbing)
    with torch.enable_grad():
        x = trace.residuals[layer.index].detach().requires_grad_()
        y = layer(x, trace.layout, tap.at(layer.index, trace.layout))
        inputs = [x, *grabbing.held.values()]
        grads = torch.autograd.grad(y, inputs, grad, allow_unused=True)
    down, *at_sites = (torch.zeros_like(v) if g is None else g for g, v in zip(grads, inputs, strict=True))
    return down, dict(zip(grabbing.held, at_sites, strict=True))


def _before_the_end(address: Address) -> Address:
    if address.layer is None and address.site.name != "embed":
        raise SiteError(f"'{address}' comes after the layers: gradients are had at embed and at the sites of the layers")
    return address


def _key(address: Address) -> Key:
    return address.site.name, address.layer
