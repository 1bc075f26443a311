"""Runs layers of a trace again from their recorded inputs: one layer, some rows of its attention, or all layers in turn."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import closing

import torch
from einops import einsum
from torch import Tensor

from gemmascope.arguments import is_whole
from gemmascope.edits.places import Head, Pos, find_heads, find_positions
from gemmascope.errors import SiteError, TraceError
from gemmascope.memory.limits import explain_oom, require_free_memory
from gemmascope.model.attention import attend_of
from gemmascope.model.gemma2 import Layer
from gemmascope.model.maths import soft_cap
from gemmascope.model.model import Model
from gemmascope.model.tap import Tap
from gemmascope.model.weight_digests import UNVERIFIED
from gemmascope.run.finite import require_logits
from gemmascope.run.reading.layer_cache import bytes_of_site, n_bytes_of
from gemmascope.run.recorded import RecordedRun
from gemmascope.run.taps import LayerRecorder, Recorder
from gemmascope.sites import EDGE_SITES, LAYER_SITES, SITES, Address, Site, SiteKey, find, find_site
from gemmascope.values import moved

# How far a layer that runs again may differ from the run, in units of the dtype's precision and of the largest value.
ROUNDING = 16


def replay(trace: RecordedRun, sites: Collection[str | tuple[str, int]]) -> Iterator[tuple[Layer, dict[str, Tensor]]]:
    """Each layer of a trace with the values of the given sites, as t[site, layer] returns them.

    One stream of the weights serves all layers, where t[site, layer] would fetch a streamed layer each time.

    Args:
        trace: The run.
        sites: Names of sites, read in every layer, or (site, layer), read in that layer alone.

    Yields:
        The layer and its sites by name. A layer is valid until the next one is requested, and no other pass may begin before
        then. The values are read-only: they may be the trace's own.

    Raises:
        SiteError: A site is not inside the layers. Raised before any layer runs.
    """
    requested = [(_in_layers(site), None) if isinstance(site, str) else _at(trace, site) for site in sites]
    return _replay(trace, requested)


def _replay(trace: RecordedRun, requested: Collection[SiteKey]) -> Iterator[tuple[Layer, dict[str, Tensor]]]:
    with closing(trace.model.layers()) as layers:
        for layer in layers:
            yield layer, run_again(trace, layer, [site for site, only in requested if only in (None, layer.index)])


def run_again(trace: RecordedRun, layer: Layer, sites: Collection[str]) -> dict[str, Tensor]:
    """The values of some sites of a layer, from running it again with the run's edits."""
    trace.require_weights(layer.index)
    recorder = LayerRecorder(sites, edits_edges=trace.edits_at(layer.index, EDGE_SITES))
    with torch.no_grad(), explain_oom(trace.model):
        layer(trace.residuals[layer.index], trace.layout, trace.tap(recorder).at(layer.index, trace.layout))
        return recorder.of(layer)


def edited_layers(trace: RecordedRun, *sites: str) -> list[int]:
    """The layers in which an edit writes to one of these sites."""
    return [layer for layer in range(trace.model.n_layers) if trace.edits_at(layer, sites)]


def _at(trace: RecordedRun, site: tuple[str, int]) -> SiteKey:
    address = find(site, trace.model.n_layers)
    return _in_layers(address.site.name), address.layer


def _in_layers(site: str) -> str:
    if not find_site(site).in_layer:
        raise SiteError(f"{site!r} is not in the layers; those that are: {', '.join(LAYER_SITES)}")
    return site


def read_site(trace: RecordedRun, site: Site, layer: int | None) -> Tensor:
    """A copy of the value of a site: a stored entry of the stream, or computed by running the layer again."""
    found = known(trace, site.name, layer)
    if found is not None:
        return found.to(trace.model.device, copy=True)
    if site.is_edges and layer is not None and not trace.edits_at(layer, EDGE_SITES):
        return _read_edges_of_layer(trace, site, layer)
    values, is_cached = _read_by_rerun(trace, [site], layer)
    if is_cached:
        return values[site.name].to(trace.model.device, copy=True)
    return moved(values[site.name], trace.model.device)  # not cached, so the caller owns it: no copy


def _read_by_rerun(trace: RecordedRun, sites: Sequence[Site], layer: int | None) -> tuple[dict[str, Tensor], bool]:
    """Sites that are in the cache, or are computed with their neighbours; and whether they are the cache's own now."""
    cached = trace.layer_cache.get(layer)
    if all(site.name in cached for site in sites):
        return cached, True
    computed = rerun_layer(trace, layer, sites_to_record(trace, sites, layer))
    if not trace.layer_cache.fits(n_bytes_of({**cached, **computed}.values())):
        return computed, False
    return trace.layer_cache.add(layer, computed), True


