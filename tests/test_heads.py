"""Scores of heads: planted heads are found, and every score is what a plain loop over the patterns gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint, model_of, prompt
from pieces import worded
from planted import INDUCTION, PREVIOUS, planted

import gemmascope as gs
from gemmascope.analysis.heads import KINDS, random_prompts
from gemmascope.errors import GemmascopeError, PromptError, SiteError
from gemmascope.model.model import Model


def test_the_planted_heads_are_found() -> None:
    model = planted()
    for kind, where in (("previous_token", PREVIOUS), ("induction", INDUCTION)):
        found = gs.head_scores(model, kind, length=10)
        layer, head, score = found.best(1)[0]
        assert (layer, head) == where
        assert score > 0.95
        others = [s for (layer, head), s in np.ndenumerate(found.scores.values) if (layer, head) != where]
        assert max(others) < 0.25  # the heads of zeros look everywhere alike


def test_the_planted_induction_head_copies_and_goes_through_its_keys() -> None:
    model = planted()
    assert gs.head_scores(model, "copying").scores.values[INDUCTION] > 0.95
    assert gs.head_scores(model, "copying").scores.values[PREVIOUS] == pytest.approx(0.0, abs=0.2)
    through = {kind: float(gs.composition(model, kind)[0, PREVIOUS[1], 1, INDUCTION[1]]) for kind in "qkv"}
    assert through["k"] > 0.1
    assert through["q"] == through["v"] == 0.0


def test_the_planted_model_completes_what_it_was_told() -> None:
    said = [2, 5, 9, 3, 12, 7, 5]
    assert gs.trace(said, model=planted()).top(1)[0][1] == 9


def plain_score(kind: str, model: Model, runs: Sequence[Sequence[int]]) -> np.ndarray[Any, Any]:
    """A loop over queries and keys of every pattern."""
    sums: dict[tuple[int, int], list[float]] = {}
    for ids in runs:
        t = gs.trace(list(ids), model=model)
        for layer in range(model.n_layers):
            pattern = t["pattern", layer]
            for q in range(1, len(ids)):
                keys = {
                    "previous_token": [q - 1] if q > 1 else [],  # the first position is a place to rest at
                    "duplicate_token": [k for k in range(q) if ids[k] == ids[q]],
                    "induction": [k for k in range(1, q) if ids[k - 1] == ids[q]],
                    "sink": [0],
                }.get(kind)
                if keys == []:
                    continue
                for head in range(model.config.n_heads):
                    row = pattern[head, q]
                    value = sum(float(row[k]) * (q - k) for k in range(q)) if keys is None else float(row[keys].sum())
                    sums.setdefault((layer, head), []).append(value)
    scores = np.zeros((model.n_layers, model.config.n_heads))
    for place, values in sums.items():
        scores[place] = np.mean(values)
    return scores


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "copying"])
def test_a_score_is_what_a_loop_over_the_pattern_gives(kind: str) -> None:
    model = model_of(checkpoint("lgl", seed=2, vocab_size=9))
    runs = [prompt(11, 9, seed=1), prompt(7, 9, seed=2), prompt(11, 9, seed=3)]
    found = gs.head_scores(model, kind, prompts=runs)
    assert np.allclose(found.scores.values, plain_score(kind, model, runs), atol=1e-5)
    assert found.scores["kind"].values.tolist() == ["local", "global", "local"]
    drawn = gs.head_scores(model, kind, n=2, length=4, seed=5)
    assert np.allclose(drawn.scores, plain_score(kind, model, random_prompts(model, 2, 4, 5)), atol=1e-5)


@pytest.mark.parametrize("shape", [{}, {"num_key_value_heads": 8}, {"num_key_value_heads": 1}])
def test_copying_is_the_sum_of_the_eigenvalues_of_the_whole_matrix(shape: dict[str, int]) -> None:
    model = model_of(checkpoint("lg", seed=1, **shape))
    scores = gs.head_scores(model, "copying").scores
    table = model.network.model.embed_tokens.weight.detach().double()
    read = table / (table * 32**0.5).square().mean(-1, keepdim=True).sqrt() * 32**0.5
    for layer in range(2):
        at = model.layer(layer)
        w_v, w_o = (w.detach().double() for w in (at.self_attn.v_proj.weight, at.self_attn.o_proj.weight))
        for head in range(8):
            kv = head // model.config.heads_per_kv
            ov = w_v[kv * 12 : kv * 12 + 12].T @ w_o[:, head * 12 : head * 12 + 12].T
            ov = (1 + at.input_layernorm.weight.detach())[:, None] * ov * (1 + at.post_attention_layernorm.weight.detach())
            whole = read @ ov @ ((1 + model.network.model.norm.weight.detach())[:, None] * table.T)
            values = torch.linalg.eigvals(whole)
            expected = float(values.real.sum() / values.abs().sum())
            assert float(scores[layer, head]) == pytest.approx(expected, abs=1e-3)


def test_one_pass_for_all_prompts(asked: list[int]) -> None:
    model = model_of(checkpoint("lgl"))
    gs.head_scores(model, "induction", n=5, length=6)
    assert asked == [0, 1, 2]


def test_the_same_seed_gives_the_same_prompts_of_ordinary_tokens() -> None:
    model = worded()
    runs = random_prompts(model, 3, 6, 7)
    assert runs == random_prompts(model, 3, 6, 7)
    assert runs != random_prompts(model, 3, 6, 8)
    for ids in runs:
        assert ids[0] == model.config.bos_id
        assert ids[1:7] == ids[7:]
        assert len(set(ids[1:7])) == 6
        assert not any(model.tokenizer.is_special(i) for i in ids[1:])
        assert max(ids) < model.tokenizer.vocab_size


def test_text_prompts_and_pictures() -> None:
    model = worded()
    found = gs.head_scores(model, "duplicate_token", prompts="When Mary and John went to the store, John gave a drink to")
    assert "duplicate_token scores of random" in repr(found)
    assert found.over == "1 prompts, 2 queries"
    figure = found.plot()
    assert (figure.data[-1].zmin, figure.data[-1].zmax) == (0.0, 1.0)
    assert len(found.to_dataframe()) == 24
    best = found.best(3)
    assert [s for *_, s in best] == sorted((s for *_, s in best), reverse=True)
    assert gs.head_scores(model, "copying").plot().data[-1].zmin < 0


@pytest.mark.parametrize(
    ("asked_for", "error", "message"),
    [
        ({"kind": "inductoin"}, SiteError, "Did you mean 'induction'"),
        ({"kind": "induction", "prompts": "When Mary and John"}, PromptError, "no token of these prompts asks for"),
        ({"kind": "copying", "prompts": "When Mary"}, PromptError, "read from the weights: leave prompts out"),
        ({"length": 32}, PromptError, "longer than the context of 64: 31 at most"),
        ({"length": 0}, PromptError, "length is a whole number from 1"),
        ({"n": True}, PromptError, "n is a whole number from 1"),
        ({"prompts": []}, PromptError, "the prompt is empty"),
        ({"length": 31, "model": planted()}, PromptError, "has 14 ordinary tokens; asked for 31"),
        ({"model": "nano"}, GemmascopeError, "model is what gs.load returns"),
    ],
)
def test_what_does_not_fit_is_refused(asked_for: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gs.head_scores(**{"model": worded(), **asked_for})


@pytest.mark.parametrize("edits", [(), (gs.knockout(layer=1, head=2, q_pos=5, k_pos=[0, 1]),)])
def test_a_summary_is_what_a_loop_over_the_pattern_gives(edits: Any) -> None:
    model = model_of(checkpoint("lgl", seed=4))
    t = gs.trace(prompt(9), model=model, edits=edits)
    found = gs.attention_summary(t)
    for layer in range(3):
        pattern = t["pattern", layer].double()
        for head in range(8):
            for q in range(9):
                row = pattern[head, q, : q + 1]
                entropy = -sum(float(p) * float(p.log()) for p in row if p > 0)
                expected = {
                    "entropy": entropy,
                    "distance": sum(float(p) * (q - k) for k, p in enumerate(row)),
                    "on_bos": float(row[0]),
                    "beyond_window": sum(float(p) for k, p in enumerate(row) if q - k >= 4),
                }
                for name, value in expected.items():
                    assert float(found.by_query[name][layer, head, q]) == pytest.approx(value, abs=1e-5), name
    for name in ("entropy", "distance", "on_bos", "beyond_window"):
        assert np.allclose(found.mean[name], found.by_query[name][..., 1:].mean("q_pos"))
    assert float(found.by_query["beyond_window"].sel(layer=[0, 2]).max()) == 0.0


def test_a_summary_in_parts_equals_one_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    t = gs.trace(prompt(9), model=model_of(checkpoint("lgl")))
    whole = gs.attention_summary(t).by_query
    monkeypatch.setattr("gemmascope.analysis.attention_summary.EDGES", 8 * 9 * 2)
    parts = gs.attention_summary(t).by_query
    assert all(np.allclose(whole[name], parts[name], atol=1e-6) for name in whole)


def test_a_summary_shows_itself() -> None:
    t = gs.trace("When Mary and John went to the store", model=worded())
    found = gs.attention_summary(t)
    assert "the window of 4 is shorter than the prompt" in repr(found)
    assert "cuts nothing off here" in repr(gs.attention_summary(gs.trace("When", model=worded())))
    assert np.array_equal(found.plot("distance").data[-1].z, found.mean["distance"])
    assert len(found.to_dataframe()) == 24
    with pytest.raises(SiteError, match="measure is one of entropy, distance"):
        found.plot("spread")
    with pytest.raises(SiteError, match="a summary is of a trace"):
        gs.attention_summary("When")  # type: ignore[arg-type]
