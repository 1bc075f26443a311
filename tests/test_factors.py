"""Factors of heads: they are the matrices that the model computes with, and composition is that of the whole matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint, model_of, prompt
from pieces import worded

import gemmascope as gs
from gemmascope.errors import GemmascopeError, SiteError
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
                        score = rows[q] @ qk.left.double() @ qk.right.double() @ rows[q - distance]
                        assert float(score) == pytest.approx(float(scores[head, q, q - distance]), rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("kind", ["ov", "qk"])
def test_singular_values_eigenvalues_and_norm_are_those_of_the_matrix(kind: str) -> None:
    layer = model().layer(1)
    factors = layer.ov(3) if kind == "ov" else layer.qk(3, distance=2)
    matrix = factors.left.double() @ factors.right.double()
    assert torch.allclose(factors.matrix().double(), matrix, atol=1e-4)
    u, s, vh = factors.singular()
    assert torch.allclose(u * s @ vh, factors.matrix(), atol=1e-3)
    assert torch.allclose(u.mT @ u, torch.eye(12), atol=1e-4)
    assert torch.allclose(s.double(), torch.linalg.svdvals(matrix)[:12], rtol=1e-4)
    assert factors.norm() == pytest.approx(float(matrix.norm()), rel=1e-5)
    eigenvalues = sorted(factors.eigenvalues().abs().tolist())
    expected = sorted(torch.linalg.eigvals(matrix).abs().tolist())[-12:]
    assert np.allclose(eigenvalues, expected, rtol=1e-2, atol=1e-2)


def test_the_repr_names_the_query_heads_that_share_a_kv_head() -> None:
    layer = model().layer(0)
    assert layer.ov(3).kv_head == 1
    assert layer.ov(3).shared_with == (2,)
    assert "query head 3, which reads kv head 1, shared with query head 2" in repr(layer.ov(3))
    assert "Factors(qk at distance 2 of layer 0" in repr(layer.qk(3, distance=2))
    assert "without the norms' gains" in repr(layer.qk(3, gains=False))
    assert "shared" not in repr(model({"num_key_value_heads": 8}).layer(0).ov(3))
    assert torch.equal(layer.ov(2).left, layer.ov(3).left)
    assert not torch.equal(layer.ov(2).right, layer.ov(3).right)


@pytest.mark.parametrize("head", [-2, np.int64(6), torch.tensor(6)])
def test_a_head_is_any_whole_number(head: Any) -> None:
    layer = model().layer(0)
    for factors, expected in (
        (layer.ov(head), layer.ov(6)),
        (layer.qk(head, distance=np.int64(3)), layer.qk(6, distance=3)),
    ):
        assert (factors.head, factors.kv_head, factors.distance) == (6, 3, expected.distance)
        assert torch.equal(factors.left, expected.left)
        assert torch.equal(factors.right, expected.right)


@pytest.mark.parametrize("kind", ["ov", "qk"])
def test_the_read_out_names_the_strongest_tokens(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    m = worded()
    factors = m.layer(1).ov(2) if kind == "ov" else m.layer(1).qk(2)
    read_out = factors.read_out(m, k=4, n=2)
    u, s, vh = factors.singular()
    table = m.network.model.embed_tokens.weight.detach()
    read = over_rms(table * 32**0.5).float()
    written = table * (1 + m.network.model.norm.weight.detach()) if kind == "ov" else read
    for row, (i, sign) in enumerate([(0, 1), (0, -1), (1, 1), (1, -1)]):
        for column, strengths in ((read_out.columns[3], read @ u[:, i]), (read_out.columns[4], written @ vh[i])):
            tokens = m.tokenizer.visible_texts((sign * strengths).topk(4).indices.tolist())
            assert read_out.iloc[row][column] == " ".join(tokens)
        assert read_out.iloc[row]["value"] == pytest.approx(float(s[i]))
    monkeypatch.setattr("gemmascope.model.modules.TOKENS", 7)
    assert factors.read_out(m, k=4, n=2).equals(read_out)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"k": 0}, SiteError, "k is a whole number from 1 to 61; given 0"),
        ({"n": 13}, SiteError, "n is a whole number from 1 to 12; given 13"),
        ({"n": True}, SiteError, "n is a whole number"),
        ({"model": None}, GemmascopeError, "of d_model 32; given NoneType"),
        ({"model": model_of(checkpoint(hidden_size=48))}, GemmascopeError, "given 'random', whose d_model is 48"),
    ],
)
def test_a_bad_read_out_is_refused(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        model().layer(0).ov(0).read_out(**{"model": model(), **arguments})


@pytest.mark.parametrize("kind", ["q", "k", "v"])
@pytest.mark.parametrize("shape", SHAPES)
def test_composition_is_the_norm_of_the_product_of_whole_matrices(kind: str, shape: dict[str, int]) -> None:
    m = model(shape, seed=1)
    composition = gs.composition(m, kind).scores
    written = {(layer, head): m.layer(layer).ov(head).matrix().double() for layer in range(3) for head in range(8)}
    scores = {(layer, head): m.layer(layer).qk(head).matrix().double() for layer, head in written}
    reading = {"q": scores, "k": {place: matrix.T for place, matrix in scores.items()}, "v": written}[kind]
    for (s, a), send in written.items():
        for (r, b), receive in reading.items():
            score = float(composition.loc[s, a, r, b])
            if s >= r:
                assert np.isnan(score)
            else:
                assert score == pytest.approx(float((send @ receive).norm() / (send.norm() * receive.norm())), rel=1e-3)


def test_composition_of_some_layers_is_a_part_of_all(layers_read: list[int]) -> None:
    m = model()
    all_layers = gs.composition(m, "v").scores
    layers_read.clear()
    part = gs.composition(m, "v", senders=[1, 0], receivers=-1).scores
    assert layers_read == [0, 1, 2]
    assert np.array_equal(part.values, all_layers.sel(from_layer=[1, 0], to_layer=[2]).values)
    assert part["to_kv_head"].values.tolist() == part["from_kv_head"].values.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert (part["from_kind"].values.tolist(), part["to_kind"].values.tolist()) == (["global", "local"], ["local"])
    layers_read.clear()
    gs.composition(m, "q", receivers=1)
    assert layers_read == [0, 1]  # layers after the last receiver are not read


def test_composition_has_a_text_form_a_table_and_a_picture() -> None:
    composition = gs.composition(model(), "k")
    frame = composition.to_dataframe()
    assert len(frame) == 3 * 64
    assert not frame["score"].isna().any()
    best = composition.best(4)
    assert [pair[-1] for pair in best] == sorted(frame["score"], reverse=True)[:4]
    for *place, score in best:
        assert float(composition.scores.loc[tuple(place)]) == score
    a, b, c, d, _ = best[0]
    assert f"layer {a} head {b} -> layer {c} head {d} (kv head {d // 2})" in repr(composition)
    drawn = composition.plot()
    assert np.array_equal(drawn.data[-1].z, composition.scores.values[:2, :, 1:].reshape(16, 16), equal_nan=True)
    assert list(drawn.layout.xaxis.ticktext[7:9]) == ["1◆.7", "2.0"]


def test_of_many_heads_the_largest_of_two_layers_is_drawn() -> None:
    composition = gs.composition(model_of(checkpoint("lglglglg")), "q")
    z = np.array(composition.plot().data[-1].z, dtype=float)
    assert z.shape == (7, 7)
    assert z[1, 3] == composition.scores.loc[1, :, 4].max()
    assert np.isnan(z[4, 1])
    assert "largest of each two layers" in composition.plot().layout.title.text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: model().layer(0).ov(8), r"there is no head 8: query heads go from 0 to 7 \(or from -1 to -8.*h // 2"),
        (lambda: model().layer(0).qk(-9), "there is no head -9"),
        (lambda: model().layer(0).qk(True), "a head is a whole number"),
        (lambda: model().layer(0).qk(0, distance=1.0), "0 or more; given 1.0"),
        (lambda: gs.composition(model(), "v", senders=[1], receivers=[0, 1]), "no sender comes before a receiver"),
        (lambda: gs.composition(model(), "v", senders=[]), "senders is an empty list"),
        (lambda: gs.composition(model(), "v", receivers=[2, -1]), "receivers names a layer twice"),
        (lambda: gs.composition(model(), "v", receivers="2"), "receivers is a layer or a list of layers"),
        (lambda: model().layer(0).qk(0, distance=-1), "0 or more; given -1"),
        (lambda: gs.composition(model(), "o"), "kind is one of 'q', 'k', 'v'; given 'o'"),
        (lambda: gs.composition(model(), "q", senders=[9]), "there is no layer 9"),
    ],
)
def test_layers_and_heads_that_do_not_exist_are_refused(call: Any, message: str) -> None:
    with pytest.raises(SiteError, match=message):
        call()
