"""nano's indirect-object circuit, as found in notebook 4: it keeps the answer alone, and without it the answer is gone."""

from __future__ import annotations

import pytest

import gemmascope as gs
from gemmascope.edits.edit import Edit

# The heads that notebook 4 arrives at, as (layer, head); its own cells find them by patching and by silencing.
CIRCUIT = [(2, 2), (2, 3), (3, 0), (3, 1), (3, 2), (3, 3)]
SEED = 7  # not the notebook's: these pairs are others

pytestmark = pytest.mark.nano


def test_the_circuit_alone_keeps_the_answer_and_ablating_it_removes_it() -> None:
    model = gs.load()
    by_length: dict[int, list[gs.prompts.Pair]] = {}
    for pair in gs.prompts.ioi(150, SEED, model.tokenizer):
        by_length.setdefault(len(model.ids(pair.clean)), []).append(pair)
    pairs = max(by_length.values(), key=len)[:40]
    assert len(pairs) == 40
    reference = gs.trace([text for pair in pairs for text in (pair.clean, pair.corrupt)], model=model)
    every = [(layer, head) for layer in range(model.n_layers) for head in range(model.config.n_heads)]
    # An edit for each head: each takes its mean over the reference once.
    silence = {at: gs.ablate("z", layer=at[0], head=at[1], value="mean_by_pos", reference=reference) for at in every}
    full = difference(pairs, model, [])
    alone = difference(pairs, model, [edit for head, edit in silence.items() if head not in CIRCUIT])
    without = difference(pairs, model, [silence[head] for head in CIRCUIT])
    assert full > 5
    assert alone / full >= 0.8
    assert abs(without / full) < 0.2
    for left_out in ((2, 2), (2, 3)):
        remaining = [head for head in CIRCUIT if head != left_out]
        broken = difference(pairs, model, [edit for head, edit in silence.items() if head not in remaining])
        assert broken / full < 0.8, f"the circuit would be as good without head {left_out}"


def difference(pairs: list[gs.prompts.Pair], model: gs.Model, edits: list[Edit]) -> float:
    """The mean logit difference with these edits."""
    traces = gs.trace([pair.clean for pair in pairs], model=model, edits=edits)
    single = model.tokenizer.single
    logits = [run.next_logits for run in traces]
    differences = [float(last[single(p.answer)] - last[single(p.against)]) for last, p in zip(logits, pairs, strict=True)]
    return sum(differences) / len(differences)
