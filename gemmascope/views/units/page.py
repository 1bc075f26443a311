"""gs.feature_page, gs.head_page and gs.neuron_page: one unit as a page."""

from __future__ import annotations

from collections.abc import Sequence

from gemmascope.arguments import whole_number
from gemmascope.errors import ExamplesError
from gemmascope.examples.group import UnitExamples
from gemmascope.examples.result import TopExamples
from gemmascope.examples.units import HEAD, NEURON
from gemmascope.legible import legible_line
from gemmascope.loading.default import model_or_nano
from gemmascope.model.model import Model
from gemmascope.model.modes import computes
from gemmascope.sae.weights import DictionaryWeights
from gemmascope.tokens.tokenizer import visible_text
from gemmascope.views.page import View
from gemmascope.views.units.lists import Address, lists_of, nowhere
from gemmascope.views.units.rows import HeadRuns, histogram_of, sections, short

# How many rows the table has that stands in for the picture.
TABLE_ROWS = 8


@computes
def feature_page(sae: DictionaryWeights, feature: int, examples: TopExamples, *, model: Model | None = None) -> View:
    """A feature as a page: examples with tokens tinted, histogram, tokens raised and lowered, what it reads, related ones.

    Args:
        sae: The dictionary, as it was given to gs.top_examples.
        feature: The feature's number.
        examples: What gs.top_examples or gs.open_examples returned.
        model: The model that they are of; None: nano where they are nano's, else none. Without it the page has what the
            examples hold.

    Returns:
        The page, self-contained.

    Raises:
        ExamplesError: The feature is not among the examples, or they are of another model.
        DictionaryError: The dictionary is of another model.

    Examples:
        >>> sae = gs.load_sae()
        >>> examples = gs.top_examples([pair.clean for pair in gs.prompts.ioi(8)], (sae, [987]), k=3)
        >>> view = gs.feature_page(sae, 987, examples)
        >>> view.title
        "Feature 987 of gs.load_sae('nano'): a person's name"
        >>> view.save("feature.html")
    """
    require_examples(examples)
    if not isinstance(sae, DictionaryWeights):
        raise ExamplesError(f"sae is what gs.load_sae returns; given {type(sae).__name__}")
    group = examples.find(sae)
    group.index(feature)
    return unit_view(examples, group, int(feature), own_model(examples, model), sae=sae)


@computes
def head_page(layer: int, head: int, examples: TopExamples, *, model: Model | None = None) -> View:
    """A head as a page: examples with tokens tinted by what it wrote or where it looked, and what it reads and writes.

    Args:
        layer: The layer, counted from the end if negative.
        head: The head's number.
        examples: What gs.top_examples or gs.open_examples returned.
        model: The model that they are of; None: nano where they are nano's, else none. Without it the page has what the
            examples hold, and not where the head looked.

    Returns:
        The page, self-contained.

    Raises:
        ExamplesError: The head is not among the examples, or they are of another model.

    Examples:
        >>> examples = gs.top_examples([pair.clean for pair in gs.prompts.ioi(8)], "head", layers=3, k=3)
        >>> gs.head_page(3, 1, examples).title
        'Head 1 of layer 3 of nano'
    """
    return _layer_page(HEAD, layer, head, examples, model)


@computes
def neuron_page(layer: int, neuron: int, examples: TopExamples, *, model: Model | None = None) -> View:
    """A neuron as a page: examples at both ends, histogram, tokens raised and lowered, what its gate reads, related ones.

    Args:
        layer: The layer, counted from the end if negative.
        neuron: The neuron's number.
        examples: What gs.top_examples or gs.open_examples returned.
        model: The model that they are of; None: nano where they are nano's, else none. Without it the page has what the
            examples hold.

    Returns:
        The page, self-contained.

    Raises:
        ExamplesError: The neuron is not among the examples, or they are of another model.

    Examples:
        >>> examples = gs.top_examples([pair.clean for pair in gs.prompts.ioi(8)], ("neuron", 3, [7]), k=3)
        >>> gs.neuron_page(3, 7, examples).title
        'Neuron 7 of layer 3 of nano'
    """
    return _layer_page(NEURON, layer, neuron, examples, model)


