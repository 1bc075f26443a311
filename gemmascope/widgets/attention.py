"""gs.attention_view: who attends to whom, head by head and layer by layer, of one prompt or of two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gemmascope.errors import SiteError
from gemmascope.run.replay import replay
from gemmascope.run.trace import Trace
from gemmascope.sites import find_layer
from gemmascope.tokens import shown
from gemmascope.widgets.packing import Packed, probabilities, seen_rows
from gemmascope.widgets.page import View

# What the patterns of a view may take, in bytes of its page; layers beyond it are left out, and the view says so.
MOST_BYTES = 1_200_000


def attention_view(
    trace: Trace,
    *,
    compare: Trace | None = None,
    layer: int | None = None,
    head: int = 0,
    layers: Sequence[int] | None = None,
    bos: bool = False,
) -> View:
    """A picture of attention: all heads of a layer small, one of them large, with exact values under the pointer.

    compare: the trace of a second prompt, shown beside it; of prompts of one length their difference as well. layer, head:
    what is large at first; by default the first layer. layers: which to hold; None for all, as far as MOST_BYTES go. bos:
    whether colours take in the first position, on which much attention rests. SiteError for what is not there.
    """
    for name, given in (("trace", trace), ("compare", compare)):
        if not isinstance(given, Trace) and not (name == "compare" and given is None):
            raise SiteError(f"{name} is a trace, gs.trace(prompt); given {type(given).__name__}")
    if compare is not None and compare.model.config != trace.model.config:
        raise SiteError(f"compare is a trace of {compare.model.name!r}, whose shape is not that of {trace.model.name!r}")
    config = trace.model.config
    if isinstance(head, bool) or not isinstance(head, int) or not 0 <= head < config.n_heads:
        raise SiteError(f"there is no head {head!r}: heads go from 0 to {config.n_heads - 1}")
    wanted = [find_layer(n, config.n_layers) for n in (range(config.n_layers) if layers is None else layers)]
    first = wanted[0] if layer is None else find_layer(layer, config.n_layers)
    if first not in wanted:
        raise SiteError(f"layer {first} is not among layers={wanted}")
    order = [first, *(n for n in wanted if n != first)]
    arrays, held = _patterns({"first": trace, "second": compare}, order)
    spec = _spec(trace, compare, sorted(held), first, head, bos, left_out=len(order) - len(held))
    return View(spec, arrays, _summary(trace, spec))


def _patterns(traces: dict[str, Trace | None], order: list[int]) -> tuple[dict[str, Packed], list[int]]:
    """The packed patterns by name and layer, and the layers that there was room for; the first one always has it."""
    rows: dict[int, dict[str, Packed]] = {n: {} for n in order}
    for name, trace in traces.items():
        if trace is None:
            continue
        for layer, values in replay(trace, ["pattern"]):
            if layer.index in rows:
                seen = seen_rows(values["pattern"].float().cpu().numpy(), trace.model.config.window_of(layer.index))
                rows[layer.index][f"{name}{layer.index}"] = probabilities(seen)
    arrays: dict[str, Packed] = {}
    held: list[int] = []
    room = MOST_BYTES
    for n in order:
        room -= sum(len(packed["data"]) for packed in rows[n].values())
        if room < 0 and held:
            break
        arrays |= rows[n]
        held.append(n)
    return arrays, held


def _spec(
    trace: Trace, compare: Trace | None, held: list[int], first: int, head: int, bos: bool, left_out: int
) -> dict[str, Any]:
    infos = [trace.layers[n] for n in held]
    spec: dict[str, Any] = {
        "view": "attention",
        "id": "gs-attention",
        "title": f"Attention in {trace.model.name}",
        "layers": [{"index": info.index, "kind": info.kind, "window": info.window} for info in infos],
        "layer": held.index(first),
        "head": head,
        "n_heads": trace.model.config.n_heads,
        "bos": bool(bos),
        **_tokens(trace),
    }
    if left_out:
        spec["note"] = f"{left_out} layers are left out for the size of the page: layers=[...] chooses others."
    if compare is not None:
        spec["other"], spec["same"] = _tokens(compare), len(compare) == len(trace)
        if not spec["same"]:
            lengths = f"The prompts have {len(trace)} and {len(compare)} tokens, so there is no difference to show."
            spec["note"] = f"{lengths} {spec.get('note', '')}".strip()
    return spec


def _tokens(trace: Trace) -> dict[str, Any]:
    tokenizer = trace.model.tokenizer if trace.model.has_tokenizer else None
    special = [tokenizer is not None and tokenizer.is_special(i) for i in trace.ids.tolist()]
    return {"tokens": trace.tokens, "special": special}


def _summary(trace: Trace, spec: dict[str, Any]) -> str:
    kinds = ", ".join(f"{layer['index']} {layer['kind']}" for layer in spec["layers"])
    text = " ".join(shown(token) for token in trace.tokens)
    return f"{len(trace)} tokens: {text}. Layers {kinds}; {spec['n_heads']} heads each."
