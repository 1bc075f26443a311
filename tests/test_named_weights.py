"""Weights by name: each product with a row of the stream is the site that the pass computes; streamed models agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import checkpoint, model_of, prompt
from pieces import worded
from reference import error

import gemmascope as gs
from gemmascope.errors import PromptError
from gemmascope.model.mixins.named_weights import LAYER_WEIGHTS
from gemmascope.model.model import Model

CLOSE = 1e-5


@pytest.mark.parametrize("shape", [{}, {"num_key_value_heads": 8}, {"num_attention_heads": 4, "num_key_value_heads": 1}])
def test_each_product_is_the_site_that_the_pass_computes(shape: dict[str, Any]) -> None:
    m = model_of(checkpoint("lg", **shape))
    c = m.config
    t = gs.trace(prompt(7), model=m)
    for number in range(2):
        layer, attn_in, mlp_in = m.layer(number), t["attn_in", number], t["mlp_in", number]
        assert layer.W_Q.shape == (c.n_heads, c.d_model, c.d_head)
        assert layer.W_K.shape == layer.W_V.shape == (c.n_kv_heads, c.d_model, c.d_head)
        assert layer.W_O.shape == (c.n_heads, c.d_head, c.d_model)
        for head in range(c.n_heads):
            assert error(attn_in @ layer.W_Q[head], t["q", number][:, head]) <= CLOSE
        for head in range(c.n_kv_heads):
            assert error(attn_in @ layer.W_K[head], t["k", number][:, head]) <= CLOSE
            assert error(attn_in @ layer.W_V[head], t["v", number][:, head]) <= CLOSE
        written = sum(t["z", number][:, head] @ layer.W_O[head] for head in range(c.n_heads))
        assert error(written, t["attn_raw", number]) <= CLOSE
        assert error(mlp_in @ layer.W_gate, t["mlp_gate", number]) <= CLOSE
        assert error(mlp_in @ layer.W_in, t["mlp_up", number]) <= CLOSE
        assert error(t["mlp_act", number] @ layer.W_out, t["mlp_raw", number]) <= CLOSE
    assert error(m.W_E[t.ids] * c.d_model**0.5, t["embed"]) <= CLOSE
    assert error(t["final"] @ m.W_U, t["logits_raw"]) <= CLOSE


def test_a_tokens_direction_gives_its_logit_before_the_cap() -> None:
    m = worded()
    t = gs.trace("When Mary", model=m)
    last = t.stream[-1]
    rows = last * (last.square().mean(-1, keepdim=True) + m.config.norm_eps).rsqrt()
    mary = m.tokenizer.single(" Mary")
    assert error(rows @ m.tokens_to_residual_directions(" Mary"), t["logits_raw"][:, mary]) <= CLOSE
    several = m.tokens_to_residual_directions([" Mary", 5])
    assert several.shape == (2, m.config.d_model)
    assert torch.equal(several[0], m.tokens_to_residual_directions(mary))
    assert torch.equal(several, m.tokens_to_residual_directions(torch.tensor([mary, 5])))


def test_streamed_and_int8_models_have_the_weights_they_compute_with(tmp_path: Path) -> None:
    nano = gs.load()
    folder = gs.quantize("nano", tmp_path / "int8")
    for streamed in (gs.load(folder, memory="16MB"), gs.load(folder)):
        t = gs.trace("Mary and John went to the store", model=streamed)
        layer = streamed.layer(3)
        assert error(t["attn_in", 3] @ layer.W_Q[1], t["q", 3][:, 1]) <= CLOSE
        assert error(t["mlp_act", 3] @ layer.W_out, t["mlp_raw", 3]) <= CLOSE
        off = float((layer.W_in - nano.layer(3).W_in).norm() / nano.layer(3).W_in.norm())
        assert 0 < off < 0.02  # dequantised
        assert torch.equal(streamed.W_E, nano.W_E)
        assert torch.equal(streamed.tokens_to_residual_directions(" Mary"), nano.tokens_to_residual_directions(" Mary"))


@pytest.mark.parametrize("name", LAYER_WEIGHTS)
def test_a_matrix_of_a_layer_is_not_the_models(name: str) -> None:
    with pytest.raises(AttributeError, match=rf"it is a layer's, model.layer\(0\).{name}"):
        getattr(worded(), name)
    with pytest.raises(AttributeError, match=r"^'Model' object has no attribute 'W_B'$"):
        _ = worded().W_B


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (61, "token id 61 is outside the vocabulary: ids go from 0 to 60"),
        (-1, "token id -1 is outside"),
        (1.5, "tokens are a text that is one token, a token id, or a list of such; given 1.5"),
        ([], r"or a list of such; given \[\]"),
        ([1.5], "a token is a text or a token id; given 1.5"),
        ("When Mary", "token"),
        (torch.zeros(2, 2, dtype=torch.long), "a token is a text or a token id"),
    ],
)
def test_what_is_no_token_is_refused(tokens: object, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        worded().tokens_to_residual_directions(tokens)
    bare: Model = model_of(checkpoint("l"))
    with pytest.raises(PromptError, match="came without a tokenizer: give token ids in place of ' Mary'"):
        bare.tokens_to_residual_directions(" Mary")
