"""Gradients at every site from one backward pass, attention times gradient, paths from head to head, name copying."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from checkpoints import checkpoint, checkpoint_3, model_of, prompt
from reference import error

import gemmascope as gs
from gemmascope.errors import PromptError, SiteError, SweepError
from gemmascope.model.model import Model
from gemmascope.sites import LAYER_SITES, SCALE_SITES

METRIC = gs.logit_diff(3, 4)


@cache
def model() -> Model:
    return model_of(checkpoint("lgl"))


def test_gradients_at_all_sites_are_those_of_each_site() -> None:
    t = gs.trace(prompt(7), model=model())
    every = t.grad(METRIC)
    assert set(every) == {*LAYER_SITES, "embed"}
    for site in LAYER_SITES:
        assert every[site].shape == (3, *t[site, 0].shape)
        one = t.grad(METRIC, [(site, layer) for layer in range(3)])
        for layer in range(3):
            # The gradient of a scale is a sum over the stream that may cancel to a small part of its terms.
            assert error(every[site][layer], one[site, layer]) <= (1e-4 if site in SCALE_SITES else 1e-5), site
    assert error(every["embed"], t.grad(METRIC, "embed")) <= 1e-5
    assert torch.equal(t.grad(METRIC, "z"), t.grad(METRIC, ["z", "embed"])["z"])
    with pytest.raises(SiteError, match="comes after the layers"):
        t.grad(METRIC, ["z", "final"])


def test_attention_times_gradient() -> None:
    t = gs.trace(prompt(7), model=model())
    edges = gs.attention_attribution(t, METRIC)
    for layer in range(3):
        assert np.allclose(edges.sel(layer=layer), t["pattern", layer] * t.grad(METRIC, ("pattern", layer)), atol=1e-6)
    # A small change of one weight changes the metric by the gradient.
    layer, head, q, k, size = 1, 2, 6, 3, 1e-2
    pattern = t["pattern", layer][head, q, k]
    moved = gs.patch("pattern", (pattern * (1 - size)).view(1, 1), layer=layer, head=head, q_pos=q, k_pos=k)
    change = sum(
        sign * float(t.next_logits[i] - gs.trace(t.ids, model=model(), edits=[moved]).next_logits[i])
        for i, sign in ((3, 1), (4, -1))
    )
    assert change / size == pytest.approx(edges.sel(layer=layer, head=head, q_pos=q, k_pos=k).item(), rel=0.05, abs=1e-3)


@pytest.mark.parametrize(("into", "family"), [("corrupt", 2), ("clean", 2), ("corrupt", 3)])
def test_the_paths_to_the_receivers_of_a_layer_add_up_to_what_goes_through_its_attention(into: str, family: int) -> None:
    clean, corrupt = prompt(7), prompt(7, seed=3)
    m = model() if family == 2 else model_of(checkpoint_3("lgl"))
    paths = gs.head_paths(clean, corrupt, METRIC, into=into, model=m)
    runs = {"clean": gs.trace(clean, model=m), "corrupt": gs.trace(corrupt, model=m)}
    base, source = (runs["corrupt"], runs["clean"]) if into == "corrupt" else (runs["clean"], runs["corrupt"])
    gradient = base.grad(METRIC, ["resid_pre", "resid_mid"])
    for layer in (1, 2):
        through = gradient["resid_pre"][layer] - gradient["resid_mid"][layer]
        for sender_layer in range(layer):
            change = source["head_out", sender_layer] - base["head_out", sender_layer]
            expected = torch.einsum("phd,pd->h", change, through)
            found = sum(paths[site].values[sender_layer, :, layer].sum(-1) for site in "qkv")
            assert np.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))
    assert paths["q"].shape == (3, 8, 3, 8)
    assert paths["k"].dims == ("sender_layer", "sender", "layer", "kv_head")
    for later in range(3):
        assert np.isnan(paths["v"].values[later:, :, later]).all()
    with pytest.raises(SweepError, match="positions of the two prompts must match"):
        gs.head_paths(clean, prompt(8), METRIC, model=m)


@pytest.mark.nano
def test_name_copying_is_the_naive_score() -> None:
    m, family = gs.load(), gs.prompts.ioi(6)
    prompts, names = [pair.clean for pair in family], [pair.answer for pair in family]
    for negative in (False, True):
        scores = gs.name_copying(prompts, names, k=3, negative=negative).scores
        for layer in (2, 4):
            block = m.layer(layer)
            for head in range(4):
                hits = []
                for text, name in zip(prompts, names, strict=True):
                    t = gs.trace(text)
                    x = t["resid_post", 0][t.tokens.index(name)]
                    v = block.input_layernorm(x) @ block.W_V[head // m.config.heads_per_kv]
                    raw = (v @ block.W_O[head]) * (-1 if negative else 1)
                    logits = m.network.unembed(block.post_attention_layernorm(raw)[None])[0]
                    hits.append(m.tokenizer.single(name) in logits.topk(3).indices.tolist())
                assert scores.sel(layer=layer, head=head).item() == pytest.approx(np.mean(hits))
    assert gs.name_copying(prompts, names, k=m.config.vocab_size).scores.values.min() == 1.0
    assert "name_copying scores of nano: share of names" in repr(gs.name_copying(prompts, names))
    with pytest.raises(PromptError, match="there are 6 prompts and 2 names"):
        gs.name_copying(prompts, names[:2])
    with pytest.raises(SiteError):
        gs.name_copying(prompts, " Nobody")
