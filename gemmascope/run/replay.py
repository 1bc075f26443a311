"""Replaying a trace: its layers run again from their kept inputs, in one stream of the weights, with chosen sites kept."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import closing

import torch
from torch import Tensor

from gemmascope.errors import SiteError
from gemmascope.model.gemma2 import Layer
from gemmascope.model.tap import Chain
from gemmascope.run.memory import told_when_full
from gemmascope.run.passes import Editing, Keeping
from gemmascope.run.trace import Trace
from gemmascope.sites import LAYER_SITES


def replay(trace: Trace, sites: Collection[str]) -> Iterator[tuple[Layer, dict[str, Tensor]]]:
    """Each layer of a trace, with the values of the sites asked for in it, as t[site, layer] has them.

    What asks about all layers goes through them once, where t[site, layer] would fetch a streamed layer each time. A layer
    is good until the next one is asked for. SiteError for a site that is not in the layers.
    """
    if wrong := [site for site in sites if site not in LAYER_SITES]:
        raise SiteError(f"{wrong[0]!r} is not in the layers; those that are: {', '.join(LAYER_SITES)}")
    with closing(trace.model.layers()) as layers:
        for layer in layers:
            keeping = Keeping(sites)
            tap = Chain(Editing([trace.bound_edits]), keeping)
            with torch.no_grad(), told_when_full(trace.model):
                layer(trace.stream[layer.index], trace.layout, tap.at(layer.index, trace.layout))
            yield layer, {name: value for (name, _), value in keeping.kept[0].items()}
