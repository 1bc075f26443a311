"""gs.attention_view: who attends to whom, head by head and layer by layer, for one prompt, two, or the mean of several."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gemmascope.arguments import as_numbers, is_whole, short_repr, true_or_false
from gemmascope.edits.places import find_heads
from gemmascope.errors import SiteError
from gemmascope.model.model import Model
from gemmascope.run.trace import Trace
from gemmascope.sites import find_layer, find_site
from gemmascope.tokens.tokenizer import visible_text
from gemmascope.views.attention_panels import Panels, Pattern, panels_of
from gemmascope.views.attention_scores import ShownScores
from gemmascope.views.labels import are_special
from gemmascope.views.packing import PackedArray, count_visible, pack_probabilities, visible_values
from gemmascope.views.page import View

# How many bytes of a page the patterns may take: layers beyond that are left out, and the view names them. A single layer
# may take as much as a page can hold.
MOST_BYTES = 1_200_000
LARGEST_LAYER = 16_000_000

# Patterns are named by panel and layer: "first0", "second0".
Patterns = dict[str, PackedArray]
Scores = dict[str, ShownScores]


def attention_view(
    trace: Trace | Sequence[Trace],
    *,
    compare: Trace | None = None,
    layer: int | None = None,
    head: int | None = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    bos: bool = False,
) -> View:
    """Attention patterns: all heads of a layer as small pictures, one of them large with its values under the pointer.

    Probabilities are rounded to multiples of 1/65535. Layers that a page has no room for are left out, and the view says
    which.

    Args:
        trace: The run to show. A list of runs of equal length is shown as the mean of their patterns, with its standard
            error beside it (the deviation over runs, n - 1, over the root of their number); positions whose tokens differ
            are marked, and the pointer shows the tokens. `gs.stack(traces, "pattern")` has the numbers.
        compare: A second run of the same model, shown beside the first; if both prompts have the same number of tokens,
            their difference is shown as well. None for one run.
        layer: The layer shown at first, negative counting from the end. None for the first of `layers`.
        head: The head shown large at first. None for the first of `heads`.
        layers: The layers to include. None for as many as fit, in order.
        heads: The heads to include. None for all.
        bos: Whether the range of the colours includes the first key, which usually draws most of the attention.

    Returns:
        The picture, self-contained.

    Raises:
        SiteError: A layer or head does not exist or is not included, runs do not align (other lengths in a list, or models
            of other shapes), or one layer alone is too large for a page.

    Examples:
        >>> view = gs.attention_view(gs.trace("Mary and John went to the store"), layer=1)
        >>> view
        Attention in nano
        8 tokens: <bos> Mary ·and ·John ·went ·to ·the ·store. Layers 0 local, 1 global, ... 4 heads. In layer 1:
        >>> view.save("attention.html")
        >>> names = [("Mary", "John"), ("Tom", "Anna"), ("Lucy", "Paul")]
        >>> prompts = [f"When {a} and {b} went to the store, {b} gave a drink to" for a, b in names]
        >>> gs.attention_view(gs.trace(prompts), layer=3)
        Attention in nano
        Mean of 3 prompts of 15 tokens each: <bos> When ≠ ·and ≠ ·went ·to ...
    """
    panels = panels_of(trace, compare)
    bos = true_or_false(bos, "bos", error=SiteError)
    model = panels.first.model
    n_layers = model.n_layers
    chosen = _find_layers(layers, n_layers)
    first = chosen[0] if layer is None else find_layer(layer, n_layers)
    if first not in chosen:
        raise SiteError(f"layer {first} is not among layers={chosen}")
    included = sorted(_find_heads(heads, model))
    large = included[0] if head is None else _find_heads(head, model)[0]
    if large not in included:
        raise SiteError(f"head {large} is not among heads={included}")
    scores = panels.scores(len(included))
    patterns, table = _first_layer(panels, first, included, scores)
    by_layer = {first: patterns} | _other_layers(panels, first, chosen, included, patterns, scores)
    shown_layers, arrays = _fitting(by_layer, first, scores)
    spec = _spec(panels, shown_layers, included) | {
        "kinds": {name: one.spec() for name, one in scores.items()},
        "layer": shown_layers.index(first),
        "head": included.index(large),
        "bos": bos,
    }
    if note := _note(panels, [n for n in chosen if n not in shown_layers]):
        spec["note"] = note
    return View(spec, arrays, _summary(panels, shown_layers, len(included), first), table)


def _find_layers(layers: object, n_layers: int) -> list[int]:
    if layers is None:
        return list(range(n_layers))
    if is_whole(layers) or not (numbers := as_numbers(layers)):
        raise SiteError(f"layers is a list of numbers, at least one; given {short_repr(layers)}")
    return sorted({find_layer(n, n_layers) for n in numbers})


def _find_heads(heads: object, model: Model) -> list[int]:
    return find_heads(heads, find_site("pattern"), model) or []


def _first_layer(panels: Panels, layer: int, heads: list[int], scores: Scores) -> tuple[Patterns, list[list[str]]]:
    """The patterns of the layer that is shown at first, and the table that stands in for the picture."""
    window = panels.first.model.config.window_of(layer)
    for length in panels.lengths:
        _require_fit(length, layer, window, len(heads))
    shown = {name: pattern for name, _, pattern in panels.patterns([layer], heads, scores)}
    patterns = {f"{name}{layer}": pack_probabilities(visible_values(one, window)) for name, one in shown.items()}
    return patterns, _table(panels, heads, shown["first"])


def _require_fit(n_pos: int, layer: int, window: int | None, n_heads: int) -> None:
    size = 2 * n_heads * count_visible(n_pos, window)
    if size > LARGEST_LAYER:
        raise SiteError(
            f"layer {layer} of {n_pos} positions and {n_heads} heads is {size / 1e6:.0f} MB, and a page holds "
            f"{LARGEST_LAYER / 1e6:.0f}: give some of the heads (heads=[0, 1]), or trace a shorter prompt"
        )


def _table(panels: Panels, heads: list[int], pattern: Pattern) -> list[list[str]]:
    """The key that the last position attends to most, by head; the first key does not count."""
    trace, keys = panels.first, panels.key_texts()
    start = 1 if len(trace) > 1 else 0
    rows = [["head", f"sees most from the last position ({visible_text(trace.tokens[-1])})", "probability"]]
    for head, probabilities in zip(heads, pattern[:, -1, start:], strict=True):
        key = int(probabilities.argmax()) + start
        rows.append([str(head), keys[key], f"{probabilities.max():.4f}"])
    return rows


def _other_layers(
    panels: Panels, first: int, layers: list[int], heads: list[int], drawn: Patterns, scores: Scores
) -> dict[int, Patterns]:
    """The patterns of the other layers, in order, as far as they probably fit on the page beside those of the first."""
    free_bytes = MOST_BYTES - _n_bytes(drawn.values())
    fitting = _fitting_layers(panels, first, layers, _n_bytes(drawn.values()), free_bytes)
    by_layer: dict[int, Patterns] = {n: {} for n in fitting}
    for name, n, pattern in panels.patterns(fitting, heads, scores):
        visible = visible_values(pattern, panels.first.model.config.window_of(n))
        by_layer[n][f"{name}{n}"] = pack_probabilities(visible)
    return by_layer


def _fitting(by_layer: dict[int, Patterns], first: int, scores: Scores) -> tuple[list[int], Patterns]:
    """The layers that fit on the page, the first one always, and the arrays of the view: their patterns and scores."""
    others = [n for n in by_layer if n != first]  # _fitting_layers may have estimated too low
    while True:
        layers = sorted([first, *others])
        arrays = {name: array for n in layers for name, array in by_layer[n].items()}
        arrays |= {f"{name}_scores": one.packed(layers) for name, one in scores.items()}
        if not others or _n_bytes(arrays.values()) <= MOST_BYTES:
            return layers, arrays
        others.pop()


def _fitting_layers(panels: Panels, first: int, layers: list[int], first_bytes: int, free_bytes: int) -> list[int]:
    """The layers that may fit, so that the others need not be computed.

    Assumes that a value takes at least nine tenths of the bytes that it took in the first layer.
    """

    def n_values(layer: int) -> int:
        window = panels.first.model.config.window_of(layer)
        return sum(count_visible(length, window) for length in panels.lengths)

    bytes_per_value = 0.9 * first_bytes / n_values(first)
    fitting = []
    for n in layers:
        if n == first:
            continue
        free_bytes -= int(bytes_per_value * n_values(n))
        if free_bytes < 0:
            break
        fitting.append(n)
    return fitting


def _n_bytes(arrays: Iterable[PackedArray]) -> int:
    return sum(len(array["data"]) for array in arrays)


def _spec(panels: Panels, layers: list[int], heads: list[int]) -> dict[str, object]:
    trace = panels.first
    infos = [trace.layers[n] for n in layers]
    spec: dict[str, object] = {
        "view": "attention",
        "title": f"Attention in {trace.model.name}",
        "layers": [{"index": info.index, "kind": info.kind, "window": info.window} for info in infos],
        "heads": heads,
        "tokens": trace.tokens,
        "special": are_special(trace.model, trace.ids.tolist()),
    }
    return spec | panels.spec()


def _note(panels: Panels, left_out: list[int]) -> str:
    notes = [panels.note] if panels.note else []
    if left_out:
        some = f"layers={left_out[:2]} ..." if len(left_out) > 2 else f"layers={left_out}"
        notes.append(
            f"Left out for the size of the page: layers {_ranges(left_out)}. attention_view(trace, {some}) shows them."
        )
    return " ".join(notes)


def _ranges(numbers: list[int]) -> str:
    """Rising numbers in short: '2, 4 to 7'."""
    ranges: list[list[int]] = []
    for n in numbers:
        if ranges and n == ranges[-1][-1] + 1:
            ranges[-1].append(n)
        else:
            ranges.append([n])
    return ", ".join(str(one[0]) if len(one) == 1 else f"{one[0]} to {one[-1]}" for one in ranges)


def _summary(panels: Panels, layers: list[int], n_heads: int, first: int) -> str:
    trace = panels.first
    kinds = ", ".join(f"{n} {trace.layers[n].kind}" for n in layers)
    return f"{panels.prompt}. Layers {kinds}; {n_heads} heads. In layer {first}:"
