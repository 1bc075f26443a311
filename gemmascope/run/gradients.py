"""Gradients of a metric with respect to the sites of a run.

The backward pass runs each layer again from its stored input with gradients on, the last layer first. So no graph spans two
layers, and the weights are streamed once, in reverse order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import closing

import torch
from torch import Tensor

from gemmascope.arguments import is_whole
from gemmascope.errors import EditError, MetricError, SiteError
from gemmascope.memory.limits import explain_oom
from gemmascope.model.gemma2 import Layer
from gemmascope.model.layout import Block, Layout
from gemmascope.model.tap import Tap
from gemmascope.run.bound_metric import BoundMetric, RunMetric, bind_to_prompt, measure_stream, try_metric
from gemmascope.run.logits import rows_to_unembed
from gemmascope.run.recorded import RecordedRun
from gemmascope.sites import LAYER_SITES, Address, SiteKey, find, parse_site_name
from gemmascope.values import chunks, moved


class _GradientTap(Tap):
    """Replaces the value of each requested site by a copy that autograd can differentiate with respect to."""

    def __init__(self, requested: Collection[SiteKey]) -> None:
        self.requested, self.copies = frozenset(requested), dict[SiteKey, Tensor]()

    def wants(self, site: str, layer: int | None) -> bool:
        return (site, layer) in self.requested

    def reads(self, site: str, layer: int | None) -> bool:
        return (site, layer) in self.requested

    def rows(self, site: str, layer: int | None, value: Tensor, layout: Layout) -> Tensor:
        return self._copy(site, layer, value) if (site, layer) in self.requested else value

    def edges(self, site: str, layer: int, value: Tensor, block: Block) -> Tensor:
        return self._copy(site, layer, value[0])[None]

    def _copy(self, site: str, layer: int | None, value: Tensor) -> Tensor:
        copy = value.clone()
        if not copy.requires_grad:  # an edit overwrote it, so it depends on nothing before it
            copy.requires_grad_()
        self.copies[site, layer] = copy
        return copy


def gradient(trace: RecordedRun, metric: object, sites: object) -> Tensor | dict[object, Tensor]:
    """See Trace.grad."""
    keys = [*LAYER_SITES, "embed"] if sites is None else sites if isinstance(sites, list) else [sites]
    if not keys:
        raise SiteError("sites is an empty list: name one site at least")
    addresses = {_hashable(key): _addresses(key, trace.model.n_layers) for key in keys}
    bound = bind_to_prompt(metric, trace.model, trace.ids)
    try_metric(bound, trace.model, trace.ids)
    by_key = gradients(trace, bound, {address.key for of_site in addresses.values() for address in of_site})
    by_site = {
        site: torch.stack([by_key[address.key] for address in of_site]) if _in_every_layer(site) else by_key[of_site[0].key]
        for site, of_site in addresses.items()
    }
    return by_site if sites is None or isinstance(sites, list) else by_site[_hashable(sites)]


def _in_every_layer(key: object) -> bool:
    """Whether this is the name of a site in the layers, without a layer."""
    if not isinstance(key, str):
        return False
    site, layer = parse_site_name(key)
    return site.in_layer and layer is None


def _addresses(key: object, n_layers: int) -> list[Address]:
    """The site that a key names; that of every layer for a name without a layer."""
    if _in_every_layer(key):
        return [find(key, n_layers, layer) for layer in range(n_layers)]
    return [_before_the_end(find(key, n_layers))]


def _hashable(key: object) -> object:
    """A site as the user wrote it, with its layer as a plain int, for a dict key."""
    return (key[0], int(key[1])) if isinstance(key, tuple) and len(key) == 2 and is_whole(key[1]) else key


def gradients(trace: RecordedRun, metric: BoundMetric, requested: Collection[SiteKey]) -> dict[SiteKey, Tensor]:
    """The gradient of a bound metric at each requested (site, layer), on the model's device."""
    with torch.inference_mode(False):
        found = _gradients(trace, metric, requested)
    return {key: moved(grad, trace.model.device) for key, grad in found.items()}


def _gradients(trace: RecordedRun, metric: BoundMetric, requested: Collection[SiteKey]) -> dict[SiteKey, Tensor]:
    by_key: dict[SiteKey, Tensor] = {}
    grad = _at_final_stream(trace, metric)
    lowest = min(layer or 0 for _, layer in requested)
    with explain_oom(trace.model), closing(trace.model.layers(reverse=True)) as layers:
        for layer in layers:
            grad, grads = _through_layer(trace, layer, grad, [key for key in requested if key[1] == layer.index])
            by_key.update(grads)
            if layer.index == lowest:
                break
    if ("embed", None) in requested:
        by_key["embed", None] = grad
    return by_key


def _at_final_stream(trace: RecordedRun, metric: BoundMetric) -> Tensor:
    """The gradient at the stream after the last layer, which is zero where the metric does not read."""
    if any(edit.address.is_after_layers for edit in trace.bound_edits):
        raise EditError("the run has an edit after its layers (final, logits_raw or logits), which gradients do not pass")
    trace.require_weights(None)
    gradient = torch.zeros_like(trace.residuals[-1])
    for part, positions, share in _parts(trace, metric):
        at = list(positions)
        with torch.enable_grad():
            rows = trace.residuals[-1][at].detach().requires_grad_()
            value = measure_stream([part], positions, rows[None], lambda x, _: _unembed(trace, x), len(at))
            if not value.requires_grad:
                raise MetricError("the metric has no gradient: it detaches its numbers, or counts, as gs.rank does")
            (grad,) = torch.autograd.grad(value.sum() * share, rows)
        gradient[at] = grad
    return gradient


def _unembed(trace: RecordedRun, rows: Tensor) -> Tensor:
    return trace.model.network.unembed(rows[0])[None]


def _parts(trace: RecordedRun, metric: BoundMetric) -> Iterator[tuple[BoundMetric, tuple[int, ...], float]]:
    """The metric at a few positions at a time, those positions, and their share of its mean; a function's all together."""
    if isinstance(metric, RunMetric):
        yield metric, metric.positions, 1.0
        return
    for part in chunks(len(metric.positions), rows_to_unembed(trace.model, bytes_per_logit=32)):
        some = metric.at(part)
        yield some, some.positions, len(some.positions) / len(metric.positions)


def _through_layer(
    trace: RecordedRun, layer: Layer, grad: Tensor, requested: Collection[SiteKey]
) -> tuple[Tensor, dict[SiteKey, Tensor]]:
    trace.require_weights(layer.index)
    tap = _GradientTap(requested)
    with torch.enable_grad():
        x = trace.residuals[layer.index].detach().requires_grad_()
        y = layer(x, trace.layout, trace.tap(tap).at(layer.index, trace.layout))
        inputs = [x, *tap.copies.values()]
        grads = torch.autograd.grad(y, inputs, moved(grad, y.device), allow_unused=True)
    down, *at_sites = (torch.zeros_like(v) if g is None else g for g, v in zip(grads, inputs, strict=True))
    return down, dict(zip(tap.copies, at_sites, strict=True))


def _before_the_end(address: Address) -> Address:
    if address.is_after_layers:
        raise SiteError(f"'{address}' comes after the layers: gradients are had at embed and at the sites of the layers")
    return address
