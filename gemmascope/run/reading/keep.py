"""gs.trace(keep=): the sites that a trace keeps while its run goes through the layers, and that pass.

The values are those that t[site, layer] would compute afterwards, bit for bit. So every run goes through a layer by itself:
products of more rows round otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing

import torch
from torch import Tensor

from gemmascope.arguments import as_list, is_list, is_whole, short_repr
from gemmascope.edits.edit import BoundEdit
from gemmascope.errors import SiteError
from gemmascope.memory.limits import explain_oom, require_free_memory
from gemmascope.model.layout import Layout
from gemmascope.model.model import Model
from gemmascope.model.tap import Chain
from gemmascope.run.finite import require_finite
from gemmascope.run.reading.layer_cache import bytes_of_site
from gemmascope.run.replay import rerun_layer
from gemmascope.run.taps import EditTap, LayerRecorder
from gemmascope.run.trace import Trace
from gemmascope.sites import EDGE_SITES, SITES, Site, SiteKey, find, parse_site_name

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


def run_and_keep(
    model: Model, prompts: Sequence[Tensor], edits: Sequence[Sequence[BoundEdit]], kept: Kept
) -> list[tuple[list[Tensor], dict[SiteKey, Tensor]]]:
    """The residual stream of every run, as passes.streams gives it, and its kept sites of the layers. One pass."""
    layouts = [Layout.of_lengths([len(ids)], model.device) for ids in prompts]
    taps = [EditTap([of_run]) for of_run in edits]
    values: list[dict[SiteKey, Tensor]] = [{} for _ in prompts]
    with torch.no_grad(), explain_oom(model), closing(model.layers()) as layers:
        streams = [[model.network.embed(*run)] for run in zip(prompts, layouts, taps, strict=True)]
        for layer in layers:
            for stream, layout, tap, found, of_run in zip(streams, layouts, taps, values, edits, strict=True):
                edited = {e.address.site.name for e in of_run if e.address.layer == layer.index}
                sites = [site for site in kept.get(layer.index, ()) if not _is_stored(site, edited)]
                recorder = LayerRecorder(sites, edits_edges=not edited.isdisjoint(EDGE_SITES))
                stream.append(layer(stream[-1], layout, Chain(tap, recorder).at(layer.index, layout)))
                found |= {(site, layer.index): value for site, value in recorder.of(layer).items()}
        for run in zip(prompts, streams, edits, strict=True):
            require_finite(model, *run)
    return list(zip(streams, values, strict=True))


def _is_stored(site: str, edited: set[str]) -> bool:
    """Whether every trace has the site as an entry of its stream."""
    return site == "resid_post" or (site == "resid_pre" and site not in edited)


def keep_outside(trace: Trace, sites: Sequence[str]) -> None:
    """Have a trace keep sites that come after its layers."""
    if sites:
        trace.kept_values |= {(site, None): value for site, value in rerun_layer(trace, None, sites).items()}
