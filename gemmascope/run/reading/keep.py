"""gs.trace(keep=): the sites that a trace keeps while its run goes through the layers, and that pass.

The values are those that t[site, layer] would compute afterwards, bit for bit. So every run goes through a layer by itself:
products of more rows round otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gemmascope.arguments import as_list, is_list, is_whole, short_repr
from gemmascope.edits.edit import BoundEdit
from gemmascope.errors import SiteError
from gemmascope.memory.limits import explain_oom, require_free_memory
from gemmascope.memory.placement import free_bytes
from gemmascope.model.layout import Layout
from gemmascope.model.model import Model
from gemmascope.model.tap import Chain
from gemmascope.run.finite import require_finite
from gemmascope.run.reading.layer_cache import MADE_ANYWAY, MAX_CACHED_BYTES, MAX_CACHED_LAYER_BYTES, bytes_of_site
from gemmascope.run.replay import rerun_layer
from gemmascope.run.taps import EditTap, LayerRecorder
from gemmascope.run.trace import Trace
from gemmascope.sites import EDGE_SITES, SITES, Site, SiteKey, find, parse_site_name

# A run that leaves more than this in the cache asks first how much memory is free.
UNCHECKED_BYTES = 32 * 2**20

# What users write: sites by name, or with a layer.
Keep = str | tuple[str, int] | Sequence[str | tuple[str, int]]

# The same, by layer; None stands for what is outside the layers.
Kept = Mapping[int | None, Sequence[str]]


def kept_sites(keep: object, model: Model) -> Kept:
    """The sites to keep by layer, None standing for what is outside the layers, as the user names them.

    Args:
        keep: A list of sites: "pattern" (of every layer), ("pattern", 5), "layers.5.pattern", or names of TransformerLens.
        model: The model that runs.

    Raises:
        SiteError: There is no such site or layer.
    """
    kept: dict[int | None, dict[str, None]] = {}
    for key in _listed(keep):
        for site, layer in _addresses(key, model):
            if site.name != "embed":  # where the stream begins, which every trace has
                kept.setdefault(layer, {})[site.name] = None
    return {layer: tuple(names) for layer, names in kept.items()}


def _listed(keep: object) -> list[object]:
    if isinstance(keep, str) or _is_pair(keep):
        return [keep]
    if not is_list(keep):
        raise SiteError(f"keep is a list of sites, such as ['pattern', ('z', 5)]; given {short_repr(keep)}")
    return as_list(keep, "keep", error=SiteError)


def _is_pair(key: object) -> bool:
    return isinstance(key, tuple) and len(key) in (2, 3) and (key[1] is None or is_whole(key[1]))


def _addresses(key: object, model: Model) -> list[tuple[Site, int | None]]:
    """The site of every layer for a name without one; the one that a key names."""
    if isinstance(key, str):
        site, layer = parse_site_name(key)
        if site.in_layer and layer is None:
            return [(site, number) for number in range(model.n_layers)]
    address = find(key, model.n_layers)
    return [(address.site, address.layer)]


def require_room(model: Model, lengths: Sequence[int], kept: Kept) -> None:
    """BudgetError, before anything runs, for sites that would not fit the free memory of the device."""
    n_bytes = sum(
        bytes_of_site(model, SITES[name], length) for names in kept.values() for name in names for length in lengths
    )
    if n_bytes:
        listed = list(dict.fromkeys(name for names in kept.values() for name in names))
        what = f"keep= of {', '.join(listed)}, in {len(kept)} of {model.n_layers} layers, for {sum(lengths)} positions"
        do = "keep fewer sites or layers, or read them after the run, t[site, layer], which runs one layer again"
        require_free_memory(n_bytes, model.device, what, do)


@dataclass
class KeptRun:
    """A run's residual stream, as passes.streams gives it, the sites that it keeps, and others of its layers to cache."""

    stream: list[Tensor]
    kept: dict[SiteKey, Tensor] = field(default_factory=dict)
    to_cache: dict[int | None, dict[str, Tensor]] = field(default_factory=dict)


def sites_to_cache(model: Model, lengths: Sequence[int]) -> tuple[str, ...]:
    """The sites of its layers that a run leaves in the cache, since they are made anyway and take a run of the layer to have
    again; none if they are many bytes, the model's layers stream within a budget, or a GPU's memory is planned.
    """
    network, n_bytes = model.network, [sum(bytes_of_site(model, s, n) for s in MADE_ANYWAY) for n in lengths]
    in_memory = network.layer_source is None and network.n_processes == 1 and model.device.type == "cpu"
    total = model.n_layers * sum(n_bytes)
    if not in_memory or 2 * max(n_bytes) > MAX_CACHED_LAYER_BYTES or total > MAX_CACHED_BYTES // 2:
        return ()
    if total > UNCHECKED_BYTES and total > free_bytes(model.device) // 4:
        return ()
    return tuple(site.name for site in MADE_ANYWAY)


def run_and_keep(model: Model, prompts: Sequence[Tensor], edits: Sequence[Sequence[BoundEdit]], kept: Kept) -> list[KeptRun]:
    """Runs that keep sites of their layers. One pass, in which each goes through a layer by itself."""
    layouts = [Layout.of_lengths([len(ids)], model.device) for ids in prompts]
    taps = [EditTap([of_run]) for of_run in edits]
    to_cache = sites_to_cache(model, [len(ids) for ids in prompts])
    with torch.no_grad(), explain_oom(model), closing(model.layers()) as layers:
        runs = [KeptRun([model.network.embed(*run)]) for run in zip(prompts, layouts, taps, strict=True)]
        for layer in layers:
            for run, layout, tap, of_run in zip(runs, layouts, taps, edits, strict=True):
                edited = {e.address.site.name for e in of_run if e.address.layer == layer.index}
                sites = [site for site in kept.get(layer.index, ()) if not _is_stored(site, edited)]
                recorder = LayerRecorder({*sites, *to_cache}, edits_edges=not edited.isdisjoint(EDGE_SITES))
                run.stream.append(layer(run.stream[-1], layout, Chain(tap, recorder).at(layer.index, layout)))
                values = recorder.of(layer)
                run.kept |= {(site, layer.index): values[site] for site in sites}
                if to_cache:
                    run.to_cache[layer.index] = {site: values[site] for site in to_cache if site not in sites}
        for ids, run, of_run in zip(prompts, runs, edits, strict=True):
            require_finite(model, ids, run.stream, of_run)
    return runs


def _is_stored(site: str, edited: set[str]) -> bool:
    """Whether every trace has the site as an entry of its stream."""
    return site == "resid_post" or (site == "resid_pre" and site not in edited)


def keep_outside(trace: Trace, sites: Sequence[str]) -> None:
    """Have a trace keep sites that come after its layers."""
    if sites:
        trace.kept_values |= {(site, None): value for site, value in rerun_layer(trace, None, sites).items()}
