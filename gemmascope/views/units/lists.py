"""The lists of a unit's page: tokens that it raises, lowers and reads, earlier heads, and units that are alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gemmascope.examples.group import UnitExamples
from gemmascope.examples.units import FEATURE, HEAD, NEURON
from gemmascope.model.model import Model
from gemmascope.sae.feature_logits import written_to_stream
from gemmascope.sae.weights import DictionaryWeights
from gemmascope.views.units.rows import HeadRuns, short
from gemmascope.views.units.weights import (
    Strong,
    alike,
    composes_with,
    feature_reads,
    heads_alike,
    heads_read,
    neuron_rows,
    raised_by,
    tokens_read,
)

HEADS_NOTE = "of their writing, 0 to 1"

# The address of another unit's page, or None where there is none.
Address = Callable[[str, int | None, int], str | None]
List = dict[str, object]


def nowhere(kind: str, layer: int | None, unit: int) -> None:
    """No page has an address."""


def lists_of(
    group: UnitExamples,
    unit: int,
    model: Model | None,
    sae: DictionaryWeights | None,
    runs: HeadRuns | None,
    address: Address,
) -> list[List]:
    """What a unit writes and reads, and those that are alike.

    Args:
        group: Its group.
        unit: Its number.
        model: The model; None: only what the examples hold.
        sae: The dictionary of a feature.
        runs: Traces of a head's examples.
        address: Where the pages of other units are.
    """
    made = [] if model is None else _by_weights(group, unit, model, sae, runs, address)
    return [*made, _co_active(group, unit, address)] if "co_feature" in group.data else made


def _by_weights(
    group: UnitExamples, unit: int, model: Model, sae: DictionaryWeights | None, runs: HeadRuns | None, address: Address
) -> list[List]:
    if group.kind == FEATURE and sae is not None:
        return _of_feature(sae, unit, model, group, address)
    if group.kind == NEURON and group.layer is not None:
        layer = model.layer(group.layer)
        reads, written = neuron_rows(layer, unit)
        near = alike(layer.mlp.down_proj.weight.detach().T, unit)
        return [
            *_writes(model, written, "for one unit of activation"),
            _tokens("Tokens that its gate reads", "embedding · gate", tokens_read(model, reads)),
            _units("Earlier heads that its gate reads", HEADS_NOTE, heads_read(model, reads, group.layer, 1)),
            _linked("Neurons that write alike", "cosine", near, NEURON, group.layer, address),
        ]
    if group.kind == HEAD and group.layer is not None:
        return _of_head(group, unit, model, runs, address)
    return []


def _of_feature(sae: DictionaryWeights, feature: int, model: Model, group: UnitExamples, address: Address) -> list[List]:
    made: list[List] = []
    if (written := written_to_stream(sae, model, feature)) is not None:
        made += _writes(model, written, "for one unit of activation")
    if (found := feature_reads(sae, feature, model)) is not None and sae.layer is not None:
        reads, sublayers = found
        made.append(_tokens("Tokens that it reads", "embedding · encoder", tokens_read(model, reads)))
        heads = heads_read(model, reads, sae.layer, sublayers)
        if heads:
            made.append(_units("Earlier heads that it reads", HEADS_NOTE, heads))
    near = [one._replace(name=_named(sae, one)) for one in alike(sae.W_dec, feature)]
    return [*made, _linked("Features that write alike", "cosine", near, FEATURE, group.layer, address)]


def _named(sae: DictionaryWeights, one: Strong) -> str:
    tie = sae.concepts.get(one.number) if one.number is not None else None
    return f"{one.name} {tie.concept}" if tie else one.name


def _of_head(group: UnitExamples, head: int, model: Model, runs: HeadRuns | None, address: Address) -> list[List]:
    assert group.layer is not None
    made: list[List] = []
    if runs is not None and (written := _mean_written(group, head, runs)) is not None:
        made += _writes(model, written, "on average over its strongest examples")
    vectors = model.layer(group.layer).ov(head).read_out(model, k=5, n=2)
    made += [
        {"title": "Tokens that its OV matrix turns into tokens", "note": "strongest singular vectors", "text": [
            f"{row.reads} → {row.writes}" for row in vectors.itertuples()
        ]}
    ]  # fmt: skip
    for name, heads in composes_with(model, group.layer, head).items():
        made.append(_units(f"Earlier heads that its {name} read", "composition, 0 to 1", heads))
    near = []
    for one in heads_alike(model, group.layer, head):
        layer, number = map(int, one.name.split("."))
        near.append([one.name, short(one.value), address(HEAD, layer, number)])
    return [*made, {"title": "Heads whose OV matrix is alike", "note": "cosine", "rows": near, "most": 1}]


def _mean_written(group: UnitExamples, head: int, runs: HeadRuns) -> Tensor | None:
    """What a head wrote, on average over its strongest examples, [d_model]."""
    at = group.index(head)
    places = zip(group.data["top_text"].values[at].tolist(), group.data["top_pos"].values[at].tolist(), strict=True)
    found = [
        runs.of(group.texts[text])["head_out", group.layer][pos, head].float()
        for text, pos in places if text in group.texts
    ]  # fmt: skip
    return torch.stack(found).mean(0) if found else None


def _writes(model: Model, written: Tensor, per: str) -> list[List]:
    raised, lowered = raised_by(model, written)
    note = f"logits {per}, before the soft cap"
    most = max([abs(one.value) for one in (*raised, *lowered)], default=1)
    return [_tokens("Tokens that it raises", note, raised, most), _tokens("Tokens that it lowers", note, lowered, most)]


def _tokens(title: str, note: str, found: Sequence[Strong], most: float | None = None) -> List:
    rows = [[one.name, short(one.value), None] for one in found]
    most = max([abs(one.value) for one in found], default=1) if most is None else most
    return {"title": title, "note": note, "rows": rows, "most": most, "tokens": True}


def _units(title: str, note: str, found: Sequence[Strong]) -> List:
    return {"title": title, "note": note, "rows": [[one.name, short(one.value), None] for one in found], "most": 1}


def _linked(title: str, note: str, found: Sequence[Strong], kind: str, layer: int | None, address: Address) -> List:
    rows = [[one.name, short(one.value), address(kind, layer, one.number or 0)] for one in found]
    return {"title": title, "note": note, "rows": rows, "most": 1}


def _co_active(group: UnitExamples, unit: int, address: Address) -> List:
    one = group.data.sel(unit=unit)
    rows = [
        [str(number), short(share), address(FEATURE, group.layer, number)]
        for number, share in zip(one["co_feature"].values.tolist(), one["co_share"].values.tolist(), strict=True)
        if number >= 0
    ]
    note = "rows where both are, of those where either is"
    return {"title": "Features active with it", "note": note, "rows": rows, "most": 1}
