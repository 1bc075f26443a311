"""Layers of a trace that run again from what entered them: one with the sites asked for, or some rows of its edges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from einops import einsum
from torch import Tensor

from gemmascope.arguments import is_whole
from gemmascope.edits.places import Head, Pos, find_heads, find_positions
from gemmascope.errors import TraceError
from gemmascope.memory.limits import explain_oom, require_free_memory
from gemmascope.model.maths import soft_cap
from gemmascope.model.model import Model
from gemmascope.model.tap import Tap
from gemmascope.run import kept_layers
from gemmascope.run.finite import require_logits
from gemmascope.run.passes import Keeping
from gemmascope.sites import EDGE_SITES, SITES, Address, Site

if TYPE_CHECKING:
    from gemmascope.run.trace import Trace

# How far a layer that runs again may be off the run, in units of the number format's precision and of the largest value.
ROUNDING = 16


def worth_keeping(trace: Trace, asked: Site, layer: int | None) -> list[str]:
    """The sites to keep from a re-run: those of the layer that come with the one asked for, if they are small.

    Edge sites come apart from the others: a layer that makes them whole does not go in chunks as the pass did, and
    rounds differently in what follows.
    """
    others = [
        s
        for s in SITES.values()
        if s.in_layer == (layer is not None) and s.is_edges == asked.is_edges and s.name not in ("embed", "head_out")
    ]
    size = trace.model.config.size_of
    n_bytes = 4 * sum(torch.Size(size(axis, len(trace)) for axis in s.axes).numel() for s in others)
    return list({asked.name, *(s.name for s in others if 2 * n_bytes <= kept_layers.KEEP_WHOLE_LAYER)})


def run_layer(trace: Trace, layer: int | None, sites: Sequence[str]) -> dict[str, Tensor]:
    _require_wide(trace, sites)
    trace.require_weights(layer)
    keeping = Keeping(sites)
    with torch.no_grad(), explain_oom(trace.model):
        if layer is None:
            trace.model.network.unembed(trace.residuals[-1], trace.tap(keeping).at(None, trace.layout))
        else:
            trace.model.layer(layer)(trace.residuals[layer], trace.layout, trace.tap(keeping).at(layer, trace.layout))
        found = {name: value for (name, _), value in keeping.kept[0].items()}
        if "logits" in found and len(wrong := torch.nonzero(~torch.isfinite(found["logits"].amax(-1)))):
            pos = int(wrong[0])
            require_logits(trace.model, trace.ids, found["logits"][pos], trace.residuals[-1][pos], pos, trace.bound_edits)
    return found


def _require_wide(trace: Trace, names: Sequence[str]) -> None:
    """BudgetError for logits of a long prompt, or scores and patterns, that what is free does not hold."""
    size = trace.model.config.size_of
    wide = [SITES[name] for name in names if SITES[name].is_edges or "vocab" in SITES[name].axes]
    n_bytes = 2 * 4 * sum(torch.Size(size(axis, len(trace)) for axis in site.axes).numel() for site in wide)
    if n_bytes:
        do = "t.next_logits, t.top(pos=) and t.lens(pos=) take one position"
        do = "t.edges(head=, q_pos=) gives some of the rows" if wide[0].is_edges else do
        what = f"{' and '.join(site.name for site in wide)} of all {len(trace)} positions"
        require_free_memory(n_bytes, trace.model.device, what, do)


def runs_as_before(trace: Trace, layer: int) -> bool:
    """Whether a layer makes of what entered it what left it in the run, but for rounding."""
    before = trace.residuals[layer + 1]
    with torch.no_grad():
        now = trace.model.layer(layer)(trace.residuals[layer], trace.layout, trace.tap(Tap()).at(layer, trace.layout))
    allowed = ROUNDING * torch.finfo(before.dtype).eps * float(before.abs().max())
    return bool((now - before).abs().max() <= allowed)


def some_edges(trace: Trace, site: str, layer: int, heads: list[int], rows: list[int]) -> Tensor:
    trace.require_weights(layer)
    module, tap = trace.model.layer(layer), trace.tap(Tap()).at(layer, trace.layout)
    attend, group = module.self_attn.attend, trace.model.config.heads_per_kv
    with torch.no_grad():
        x = tap("attn_in", module.input_layernorm(tap("resid_pre", trace.residuals[layer])))
        q, k, _ = module.self_attn.queries_keys_values(x, trace.layout, tap)
        q, k = q[rows][:, heads], k[:, [head // group for head in heads]]
        value = einsum(q * attend.scale, k, "q_pos head d, k_pos head d -> head q_pos k_pos")
        if site != "scores":
            value = soft_cap(value, attend.cap)
        if site == "pattern":
            positions = trace.layout.positions
            value = attend.pattern(value, positions[rows], positions, k.dtype)
    return value


def edges_of(trace: Trace, address: Address, head: Head, q_pos: Pos) -> Tensor:
    """Some heads' rows of an edge site. A single head or query position drops its axis."""
    assert address.layer is not None
    heads, rows = find_heads(head, address.site, trace.model), find_positions(q_pos, trace.model, trace.ids)
    assert heads is not None
    if address.site.name in trace.rerun.found(address.layer) or trace.edits_at(address.layer, EDGE_SITES):
        value = trace.read(address.site, address.layer)[heads][:, rows]
    else:
        value = some_edges(trace, address.site.name, address.layer, heads, rows)
    return value[0 if is_one(head) else slice(None)][..., 0 if is_one(q_pos) else slice(None), :]


def is_one(place: Any) -> bool:
    """Whether a head or position is one rather than several: a number of any kind, or a token."""
    return isinstance(place, str) or is_whole(place)


def unembed_at(trace: Trace, pos: int) -> Tensor:
    """The logits of one position, with the edits that come after the layers."""
    if any(edit.address.layer is None and edit.address.site.name != "embed" for edit in trace.bound_edits):
        return trace["logits"][pos]
    trace.require_weights(None)
    with torch.no_grad():
        row = trace.residuals[-1][pos]
        logits = trace.model.network.unembed(row[None])[0]
        require_logits(trace.model, trace.ids, logits, row, pos, trace.bound_edits)
        return logits


def changed(model: Model, part: int | None) -> TraceError:
    """The error of a run whose weights are others now."""
    what = "the embedding or the last norm" if part is None else f"layer {part}"
    return TraceError(
        f"the weights of {what} of {model.name!r} changed since this run, so what it did there cannot be run "
        "again. Run it again: gs.trace(t.ids, model=t.model). What it kept can be read: t['resid_post', layer]"
    )


def run_the_end(trace: Trace) -> None:
    """Run what follows the layers, if a function is to be asked there: once, as it is in the layers."""
    if any(bound.written is not None and bound.address.layer is None for bound in trace.bound_edits):
        run_layer(trace, None, ["logits"])
