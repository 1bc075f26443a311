"""Replaying a trace: its layers run again from their kept inputs, in one stream of the weights, with chosen sites kept."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import closing

import torch
from torch import Tensor

from gemmascope.errors import SiteError
from gemmascope.memory.limits import explain_oom
from gemmascope.model.gemma2 import Layer
from gemmascope.model.tap import Chain
from gemmascope.run.passes import Editing, Keeping
from gemmascope.run.trace import Trace
from gemmascope.sites import LAYER_SITES, find, find_site


def replay(trace: Trace, sites: Collection[str | tuple[str, int]]) -> Iterator[tuple[Layer, dict[str, Tensor]]]:
    """Each layer of a trace, with the values of the sites asked for in it, as t[site, layer] has them.

    sites: names of sites, which are had in every layer, or (site, layer), which is had in that one. What asks about all
    layers goes through them once, where t[site, layer] would fetch a streamed layer each time. A layer is good until the
    next one is asked for; no other pass may begin before. Values are to be read, not written to: they may be the trace's
    own. SiteError, before any layer runs, for a site that is not in the layers.
    """
    wanted = [(_in_layers(site), None) if isinstance(site, str) else _at(trace, site) for site in sites]
    return _layers(trace, wanted)


def _layers(trace: Trace, wanted: Collection[tuple[str, int | None]]) -> Iterator[tuple[Layer, dict[str, Tensor]]]:
    with closing(trace.model.layers()) as layers:
        for layer in layers:
            trace.require_weights(layer.index)
            keeping = Keeping([site for site, only in wanted if only in (None, layer.index)])
            tap = Chain(Editing([trace.bound_edits]), keeping)
            with torch.no_grad(), explain_oom(trace.model):
                layer(trace.residuals[layer.index], trace.layout, tap.at(layer.index, trace.layout))
            yield layer, {name: value for (name, _), value in keeping.kept[0].items()}


def _at(trace: Trace, site: tuple[str, int]) -> tuple[str, int | None]:
    address = find(site, trace.model.n_layers)
    return _in_layers(address.site.name), address.layer


def _in_layers(site: str) -> str:
    if not find_site(site).in_layer:
        raise SiteError(f"{site!r} is not in the layers; those that are: {', '.join(LAYER_SITES)}")
    return site
