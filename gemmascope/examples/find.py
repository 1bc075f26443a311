"""gs.top_examples: where heads, neurons, features and directions are strongest, over many texts or a store."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from tqdm.auto import tqdm

from gemmascope.arguments import as_list, is_whole, one_of, short_repr, true_or_false, whole_number
from gemmascope.errors import ExamplesError, StoreError
from gemmascope.examples.asked import Place, groups_of_units
from gemmascope.examples.blocks import BLOCK_ELEMENTS, Block, read_store, run_texts
from gemmascope.examples.gathering import examples_of
from gemmascope.examples.keeping import Keeper
from gemmascope.examples.result import TopExamples
from gemmascope.examples.settings import ExampleSettings
from gemmascope.examples.units import SaeFeatures, UnitGroup
from gemmascope.loading.default import model_or_nano
from gemmascope.memory.limits import microbatch_rows, require_free_memory, text_rows_within
from gemmascope.model.model import Model
from gemmascope.model.modes import computes
from gemmascope.sites import SiteKey
from gemmascope.stores.reading.store import Store
from gemmascope.stores.spec import EMPTY, LONG, ArraySpec, StoreSpec, arrays_of
from gemmascope.stores.texts.runs import Runs
from gemmascope.stores.texts.sources import read_texts
from gemmascope.stores.writing.chunks import Chunks

# Pairs of features are counted unasked where the table of counts takes at most this many bytes.
PAIR_BYTES = 2**28
# How many tokens of text are read before their passes begin.
_ROWS_PER_CHUNK = 32_768
_OF_TEXTS = {"max_tokens": None, "long": "error", "empty": "error", "field": "text", "exact": True, "memory": None}

# How texts are run, and the bar that shows it.
Given = Mapping[str, Any]
Bar: TypeAlias = "tqdm[Any]"


@computes
def top_examples(
    texts: Iterable[object] | str | os.PathLike[str] | Store,
    units: object,
    *,
    model: Model | None = None,
    layers: object = None,
    k: int = 20,
    sample: int = 20,
    around: int | tuple[int, int] = (24, 8),
    one_per_text: bool = True,
    co_active: int = 10,
    seed: int = 0,
    max_tokens: int | None = None,
    long: str = "error",
    empty: str = "error",
    field: str = "text",
    exact: bool = True,
    memory: int | str | None = None,
    progress: bool = True,
) -> TopExamples:
    """The texts and positions where units are strongest, a random sample of where they act, and statistics: in one pass.

    A unit is a head, a neuron, a feature of a dictionary, or a direction. What it is strong by:

    - a head: the length (norm) of what it adds to the stream, head_out;
    - a neuron: its activation mlp_act, gelu(gate) x up; where it is most negative is kept too, as bottom;
    - a feature: its activation;
    - a direction: the dot product of the row with it (of a gs.Direction, with its unit vector); bottom too.

    Of equal values the earlier text comes first, and in it the earlier position. Leading `<bos>` tokens are left out: their
    norm is often hundreds of times that of others. Memory does not grow with the number of texts.

    Args:
        texts: Texts as in gs.harvest, or a Store of gs.harvest, whose rows are read and nothing runs.
        units: One or a list of: "head", "neuron" (at layers); ("head", 3); ("neuron", 3, [7, 12]), some of a layer; a
            dictionary (gs.load_sae), or (dictionary, [987, 3]), some of its features; a gs.Direction; or (site, layer,
            vectors), vectors being [d] or [vector, d].
        model: The model; None: nano. With a store it may be left out, except for heads of a store that holds z alone, and
            for a store with rows of `<bos>`.
        layers: The layers of "head" and "neuron"; None: all, or all that the store has.
        k: How many of the strongest to keep of each unit.
        sample: How many rows where it is not zero to draw at random, each as likely as any other; 0: none.
        around: How many tokens before and after each are kept with the unit's values there; one number for both.
        one_per_text: A text counts once for each unit, at its strongest position. False: every position counts.
        co_active: How many features to name that are active in the same rows most often; 0: none. They are counted where
            that takes up to 256 MiB (8,192 features with each other), or where the features are named.
        seed: The seed of the sample.
        max_tokens: As in gs.harvest; so are long, empty, field, exact and memory. Not for a store.
        long: What to do with longer texts: "error", "cut" or "split".
        empty: What to do with texts without tokens: "error" or "skip".
        field: The field or column that holds the text.
        exact: Let each text go through a layer by itself, so that values are those of gs.trace(text). False: quicker for
            short texts, and rounds otherwise.
        memory: How much the rows of one pass may take.
        progress: Show a bar when it takes more than a second.

    Returns:
        The TopExamples, with a group of units for each layer and dictionary. Text numbers are those of a store: pieces of a
        text that was split count each, and texts that were skipped do not.

    Raises:
        ExamplesError: Units, or another argument, that do not fit; or values that are NaN or infinite.
        SiteError: There is no such layer, or the store does not hold what the units are read from.
        DictionaryError: A dictionary of another model.
        StoreError, PromptError: Texts that cannot be read, as in gs.harvest; or a store of another model.
        BudgetError: What is kept of so many units does not fit into memory; or memory is too small for a pass.

    Examples:
        >>> texts = [pair.clean for pair in gs.prompts.ioi(30)]
        >>> examples = gs.top_examples(texts, [gs.load_sae(), "head"], layers=3, k=5, progress=False)
        >>> examples.groups
        ["features of gs.load_sae('nano')", 'heads of layer 3']
        >>> examples.top(("head", 3, 0), 2)[["value", "text", "pos", "token"]].shape
        (2, 4)
        >>> examples["feature"].data["density"].dims
        ('unit',)

    References:
        Bricken et al., "Towards Monosemanticity: Decomposing Language Models With Dictionary Learning" (Transformer
        Circuits, 2023).
    """
    given = {"max_tokens": max_tokens, "long": long, "empty": empty, "field": field, "exact": exact, "memory": memory}
    settings = ExampleSettings(
        k=whole_number(k, "k", least=1, most=10_000, error=ExamplesError),
        sample=whole_number(sample, "sample", least=0, most=10_000, error=ExamplesError),
        around=_around(around),
        one_per_text=true_or_false(one_per_text, "one_per_text", error=ExamplesError),
        co_active=whole_number(co_active, "co_active", least=0, error=ExamplesError),
        seed=whole_number(seed, "seed", least=0, error=ExamplesError),
    )
    place = _place(texts, model, given)
    keepers = _keepers(groups_of_units(units, layers, place), settings)
    progress = true_or_false(progress, "progress", error=ExamplesError)
    with tqdm(desc="top examples", unit="row", unit_scale=True, delay=1.0, leave=False, disable=not progress) as bar:
        _go_over(texts, place, keepers, given, bar)
    if not keepers[0].statistics.n_rows:
        raise StoreError("no text has a row: each is empty, or holds <bos> alone")
    return examples_of(keepers, place, settings)


def _place(texts: object, model: Model | None, given: Given) -> Place:
    if not isinstance(texts, Store):
        model = model_or_nano(model)
        if model.network.n_processes > 1:
            raise ExamplesError("this model's layers are shared by several processes: top examples need it in one process")
        return Place(model, None)
    if asked := [name for name, value in given.items() if value != _OF_TEXTS[name]]:
        raise ExamplesError(f"{asked[0]}={short_repr(given[asked[0]])} is of texts that are run, and a store is read")
    if model is not None:
        texts.require_model(model_or_nano(model))
    return Place(model, texts)


def _keepers(groups: Sequence[UnitGroup], settings: ExampleSettings) -> list[Keeper]:
    """What keeps the examples of each group. BudgetError if that does not fit into memory."""
    n_bytes = 0
    counted = []
    for group in groups:
        n = len(group.numbers)
        pairs = 4 * n * group.width if isinstance(group, SaeFeatures) and settings.co_active else 0
        counted.append(pairs > 0 and (pairs <= PAIR_BYTES or n < group.width))
        n_bytes += n * settings.bytes_of_unit(group.signed) + pairs * counted[-1]
    require_free_memory(
        n_bytes, torch.device("cpu"), f"the examples of {sum(len(group.numbers) for group in groups):,} units",
        "name fewer units or layers, or give a smaller k, sample or around",
    )  # fmt: skip
    return [Keeper(group, settings, count_pairs) for group, count_pairs in zip(groups, counted, strict=True)]


def _go_over(texts: object, place: Place, keepers: Sequence[Keeper], given: Given, bar: Bar) -> None:
    """Hand all rows to the keepers of their site."""
    by_key: dict[SiteKey, list[Keeper]] = {}
    for keeper in keepers:
        by_key.setdefault(keeper.group.key, []).append(keeper)
    widths = {  # a block holds its rows as well as the values that are read from them
        key: max(place.array(*key).width, *(keeper.group.width for keeper in of_key)) for key, of_key in by_key.items()
    }

    def take(block: Block) -> None:
        for keeper in by_key[block.key]:
            keeper.add(block)

    def rows_of(key: SiteKey) -> int:
        return max(1, BLOCK_ELEMENTS // widths[key])

    if place.store is not None:
        arrays = [place.array(*key) for key in by_key]
        bar.total = place.store.n_rows * len(arrays)
        for n_rows in read_store(place.store, arrays, rows_of, take, place.bos_id):
            bar.update(n_rows)
        return
    model = place.model
    assert model is not None
    arrays = list(arrays_of(list(by_key), None, model))
    source, spec = read_texts(texts, given["field"]), _spec(model, arrays, given)
    chunks = Chunks(source, Runs(model, spec), spec)
    bar.total = chunks.n_rows
    for n_rows in run_texts(model, arrays, chunks, text_rows_within(given["memory"], model), rows_of, take):
        bar.update(n_rows)


def _spec(model: Model, arrays: Sequence[ArraySpec], given: Given) -> StoreSpec:
    context = model.config.context
    most = context if given["max_tokens"] is None else given["max_tokens"]
    return StoreSpec(
        arrays=tuple(arrays),
        dtype="float32",
        bos=False,
        outliers=None,
        max_tokens=whole_number(most, "max_tokens", least=2, most=context, error=StoreError),
        long=one_of(given["long"], "long", LONG, error=StoreError),
        empty=one_of(given["empty"], "empty", EMPTY, error=StoreError),
        exact=true_or_false(given["exact"], "exact", error=StoreError),
        rows_at_once=microbatch_rows(model),
        rows_per_shard=_ROWS_PER_CHUNK,
    )


def _around(around: object) -> tuple[int, int]:
    both = [around, around] if is_whole(around) else as_list(around, "around", error=ExamplesError)
    if len(both) != 2:
        raise ExamplesError(f"around is how many tokens before and after, such as (24, 8); given {short_repr(around)}")
    before, after = (whole_number(one, "around", least=0, most=4096, error=ExamplesError) for one in both)
    return before, after