def _read_edges_of_layer(trace: RecordedRun, site: Site, layer: int) -> Tensor:
    """An edge site without edits, from the layer's rotated queries and keys: these are cached far more cheaply."""
    _require_memory(trace, [site.name])
    value = edges_of_known(trace, site, layer)
    if value is None:
        values, _ = _read_by_rerun(trace, [SITES["q_rot"], SITES["k_rot"]], layer)
        value = _edges(trace, site, layer, values["q_rot"], values["k_rot"])
    cached = trace.layer_cache.get(layer)
    if not trace.layer_cache.fits(n_bytes_of([*cached.values(), value])):
        return moved(value, trace.model.device)
    return trace.layer_cache.add(layer, {site.name: value})[site.name].to(trace.model.device, copy=True)


def edges_of_known(trace: RecordedRun, site: Site, layer: int) -> Tensor | None:
    """An edge site without edits, if the layer's rotated queries and keys are known; else None."""
    q, k = (known(trace, name, layer) for name in ("q_rot", "k_rot"))
    return None if q is None or k is None else _edges(trace, site, layer, q, k)


def _edges(trace: RecordedRun, site: Site, layer: int, q: Tensor, k: Tensor) -> Tensor:
    with torch.no_grad(), explain_oom(trace.model):
        return attend_of(trace.model.config, layer).edges(site.name, q, k)


def known(trace: RecordedRun, site: str, layer: int | None) -> Tensor | None:
    """The trace's own tensor of a site that needs no layer to run: kept, cached, or an entry of the stream; else None."""
    kept = trace.kept_values.get((site, layer))
    if kept is not None:
        return kept
    stored = _stored(trace, site, layer)
    return trace.layer_cache.get(layer).get(site) if stored is None else stored


def _stored(trace: RecordedRun, site: str, layer: int | None) -> Tensor | None:
    """A site that is an entry of the stream, which is stored as it was before the edits at resid_pre."""
    if site == "embed":
        return trace.residuals[0]
    if layer is None or site not in ("resid_pre", "resid_post"):
        return None
    if site == "resid_post":
        return trace.residuals[layer + 1]
    return None if trace.edits_at(layer, ("resid_pre",)) else trace.residuals[layer]


def sites_to_record(trace: RecordedRun, requested: Sequence[Site], layer: int | None) -> list[str]:
    """The sites to record when a layer runs again for some: if they are small, those that it makes anyway too."""
    neighbours = [
        s
        for s in SITES.values()
        if s.in_layer == (layer is not None) and not s.is_edges and s.name not in ("embed", "head_out")
    ]
    n_bytes = sum(bytes_of_site(trace.model, s, len(trace)) for s in neighbours)
    wanted = [s.name for s in requested]
    return list(dict.fromkeys([*wanted, *(s.name for s in neighbours if trace.layer_cache.fits(2 * n_bytes))]))


def rerun_layer(trace: RecordedRun, layer: int | None, sites: Sequence[str]) -> dict[str, Tensor]:
    """The values of some sites of a layer (None: of what follows the layers), from running it again with the run's edits."""
    _require_memory(trace, sites)
    trace.require_weights(layer)
    if layer is not None:
        with closing(trace.model.network.single(layer)) as layers:
            for module in layers:
                values = run_again(trace, module, sites)
            return values
    recorder = Recorder(sites)
    with torch.no_grad(), explain_oom(trace.model):
        trace.model.network.unembed(trace.residuals[-1], trace.tap(recorder).at(None, trace.layout))
        values = recorder.by_name()
        if "logits" in values and len(wrong := torch.nonzero(~torch.isfinite(values["logits"].amax(-1)))):
            pos = int(wrong[0])
            require_logits(trace.model, trace.ids, values["logits"][pos], trace.residuals[-1][pos], pos, trace.bound_edits)
    return values


def _run_single(trace: RecordedRun, layer: int, tap: Tap) -> Tensor:
    """The output of one layer, run again with the run's edits."""
    with closing(trace.model.network.single(layer)) as layers:
        for module in layers:
            output: Tensor = module(trace.residuals[layer], trace.layout, trace.tap(tap).at(layer, trace.layout))
        return output


