"""A site of all layers as one labelled array, from one stream of the layers: t["pattern"] without a layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gemmascope.memory.limits import require_free_memory
from gemmascope.model.gemma2 import Layer
from gemmascope.run.reading.layer_cache import MAX_CACHED_BYTES, bytes_of_site
from gemmascope.run.recorded import RecordedRun
from gemmascope.run.replay import known, run_again, sites_to_record, value_of_known, without_computable
from gemmascope.sites import SITES, Site
from gemmascope.values import labelled

if TYPE_CHECKING:
    import xarray


def read_all_layers(trace: RecordedRun, site: Site) -> xarray.DataArray:
    """A site of all layers: [layer, ...], float32, on the CPU, labelled with layers, their kinds, positions and tokens.

    Raises:
        BudgetError: The array does not fit the free memory.
    """
    n_layers, config = trace.model.n_layers, trace.model.config
    shape = tuple(config.size_of(axis, len(trace)) for axis in site.axes)
    n_bytes = 4 * n_layers * torch.Size(shape).numel()
    do = f"read a layer at a time, t[{site.name!r}, layer]"
    require_free_memory(n_bytes, torch.device("cpu"), f"'{site.name}' of {n_layers} layers", do)
    values = np.empty((n_layers, *shape), np.float32)
    for layer, value in _each(trace, site):
        values[layer] = value.float().cpu().numpy()
    coords: dict[str, object] = {"layer": range(n_layers), "kind": ("layer", list(config.kinds))}
    for axis in site.axes:
        coords[axis] = range(config.size_of(axis, len(trace)))
        if axis.endswith("pos"):
            coords[f"{axis.removesuffix('pos')}token"] = (axis, trace.tokens)
    return labelled(values, coords, ("layer", *site.axes), site.name, site.meaning)


def _each(trace: RecordedRun, site: Site) -> Iterator[tuple[int, Tensor]]:
    """Each layer's number and value. Layers run only if some value is not there yet, and then in one stream."""
    missing = []
    for layer in range(trace.model.n_layers):
        value = known(trace, site.name, layer)
        if value is None:
            value = value_of_known(trace, site, layer)
        if value is None:
            missing.append(layer)
        else:
            yield layer, value
    if missing:
        with closing(trace.model.layers()) as layers:
            for module in layers:
                if module.index in missing:
                    yield module.index, _run(trace, module, site, len(missing))
                if module.index == missing[-1]:
                    return


def _run(trace: RecordedRun, layer: Layer, site: Site, n_layers: int) -> Tensor:
    """The value of one layer. What the layer makes besides is cached if that of all n_layers fits: else each would evict
    another.
    """
    together = sites_to_record(trace, site, layer.index)
    if n_layers * sum(bytes_of_site(trace.model, SITES[name], len(trace)) for name in together) > MAX_CACHED_BYTES:
        together = [site.name]
    values = run_again(trace, layer, together)
    if len(together) > 1:
        trace.layer_cache.add(layer.index, without_computable(trace, site, layer.index, values))
    return values[site.name]