def _layer_page(kind: str, layer: int, unit: int, examples: TopExamples, model: Model | None) -> View:
    require_examples(examples)
    model = own_model(examples, model)
    number = whole_number(layer, "layer", error=ExamplesError)
    if number < 0:
        layers = [group.layer for group in examples.each if group.layer is not None]
        number += model.n_layers if model is not None else max(layers, default=0) + 1
    group = examples.find((kind, number))
    group.index(unit)
    return unit_view(examples, group, int(unit), model)


def require_examples(examples: object) -> None:
    """ExamplesError for anything that is not the result of gs.top_examples."""
    if not isinstance(examples, TopExamples):
        raise ExamplesError(f"examples are what gs.top_examples returns; given {type(examples).__name__}")


def own_model(examples: TopExamples, model: Model | None) -> Model | None:
    """The model of examples: the one that is given, nano for nano's, or None. ExamplesError for another one."""
    if model is None:
        nano = model_or_nano(None) if examples.model == "nano" else None
        return nano if nano is not None and nano.fingerprint == examples.fingerprint else None
    given = model_or_nano(model)
    if given.fingerprint != examples.fingerprint:
        raise ExamplesError(
            f"the examples are of {examples.model!r} ({examples.fingerprint}); given {given.name!r} ({given.fingerprint})"
        )
    return given


def unit_view(
    examples: TopExamples,
    group: UnitExamples,
    unit: int,
    model: Model | None,
    *,
    sae: DictionaryWeights | None = None,
    runs: HeadRuns | None = None,
    address: Address | None = None,
) -> View:
    """The page of one unit.

    Args:
        examples: All examples.
        group: The unit's group.
        unit: Its number.
        model: The model; None: the page has what the examples hold.
        sae: The dictionary of a feature.
        runs: Traces that pages of several heads share.
        address: Where pages of other units are.
    """
    if sae is not None and model is not None:
        sae.require_fit(model)
    if group.kind == HEAD and model is not None and runs is None:
        runs = HeadRuns(model)
    parts = sections(examples, group, unit, runs if group.kind == HEAD else None)
    one = group.data.sel(unit=unit)
    where = group.name if group.kind != HEAD and group.kind != NEURON else f"layer {group.layer} of {examples.model}"
    of = where.removeprefix("features of ")
    tie = None if sae is None else sae.concepts.get(unit)
    spec: dict[str, object] = {
        "view": "unit",
        "kind": group.kind,
        "title": f"{group.kind.capitalize()} {unit} of {of}" + (f": {tie.concept}" if tie else ""),
        "note": _note(examples, group, model),
        "facts": [[name, short(float(one[name]))] for name in ("density", "mean", "std", "low", "high")],
        "sections": parts,
        "scale": max([abs(float(one["high"])), abs(float(one["low"])) if "bottom_value" in group.data else 0, 1e-30]),
        "signed": "bottom_value" in group.data,
        "measure": group.measure,
        "histogram": histogram_of(group, unit),
        "lists": lists_of(group, unit, model, sae, runs, address or nowhere),
    }
    return View(spec, {}, _summary(examples, group, unit), _table(parts))


def _note(examples: TopExamples, group: UnitExamples, model: Model | None) -> str:
    rows = f"{examples.n_rows:,} tokens of text, <bos> left out. Values: {group.measure}."
    return rows if model is not None else f"{rows} Without the model: no tokens raised, nothing of what it reads."


def _summary(examples: TopExamples, group: UnitExamples, unit: int) -> str:
    one = group.data.sel(unit=unit)
    return (
        f"{group.kind} {unit} of {legible_line(group.name)}, {legible_line(examples.model)}: above 0 at "
        f"{float(one['density']):.3%} of {examples.n_rows:,} tokens, mean {float(one['mean']):.3g}, "
        f"{float(one['low']):.3g} to {float(one['high']):.3g}"
    )


def _table(parts: Sequence[dict[str, object]]) -> list[list[str]]:
    rows = [["value", "token", "text"]]
    strongest = parts[0]["rows"] if parts else []
    assert isinstance(strongest, list)
    for row in strongest[:TABLE_ROWS]:
        tokens = [visible_text(token) for token in row["tokens"]]
        rows.append([f"{row['value']}", tokens[row["at"]], "".join(row["tokens"])])
    return rows