def _require_memory(trace: RecordedRun, names: Sequence[str]) -> None:
    """BudgetError if logits, scores or patterns of a long prompt exceed the free memory."""
    size = trace.model.config.size_of
    wide = [SITES[name] for name in names if SITES[name].is_edges or "vocab" in SITES[name].axes]
    n_bytes = 2 * 4 * sum(torch.Size(size(axis, len(trace)) for axis in site.axes).numel() for site in wide)
    if n_bytes:
        do = "t.next_logits, t.top(pos=) and t.lens(pos=) take one position"
        do = "t.edges(head=, q_pos=) gives some of the rows" if wide[0].is_edges else do
        what = f"{' and '.join(site.name for site in wide)} of all {len(trace)} positions"
        require_free_memory(n_bytes, trace.model.device, what, do)


def require_run_weights(trace: RecordedRun, part: int | None) -> None:
    """TraceError if the weights of a layer (None: embedding and last norm) changed since the run."""
    trace.model.network.check()
    place = -1 if part is None else part
    mark, now = trace.marks[place], trace.model.weights.mark(part)
    if now == mark.removeprefix(UNVERIFIED):
        return
    if part is not None and mark.startswith(UNVERIFIED) and reproduces_run(trace, part):  # changed before the run
        trace.marks = tuple(now if at == part else one for at, one in enumerate(trace.marks))
    else:
        raise weights_changed_error(trace.model, part)


def reproduces_run(trace: RecordedRun, layer: int) -> bool:
    """Whether a layer still turns its recorded input into its recorded output, up to rounding."""
    with torch.no_grad():
        now = _run_single(trace, layer, Tap())
    before = moved(trace.residuals[layer + 1], now.device)
    allowed = ROUNDING * torch.finfo(before.dtype).eps * float(before.abs().max())
    return bool((now - before).abs().max() <= allowed)


def read_edges(trace: RecordedRun, address: Address, head: Head, q_pos: Pos) -> Tensor:
    """Some heads' rows of an edge site, without the axis of a single head or query position. SiteError for another site."""
    if not address.site.is_edges:
        name = address.site.name
        raise SiteError(
            f"'{name}' has no edges; those that do are {', '.join(EDGE_SITES)}. Read it as t[{name!r}, {address.layer}]"
        )
    assert address.layer is not None
    heads, rows = find_heads(head, address.site, trace.model), find_positions(q_pos, trace.model, trace.ids)
    assert heads is not None
    whole = trace.model.network.n_processes > 1 or trace.edits_at(address.layer, EDGE_SITES)
    if whole or known(trace, address.site.name, address.layer) is not None:
        value = trace.read(address.site, address.layer)[heads][:, rows]
    else:
        value = _compute_edges(trace, address.site.name, address.layer, heads, rows)
    return value[0 if is_single(head) else slice(None)][..., 0 if is_single(q_pos) else slice(None), :]


def _compute_edges(trace: RecordedRun, site: str, layer: int, heads: list[int], rows: list[int]) -> Tensor:
    trace.require_weights(layer)
    with torch.no_grad(), closing(trace.model.network.single(layer)) as layers:
        for module in layers:
            value = _edges_of(trace, module, site, heads, rows)
        return moved(value, trace.model.device)


def _edges_of(trace: RecordedRun, module: Layer, site: str, heads: list[int], rows: list[int]) -> Tensor:
    tap = trace.tap(Tap()).at(module.index, trace.layout)
    attend, group = module.self_attn.attend, trace.model.config.heads_per_kv
    x, layout, tap = module.bring(trace.residuals[module.index], trace.layout, tap)
    attn_in, _ = module.input_layernorm.tapped(tap("resid_pre", x), "attn_in_scale", tap)
    x = tap("attn_in", attn_in)
    q, k, _ = module.self_attn.queries_keys_values(x, layout, tap)
    q, k = q[rows][:, heads], k[:, [head // group for head in heads]]
    value = einsum(q * attend.scale, k, "q_pos head d, k_pos head d -> head q_pos k_pos")
    if site != "scores":
        value = soft_cap(value, attend.cap)
    if site == "pattern":
        positions = layout.positions
        value = attend.pattern(value, positions[rows], positions, k.dtype)
    return value


def is_single(place: object) -> bool:
    """Whether a user named one head or position rather than several: a whole number of any kind, or a token."""
    return isinstance(place, str) or is_whole(place)


def weights_changed_error(model: Model, part: int | None) -> TraceError:
    """The error for a run whose weights changed since. part: the layer, or None for the embedding and the last norm."""
    what = "the embedding or the last norm" if part is None else f"layer {part}"
    return TraceError(
        f"the weights of {what} of {model.name!r} changed since this run, so what it did there cannot be run "
        "again. Run it again: gs.trace(t.ids, model=t.model). What it kept can be read: t['resid_post', layer]"
    )
