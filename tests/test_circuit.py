"""nano's indirect-object circuit, as notebook 4 finds it: alone it keeps the answer, without it the answer is gone."""

from __future__ import annotations

import pytest

import gemmascope as gs
from gemmascope.run.trace import Trace

# The heads that notebook 4 arrives at, as (layer, head); its own cells find them by patching and by silencing.
CIRCUIT = [(2, 2), (2, 3), (3, 0), (3, 1), (3, 2), (3, 3)]
SEED = 7  # not the notebook's: these pairs are others

pytestmark = pytest.mark.nano


def test_the_circuit_keeps_the_answer_and_without_it_there_is_none() -> None:
    model = gs.load()
    by_length: dict[int, list[gs.prompts.Pair]] = {}
    for pair in gs.prompts.ioi(300, SEED, model.tokenizer):
        by_length.setdefault(len(model.ids(pair.clean)), []).append(pair)
    pairs = max(by_length.values(), key=len)[:64]
    assert len(pairs) >= 60
    reference = gs.trace([text for pair in pairs for text in (pair.clean, pair.corrupt)], model=model)
    every = [(layer, head) for layer in range(model.n_layers) for head in range(model.config.n_heads)]
    whole = difference(pairs, model, [], reference)
    alone = difference(pairs, model, [head for head in every if head not in CIRCUIT], reference)
    without = difference(pairs, model, CIRCUIT, reference)
    assert whole > 5
    assert alone / whole >= 0.8
    assert abs(without / whole) < 0.2
    for left_out in ((2, 2), (2, 3)):
        rest = [head for head in CIRCUIT if head != left_out]
        broken = difference(pairs, model, [head for head in every if head not in rest], reference)
        assert broken / whole < 0.8, f"the circuit would be as good without head {left_out}"


def difference(
    pairs: list[gs.prompts.Pair], model: gs.Model, silenced: list[tuple[int, int]], reference: list[Trace]
) -> float:
    """The mean logit difference with these heads at their mean, position by position."""
    edits = [
        gs.ablate("z", layer=layer, head=[h for at, h in silenced if at == layer], value="mean_by_pos", reference=reference)
        for layer in sorted({layer for layer, _ in silenced})
    ]
    traces = gs.trace([pair.clean for pair in pairs], model=model, edits=edits)
    single = model.tokenizer.single
    ends = [run.next_logits for run in traces]
    found = [float(end[single(p.answer)] - end[single(p.against)]) for end, p in zip(ends, pairs, strict=True)]
    return sum(found) / len(found)
