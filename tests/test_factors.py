"""Factors of heads: they are the matrices that the model computes with, and composition is that of the whole matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint, model_of, prompt
from pieces import worded

import gemmascope as gs
from gemmascope.errors import SiteError
from gemmascope.model.model import Model

SHAPES = ({}, {"num_key_value_heads": 8}, {"num_key_value_heads": 2})


def model(shape: dict[str, int] | None = None, seed: int = 0) -> Model:
    return model_of(checkpoint("lgl", seed=seed, **(shape or {})))


def over_rms(x: torch.Tensor) -> torch.Tensor:
    return x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()


@pytest.mark.parametrize("shape", SHAPES)
def test_ov_writes_what_a_head_writes(shape: dict[str, int]) -> None:
    m = model(shape)
    t = gs.trace(prompt(7), model=m)
    for layer in range(3):
        raw = t["attn_raw", layer].double()
        post = 1 / (raw.square().mean(-1, keepdim=True) + 1e-6).sqrt()  # the post-norm's scale, which the factors leave out
        for head in range(8):
            ov = m.layer(layer).ov(head)
            read = t["pattern", layer][head].double() @ over_rms(t["resid_pre", layer])
            assert torch.allclose(
                read @ ov.left.double() @ ov.right.double() * post, t["head_out", layer][:, head].double(), atol=1e-4
            )
            bare = m.layer(layer).ov(head, gains=False)
            z = t["pattern", layer][head] @ t["attn_in", layer] @ bare.left
            assert torch.allclose(z, t["z", layer][:, head], atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_qk_gives_the_scores_at_every_distance(shape: dict[str, int]) -> None:
    m = model(shape)
    t = gs.trace(prompt(7), model=m)
    for layer in range(3):
        scores, x = t["scores", layer].double(), over_rms(t["resid_pre", layer])
        for head in range(8):
            for distance in range(5):
                bare = m.layer(layer).qk(head, distance=distance, gains=False)
                for qk, rows in (
                    (m.layer(layer).qk(head, distance=distance), x),
                    (bare, t["attn_in", layer].double()),
                ):
                    for q in range(distance, 7):
                        got = rows[q] @ qk.left.double() @ qk.right.double() @ rows[q - distance]
                        assert float(got) == pytest.approx(float(scores[head, q, q - distance]), rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("kind", ["ov", "qk"])
def test_singular_values_eigenvalues_and_norm_are_those_of_the_matrix(kind: str) -> None:
    layer = model().layer(1)
    factors = layer.ov(3) if kind == "ov" else layer.qk(3, distance=2)
    whole = factors.left.double() @ factors.right.double()
    assert torch.allclose(factors.matrix().double(), whole, atol=1e-4)
    u, s, vh = factors.singular()
    assert torch.allclose(u * s @ vh, factors.matrix(), atol=1e-3)
    assert torch.allclose(u.mT @ u, torch.eye(12), atol=1e-4)
    assert torch.allclose(s.double(), torch.linalg.svdvals(whole)[:12], rtol=1e-4)
    assert factors.norm() == pytest.approx(float(whole.norm()), rel=1e-5)
    ours = sorted(factors.eigenvalues().abs().tolist())
    theirs = sorted(torch.linalg.eigvals(whole).abs().tolist())[-12:]
    assert np.allclose(ours, theirs, rtol=1e-2, atol=1e-2)


def test_sharing_is_said() -> None:
    layer = model().layer(0)
    assert layer.ov(3).kv_head == 1
    assert layer.ov(3).shared_with == (2,)
    assert "query head 3, which reads kv head 1, shared with query head 2" in repr(layer.ov(3))
    assert "shared" not in repr(model({"num_key_value_heads": 8}).layer(0).ov(3))
    assert torch.equal(layer.ov(2).left, layer.ov(3).left)
    assert not torch.equal(layer.ov(2).right, layer.ov(3).right)


@pytest.mark.parametrize("kind", ["ov", "qk"])
def test_the_read_out_names_the_strongest_tokens(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    m = worded()
    factors = m.layer(1).ov(2) if kind == "ov" else m.layer(1).qk(2)
    found = factors.read_out(m, k=4, n=2)
    u, s, vh = factors.singular()
    table = m.network.model.embed_tokens.weight.detach()
    read = over_rms(table * 32**0.5).float()
    written = table * (1 + m.network.model.norm.weight.detach()) if kind == "ov" else read
    for row, (i, sign) in enumerate([(0, 1), (0, -1), (1, 1), (1, -1)]):
        for column, strengths in ((found.columns[3], read @ u[:, i]), (found.columns[4], written @ vh[i])):
            tokens = m.tokenizer.shown((sign * strengths).topk(4).indices.tolist())
            assert found.iloc[row][column] == " ".join(tokens)
        assert found.iloc[row]["value"] == pytest.approx(float(s[i]))
    monkeypatch.setattr("gemmascope.model.factors.TOKENS", 7)
    assert factors.read_out(m, k=4, n=2).equals(found)


@pytest.mark.parametrize("kind", ["q", "k", "v"])
@pytest.mark.parametrize("shape", SHAPES)
def test_composition_is_the_norm_of_the_product_of_whole_matrices(kind: str, shape: dict[str, int]) -> None:
    m = model(shape, seed=1)
    found = gs.composition(m, kind)
    for s in range(3):
        for r in range(3):
            block = found.sel(from_layer=s, to_layer=r).values
            if s >= r:
                assert np.isnan(block).all()
                continue
            for a in range(8):
                written = m.layer(s).ov(a).matrix().double()
                for b in range(8):
                    read = (m.layer(r).ov(b) if kind == "v" else m.layer(r).qk(b)).matrix().double()
                    read = read.T if kind == "k" else read
                    expected = float((written @ read).norm() / (written.norm() * read.norm()))
                    assert block[a, b] == pytest.approx(expected, rel=1e-3)


def test_composition_of_some_layers_is_a_part_of_all(asked: list[int]) -> None:
    m = model()
    whole = gs.composition(m, "v")
    asked.clear()
    part = gs.composition(m, "v", senders=[0, 1], receivers=[-1])
    assert asked == [0, 1, 2]
    assert np.array_equal(part.values, whole.sel(from_layer=[0, 1], to_layer=[2]).values)
    assert part["to_kv_head"].values.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: model().layer(0).ov(8), "there is no query head 8: they go from 0 to 7"),
        (lambda: model().layer(0).qk(-1), "there is no query head -1"),
        (lambda: model().layer(0).qk(0, distance=-1), "0 or more; given -1"),
        (lambda: gs.composition(model(), "o"), "kind is one of 'q', 'k', 'v'; given 'o'"),
        (lambda: gs.composition(model(), "q", senders=[9]), "there is no layer 9"),
    ],
)
def test_what_is_not_there_is_refused(call: Any, message: str) -> None:
    with pytest.raises(SiteError, match=message):
        call()
