"""gs.attention_view: who attends to whom, head by head and layer by layer, of one prompt or of two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gemmascope.arguments import as_numbers, is_whole, true_or_false
from gemmascope.arguments import shown as quoted
from gemmascope.edits.places import find_heads
from gemmascope.errors import SiteError
from gemmascope.run.replay import replay
from gemmascope.run.trace import Trace
from gemmascope.sites import find_layer, find_site
from gemmascope.tokens.tokenizer import shown
from gemmascope.views.labels import require_trace, special_of
from gemmascope.views.packing import PackedLayer, probabilities, seen_numbers, seen_rows
from gemmascope.views.page import View

# What the patterns of a view may take, in bytes of its page: layers beyond it are left out, and the view says which. One
# layer alone may take as much as a page can hold.
MOST_BYTES = 1_200_000
LARGEST_LAYER = 16_000_000

Rows = dict[str, PackedLayer]


def attention_view(
    trace: Trace,
    *,
    compare: Trace | None = None,
    layer: int | None = None,
    head: int | None = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    bos: bool = False,
) -> View:
    """A picture of attention: all heads of a layer small, one of them large, with its values under the pointer.

    compare: the trace of a second prompt, shown beside it; of prompts of one length their difference as well. layer, head:
    what is large at first; by default the first. layers, heads: which to hold; None for all heads, and for as many layers
    as MOST_BYTES hold (the view names the others). bos: whether colours take in the first position, on which much
    attention rests. Values are held in steps of 1/65535.
    SiteError for what is not there, for a trace of a model of another shape, and for a layer too large for a page.
    """
    require_trace(trace, "trace")
    bos = true_or_false(bos, "bos", error=SiteError)
    if compare is not None:
        require_trace(compare, "compare")
        if compare.model.config != trace.model.config:
            raise SiteError(f"compare is of {compare.model.name!r}, whose shape is not that of {trace.model.name!r}")
    n_layers = trace.model.config.n_layers
    wanted = _layers(layers, n_layers)
    first = wanted[0] if layer is None else find_layer(layer, n_layers)
    if first not in wanted:
        raise SiteError(f"layer {first} is not among layers={wanted}")
    held_heads = sorted(find_heads(heads, find_site("pattern"), trace.model) or [])
    large = held_heads[0] if head is None else (find_heads(head, find_site("pattern"), trace.model) or [0])[0]
    if large not in held_heads:
        raise SiteError(f"head {large} is not among heads={held_heads}")
    traces = {"first": trace} if compare is None else {"first": trace, "second": compare}
    rows, table = _shown_at_first(traces, first, held_heads)
    rows |= _others(traces, first, wanted, held_heads, rows)
    held = [n for n in wanted if f"first{n}" in rows]
    spec = _spec(traces, wanted, held, held_heads)
    spec |= {"layer": held.index(first), "head": held_heads.index(large), "bos": bos}
    return View(spec, rows, _summary(trace, spec, first), table)


def _layers(layers: Any, n_layers: int) -> list[int]:
    if layers is None:
        return list(range(n_layers))
    if is_whole(layers) or not (found := as_numbers(layers)):
        raise SiteError(f"layers is a list of numbers, at least one; given {quoted(layers)}")
    return sorted({find_layer(n, n_layers) for n in found})


def _shown_at_first(traces: dict[str, Trace], layer: int, heads: list[int]) -> tuple[Rows, list[list[str]]]:
    """The patterns of the layer that is shown at first, and a small table of them for where there is no picture."""
    rows: Rows = {}
    table: list[list[str]] = []
    window = traces["first"].model.config.window_of(layer)
    for trace in traces.values():
        _require_room(trace, layer, window, len(heads))
    for name, trace in traces.items():
        pattern = trace["pattern", layer][heads].float().cpu().numpy()
        rows[f"{name}{layer}"] = probabilities(seen_rows(pattern, window))
        table = table or _most_seen(trace, heads, pattern)
    return rows, table


def _require_room(trace: Trace, layer: int, window: int | None, n_heads: int) -> None:
    size = 2 * n_heads * seen_numbers(len(trace), window)
    if size > LARGEST_LAYER:
        raise SiteError(
            f"layer {layer} of {len(trace)} positions and {n_heads} heads is {size / 1e6:.0f} MB, and a page holds "
            f"{LARGEST_LAYER / 1e6:.0f}: give some of the heads (heads=[0, 1]), or trace a shorter prompt"
        )


def _most_seen(trace: Trace, heads: list[int], pattern: np.ndarray[Any, Any]) -> list[list[str]]:
    """What the last position looks at most in each head, the first position left aside."""
    after = 1 if len(trace) > 1 else 0
    rows = [["head", f"sees most from the last position ({shown(trace.tokens[-1])})", "probability"]]
    for head, one in zip(heads, pattern[:, -1, after:], strict=True):
        at = int(one.argmax()) + after
        rows.append([str(head), f"{at}: {shown(trace.tokens[at])}", f"{one.max():.4f}"])
    return rows


def _others(traces: dict[str, Trace], first: int, wanted: list[int], heads: list[int], there: Rows) -> Rows:
    """The patterns of the other layers, in order, as far as there is room for them."""
    room = MOST_BYTES - _bytes(there.values())
    chosen = _fitting(traces, first, wanted, there, room)
    found: dict[int, Rows] = {n: {} for n in chosen}
    for name, trace in traces.items():
        for n, pattern in _patterns(trace, chosen):
            seen = seen_rows(pattern[heads].float().cpu().numpy(), trace.model.config.window_of(n))
            found[n][f"{name}{n}"] = probabilities(seen)
    rows: Rows = {}
    for n in chosen:  # what was expected to fit may turn out larger
        room -= _bytes(found[n].values())
        if room < 0:
            break
        rows |= found[n]
    return rows


def _fitting(traces: dict[str, Trace], first: int, wanted: list[int], there: Rows, room: int) -> list[int]:
    """Which layers may fit, going by nine tenths of the first one's bytes a number: the others are not computed."""

    def numbers(n: int) -> int:
        return sum(seen_numbers(len(trace), trace.model.config.window_of(n)) for trace in traces.values())

    each = 0.9 * _bytes(there.values()) / numbers(first)
    chosen = []
    for n in wanted:
        if n != first and (room := room - int(each * numbers(n))) >= 0:
            chosen.append(n)
        elif n != first:
            break
    return chosen


