"""Metrics beside TransformerLens' own: logit differences, the loss of a text and of each token, KL from another run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checkpoints import prompt
from torch import Tensor
from transformer_lens_bridge import nano_side_by_side, side_by_side

import gemmascope as gs
from gemmascope.model.model import Model

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs

CLOSE = 1e-5
SHAPES: list[dict[str, Any]] = [
    {"kinds": "gll", "seed": 1, "num_key_value_heads": 2, "sliding_window": 3},
    {"kinds": "lg", "seed": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "sliding_window": 7},
]


@pytest.fixture(params=["nano", 0, 1])
def both(request: pytest.FixtureRequest) -> tuple[Any, Model, list[int], list[int]]:
    """Their bridge, our model, and two prompts of one length, longer than the window of any local layer."""
    if request.param == "nano":
        theirs, model = nano_side_by_side()
        texts = [f"When Mary and John went to the store, {name} gave a drink to Mary and John" for name in ("John", "Mary")]
        clean, corrupt = (model.ids(text).tolist() for text in texts)
    else:
        theirs, model = side_by_side(**SHAPES[request.param])
        clean, corrupt = prompt(11), prompt(11, seed=4)
    assert model.config.window < len(clean) == len(corrupt)
    return theirs, model, clean, corrupt


def logits_of(theirs: Any, ids: list[int]) -> Tensor:
    with torch.no_grad():
        logits: Tensor = theirs(torch.tensor([ids]))[0]
    return logits


def test_logit_differences(both: tuple[Any, Model, list[int], list[int]]) -> None:
    theirs, model, clean, _ = both
    t, logits = gs.trace(clean, model=model), logits_of(theirs, clean)
    scale = float(logits.abs().max())
    for pos in (-1, 3):
        expected = float(logits[pos, 5] - logits[pos, 9])
        assert gs.logit_diff(5, 9, pos=pos)(t) == pytest.approx(expected, abs=CLOSE * scale)
    several = float((logits[:, 5] - logits[:, 9]).mean())
    assert gs.logit_diff(5, 9, pos="all")(t) == pytest.approx(several, abs=CLOSE * scale)


def test_the_loss_of_a_text_and_of_each_token(both: tuple[Any, Model, list[int], list[int]]) -> None:
    theirs, model, clean, _ = both
    t = gs.trace(clean, model=model)
    with torch.no_grad():
        of_text = float(theirs(torch.tensor([clean]), return_type="loss"))
        of_tokens = theirs(torch.tensor([clean]), return_type="loss", loss_per_token=True)[0]
    assert float(t.loss()) == pytest.approx(of_text, rel=CLOSE)
    assert gs.loss()(t) == pytest.approx(of_text, rel=CLOSE)
    scale = float(of_tokens.abs().max())
    for pos, expected in enumerate(of_tokens.tolist()):
        assert gs.loss(pos=pos)(t) == pytest.approx(expected, abs=CLOSE * scale)


def test_kl_from_another_run(both: tuple[Any, Model, list[int], list[int]]) -> None:
    theirs, model, clean, corrupt = both
    t, other = (gs.trace(ids, model=model) for ids in (clean, corrupt))
    p, q = (logits_of(theirs, ids).log_softmax(-1) for ids in (clean, corrupt))
    expected = (p.exp() * (p - q)).sum(-1)
    scale = float(expected.max())
    assert scale > 1e-3
    assert gs.kl_from(t)(other) == pytest.approx(float(expected[-1]), abs=10 * CLOSE * scale)
    assert gs.kl_from(t, pos="all")(other) == pytest.approx(float(expected.mean()), abs=10 * CLOSE * scale)


def test_metrics_of_a_patched_run(both: tuple[Any, Model, list[int], list[int]]) -> None:
    theirs, model, clean, corrupt = both
    with torch.no_grad():
        cache = theirs.run_with_cache(torch.tensor([clean]))[1]
    name = "blocks.1.hook_resid_pre"

    def patched(value: Tensor, hook: Any) -> Tensor:
        value[:, 2] = cache[name][:, 2]
        return value

    with torch.no_grad():
        logits = theirs.run_with_hooks(torch.tensor([corrupt]), fwd_hooks=[(name, patched)])[0]
    metrics = {"diff": gs.logit_diff(5, 9), "middle": gs.logit_diff(5, 9, pos=4)}
    sweep = gs.sweep(clean, corrupt, metrics, site=name, by=("layer", "pos"), pos=[2], model=model, progress=False)
    scale = float(logits.abs().max())
    for key, pos in (("diff", -1), ("middle", 4)):
        expected = float(logits[pos, 5] - logits[pos, 9])
        assert sweep[key].values.ravel()[0] == pytest.approx(expected, abs=CLOSE * scale)
