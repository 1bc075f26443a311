"""TransformerLens' weights by name, and its head detectors and products of gradients beside ours, on the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checkpoints import prompt
from reference import error
from torch import Tensor
from transformer_lens_bridge import side_by_side

import gemmascope as gs
from gemmascope.model.model import Model

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs

CLOSE = 1e-5
SHAPES: list[dict[str, Any]] = [
    {},
    {"kinds": "gll", "seed": 1, "num_key_value_heads": 2, "sliding_window": 3},
    {"kinds": "lg", "seed": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "sliding_window": 7},
]
REPEATED = [2, 9, 14, 33, 14, 33, 9, 14, 9, 14]  # no token twice in a row: theirs then counts the query itself


@pytest.fixture(params=range(len(SHAPES)))
def both(request: pytest.FixtureRequest) -> tuple[Any, Model]:
    return side_by_side(**SHAPES[request.param])


def test_weights_have_their_names_and_orientation(both: tuple[Any, Model]) -> None:
    theirs, model = both
    assert error(model.W_U, theirs.W_U.detach()) <= CLOSE
    embed, scale = theirs.W_E.detach(), model.config.d_model**0.5
    assert min(error(model.W_E, embed), error(scale * model.W_E, embed)) <= CLOSE
    for number in range(model.n_layers):
        layer = model.layer(number)
        for name in ("W_Q", "W_O", "W_gate", "W_in", "W_out"):
            assert error(getattr(layer, name), getattr(theirs, name)[number].detach()) <= CLOSE, name
        for name in ("W_K", "W_V"):  # theirs may stand once for each query head
            ours, other = getattr(layer, name), getattr(theirs, name)[number].detach()
            assert error(ours.repeat_interleave(len(other) // len(ours), 0), other) <= CLOSE, name


@pytest.mark.parametrize("kind", ["previous_token", "duplicate_token", "induction"])
def test_head_detectors_give_ours_over_the_queries_that_have_a_target(both: tuple[Any, Model], kind: str) -> None:
    from transformer_lens import head_detector

    theirs, model = both
    pattern = getattr(head_detector, f"get_{kind}_head_detection_pattern")(torch.tensor([REPEATED]))
    targets = pattern.bool().tril()
    with torch.no_grad():
        cache = theirs.run_with_cache(torch.tensor([REPEATED]))[1]
    ours = gs.head_scores(model, kind, prompts=[REPEATED]).scores.values
    targets[:, 0] = False  # ours leaves <bos> out as a target
    n_queries = int(targets.any(-1).sum())
    for layer in range(model.n_layers):
        attention: Tensor = cache[f"blocks.{layer}.attn.hook_pattern"][0]
        share = (attention * targets).sum((-1, -2)) / n_queries
        assert torch.allclose(torch.tensor(ours[layer]), share, atol=CLOSE)


def test_attention_times_gradient_is_theirs(both: tuple[Any, Model]) -> None:
    theirs, model = both
    ids = prompt(9)
    seen: dict[str, Tensor] = {}

    def keep(value: Tensor, hook: Any) -> Tensor:
        value.retain_grad()
        seen[hook.name] = value
        return value

    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.n_layers)]
    logits = theirs.run_with_hooks(torch.tensor([list(ids)]), fwd_hooks=[(name, keep) for name in names])
    (logits[0, -1, 3] - logits[0, -1, 4]).backward()
    ours = gs.attention_attribution(gs.trace(ids, model=model), gs.logit_diff(3, 4))
    for layer, name in enumerate(names):
        value = seen[name]
        assert value.grad is not None
        assert error(torch.tensor(ours.sel(layer=layer).values), (value * value.grad)[0].detach()) <= 10 * CLOSE