def _patterns(trace: Trace, layers: list[int]) -> Iterator[tuple[int, Any]]:
    if not layers:
        return
    for layer, values in replay(trace, [("pattern", n) for n in layers]):
        if "pattern" in values:
            yield layer.index, values["pattern"]
        if layer.index == max(layers):
            return  # the layers after it may have to be brought from files


def _bytes(rows: Any) -> int:
    return sum(len(packed["data"]) for packed in rows)


def _spec(traces: dict[str, Trace], wanted: list[int], held: list[int], heads: list[int]) -> dict[str, Any]:
    trace, compare = traces["first"], traces.get("second")
    infos = [trace.layers[n] for n in held]
    spec: dict[str, Any] = {
        "view": "attention",
        "title": f"Attention in {trace.model.name}",
        "layers": [{"index": info.index, "kind": info.kind, "window": info.window} for info in infos],
        "heads": heads,
        "tokens": trace.tokens,
        "special": special_of(trace),
    }
    notes = []
    if compare is not None:
        spec["other"] = {"tokens": compare.tokens, "special": special_of(compare)}
        spec["same"] = len(compare) == len(trace)
        if not spec["same"]:
            notes.append(f"The prompts have {len(trace)} and {len(compare)} tokens, so there is no difference to show.")
    if left_out := [n for n in wanted if n not in held]:
        some = f"layers={left_out[:2]} ..." if len(left_out) > 2 else f"layers={left_out}"
        notes.append(
            f"Left out for the size of the page: layers {_ranges(left_out)}. attention_view(trace, {some}) shows them."
        )
    return {**spec, "note": " ".join(notes)} if notes else spec


def _ranges(numbers: list[int]) -> str:
    """Numbers as people write them: '2, 4 to 7'."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)


def _summary(trace: Trace, spec: dict[str, Any], first: int) -> str:
    kinds = ", ".join(f"{layer['index']} {layer['kind']}" for layer in spec["layers"])
    text = " ".join(shown(token) for token in trace.tokens)
    return f"{len(trace)} tokens: {text}. Layers {kinds}; {len(spec['heads'])} heads. In layer {first}:"
