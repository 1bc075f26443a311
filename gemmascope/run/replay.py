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
from gemmascope.model.maths import root_mean_square, soft_cap
from gemmascope.model.model import Model
from gemmascope.model.tap import Tap
from gemmascope.model.weight_digests import UNVERIFIED
from gemmascope.run.finite import require_logits
from gemmascope.run.reading.layer_cache import MADE_ANYWAY, bytes_of_site, n_bytes_of
from gemmascope.run.recorded import RecordedRun
from gemmascope.run.taps import LayerRecorder, Recorder
from gemmascope.sites import EDGE_SITES, LAYER_SITES, SITES, Address, Site, SiteKey, find, find_site
from gemmascope.values import moved

# How far a layer that runs again may differ from the run, in units of the dtype's precision and of the largest value.
ROUNDING = 16

# What each norm of a layer divides, by the site of its scale.
NORMED_SITE = {
    "attn_in_scale": "resid_pre", "attn_out_scale": "attn_raw", "mlp_in_scale": "resid_mid", "mlp_out_scale": "mlp_raw",
}  # fmt: skip


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
    """A copy of the value of a site: one that the trace has, or computed by running the layer again."""
    if (found := known(trace, site.name, layer)) is not None:
        return found.to(trace.model.device, copy=True)
    if site.is_edges:
        _require_memory(trace, [site.name])
    if (found := value_of_known(trace, site, layer)) is not None:
        return moved(found, trace.model.device)
    values = rerun_layer(trace, layer, sites_to_record(trace, site, layer))
    to_cache = without_computable(trace, site, layer, values)
    is_small = trace.layer_cache.fits(n_bytes_of({**trace.layer_cache.get(layer), **to_cache}.values()))
    if is_small and site.name in trace.layer_cache.add(layer, to_cache):
        return values[site.name].to(trace.model.device, copy=True)
    return moved(values[site.name], trace.model.device)  # not cached, so the caller owns it: no copy


def inputs_of(trace: RecordedRun, site: Site, layer: int | None) -> tuple[str, ...]:
    """The sites from which a site is computed without weights: an edge site, or the scale of a norm. Empty for others, and
    where an edit writes to it.

    Such a site is cheap, and not cached: edge sites have many bytes.
    """
    if layer is None:
        return ()
    if site.is_edges:
        return () if trace.edits_at(layer, EDGE_SITES) else ("q_rot", "k_rot")
    return (NORMED_SITE[site.name],) if site.is_scale and not trace.edits_at(layer, (site.name,)) else ()


def value_of_known(trace: RecordedRun, site: Site, layer: int | None) -> Tensor | None:
    """A site that is computed without weights, if what it is computed from is known; else None."""
    inputs = [known(trace, name, layer) for name in inputs_of(trace, site, layer)]
    found = [value for value in inputs if value is not None]
    if layer is None or not found or len(found) < len(inputs):
        return None
    with torch.no_grad(), explain_oom(trace.model):
        if site.is_scale:
            return root_mean_square(found[0], trace.model.config.norm_eps)
        return attend_of(trace.model.config, layer).edges(site.name, *found)


def without_computable(trace: RecordedRun, site: Site, layer: int | None, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The values of a layer that ran again for a site, without that site if it is computed from the others."""
    computable = bool(inputs_of(trace, site, layer))
    return {name: value for name, value in values.items() if name != site.name or not computable}


def known(trace: RecordedRun, site: str, layer: int | None) -> Tensor | None:
    """The trace's own tensor of a site that needs no layer to run: kept, cached, or an entry of the stream; else None."""
    kept = trace.kept_values.get((site, layer))
    if kept is not None:
        return kept
    if (stored := _stored(trace, site, layer)) is not None:
        return stored
    found = trace.layer_cache.get(layer).get(site)
    if found is not None and trace.layer_cache.needs_check(layer):
        trace.require_weights(layer)  # once, as before a layer runs again, so that a change is noticed either way
        trace.layer_cache.checked(layer)
    return found


def _stored(trace: RecordedRun, site: str, layer: int | None) -> Tensor | None:
    """A site that is an entry of the stream, which is stored as it was before the edits at resid_pre."""
    if site == "embed":
        return trace.residuals[0]
    if layer is None or site not in ("resid_pre", "resid_post"):
        return None
    if site == "resid_post":
        return trace.residuals[layer + 1]
    return None if trace.edits_at(layer, ("resid_pre",)) else trace.residuals[layer]


def sites_to_record(trace: RecordedRun, site: Site, layer: int | None) -> list[str]:
    """The sites to record when a layer runs again for one: if they are small, those that it makes anyway too."""
    neighbours = MADE_ANYWAY if layer is not None else [s for s in SITES.values() if not s.in_layer and s.name != "embed"]
    n_bytes = sum(bytes_of_site(trace.model, s, len(trace)) for s in neighbours)
    wanted = [site.name, *inputs_of(trace, site, layer)]
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
    q, k = (known(trace, name, layer) for name in ("q_rot", "k_rot"))
    with torch.no_grad():
        if q is None or k is None:
            q, k = _queries_and_keys(trace, layer)
        attend, group = attend_of(trace.model.config, layer), trace.model.config.heads_per_kv
        q, k = q[rows][:, heads], k[:, [head // group for head in heads]]
        value = einsum(q * attend.scale, k, "q_pos head d, k_pos head d -> head q_pos k_pos")
        if site != "scores":
            value = soft_cap(value, attend.cap)
        if site == "pattern":
            positions = torch.arange(len(k), device=k.device)
            value = attend.pattern(value, positions[rows], positions, k.dtype)
        return moved(value, trace.model.device)


def _queries_and_keys(trace: RecordedRun, layer: int) -> tuple[Tensor, Tensor]:
    """q_rot and k_rot, from the layer's weights; its MLP does not run."""
    trace.require_weights(layer)
    with closing(trace.model.network.single(layer)) as layers:
        for module in layers:
            tap = trace.tap(Tap()).at(layer, trace.layout)
            x, layout, tap = module.bring(trace.residuals[layer], trace.layout, tap)
            attn_in, _ = module.input_layernorm.tapped(tap("resid_pre", x), "attn_in_scale", tap)
            q, k, _ = module.self_attn.queries_keys_values(tap("attn_in", attn_in), layout, tap)
        return q, k


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
