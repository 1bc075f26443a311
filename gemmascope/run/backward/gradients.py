"""Gradients of a metric with respect to the sites of a run."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from gemmascope.arguments import is_whole
from gemmascope.errors import SiteError
from gemmascope.run.backward.carried import GRADIENT, CarriedGradients
from gemmascope.run.bound_metric import BoundMetric, bind_to_prompt, try_metric
from gemmascope.run.recorded import RecordedRun
from gemmascope.sites import LAYER_SITES, Address, SiteKey, find, parse_site_name
from gemmascope.values import moved


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


def gradients(
    trace: RecordedRun, metric: BoundMetric, requested: Collection[SiteKey], rules: str = GRADIENT
) -> dict[SiteKey, Tensor]:
    """The gradient of a bound metric at each requested (site, layer), on the model's device. rules: see CarriedGradients."""
    carried = CarriedGradients([trace], [metric], rules)
    found: dict[SiteKey, Tensor] = {}
    for _, (at_layer,) in carried.layers(requested):
        found.update(at_layer.gradients)
    if ("embed", None) in requested:
        found["embed", None] = carried.stream[0]
    return {key: moved(grad, trace.model.device) for key, grad in found.items()}


def _before_the_end(address: Address) -> Address:
    if address.is_after_layers:
        raise SiteError(f"'{address}' comes after the layers: gradients are had at embed and at the sites of the layers")
    return address
