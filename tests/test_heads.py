"""Scores of heads: planted heads are found, and every score is what a plain loop over the patterns gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint, model_of, prompt
from pieces import worded
from planted import INDUCTION, PREVIOUS, planted

import gemmascope as gs
from gemmascope.analysis.heads import KINDS, random_prompts
from gemmascope.errors import BudgetError, GemmascopeError, PromptError, SiteError
from gemmascope.model.model import Model
from gemmascope.streaming.file_embedding import FileEmbedding


def test_the_planted_heads_are_found() -> None:
    model = planted()
    for kind, where in (("previous_token", PREVIOUS), ("induction", INDUCTION)):
        result = gs.head_scores(model, kind, length=10)
        layer, head, score = result.best(1)[0]
        assert (layer, head) == where
        assert score > 0.95
        other_scores = [s for (layer, head), s in np.ndenumerate(result.scores.values) if (layer, head) != where]
        assert max(other_scores) < 0.25  # the heads at random


def test_the_planted_induction_head_copies_and_composes_through_its_keys() -> None:
    model = planted()
    assert gs.head_scores(model, "copying").scores.values[INDUCTION] > 0.95
    assert gs.head_scores(model, "copying").scores.values[PREVIOUS] == pytest.approx(0.0, abs=0.2)
    results = {kind: gs.composition(model, kind) for kind in "qkv"}
    scores = {kind: float(c.scores.loc[0, PREVIOUS[1], 1, INDUCTION[1]]) for kind, c in results.items()}
    assert scores["k"] > 0.2
    assert scores["q"] == scores["v"] == 0.0
    # The query heads of one kv head have the same keys, so the one beside it composes as much.
    sharing = {INDUCTION[1], INDUCTION[1] + 1}
    assert {(a, b, c) for a, b, c, *_ in results["k"].best(2)} == {(*PREVIOUS, 1)}
    assert {d for *_, d, _ in results["k"].best(2)} == sharing
    assert results["k"].best(3)[2][-1] < 0.8 * scores["k"]


def test_the_planted_model_completes_a_repeated_sequence() -> None:
    ids = [2, 5, 9, 3, 12, 7, 5]
    assert gs.trace(ids, model=planted()).top(1)[0][1] == 9


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
                    "self": [q],
                    "first_occurrence": [ids.index(ids[q])] if ids.index(ids[q]) < q else [],
                }.get(kind)
                if keys == []:
                    continue
                for head in range(model.config.n_heads):
                    row = pattern[head, q]
                    if kind == "positional":
                        sums.setdefault((layer, head), []).append(q - int(row.argmax()))
                        continue
                    if kind == "entropy":
                        sums.setdefault((layer, head), []).append(-sum(float(p * p.log()) for p in row if p > 0))
                        continue
                    value = sum(float(row[k]) * (q - k) for k in range(q)) if keys is None else float(row[keys].sum())
                    sums.setdefault((layer, head), []).append(value)
    scores = np.zeros((model.n_layers, model.config.n_heads))
    for place, values in sums.items():
        scores[place] = max(map(values.count, values)) / len(values) if kind == "positional" else np.mean(values)
    return scores


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "copying"])
def test_a_score_equals_a_loop_over_the_pattern(kind: str) -> None:
    model = model_of(checkpoint("lgl", seed=2, vocab_size=9))
    runs = [prompt(11, 9, seed=1), prompt(7, 9, seed=2), prompt(11, 9, seed=3)]
    result = gs.head_scores(model, kind, prompts=runs)
    assert np.allclose(result.scores.values, plain_score(kind, model, runs), atol=1e-5)
    assert result.scores["kind"].values.tolist() == ["local", "global", "local"]
    drawn = gs.head_scores(model, kind, n=2, length=4, seed=5)
    assert np.allclose(drawn.scores, plain_score(kind, model, random_prompts(model, 2, 4, 5)), atol=1e-5)


@pytest.mark.parametrize("shape", [{}, {"num_key_value_heads": 8}, {"num_key_value_heads": 1}, {"rms_norm_eps": 100.0}])
def test_copying_is_the_sum_of_the_eigenvalues_of_the_whole_matrix(shape: dict[str, Any]) -> None:
    model = model_of(checkpoint("lg", seed=1, **shape))
    scores = gs.head_scores(model, "copying").scores
    table = model.network.model.embed_tokens.weight.detach().double()
    read = table * 32**0.5
    read = read / (read.square().mean(-1, keepdim=True) + model.config.norm_eps).sqrt()
    for layer in range(2):
        at = model.layer(layer)
        w_v, w_o = (w.detach().double() for w in (at.self_attn.v_proj.weight, at.self_attn.o_proj.weight))
        for head in range(8):
            kv = head // model.config.heads_per_kv
            ov = w_v[kv * 12 : kv * 12 + 12].T @ w_o[:, head * 12 : head * 12 + 12].T
            ov = (1 + at.input_layernorm.weight.detach())[:, None] * ov * (1 + at.post_attention_layernorm.weight.detach())
            matrix = read @ ov @ ((1 + model.network.model.norm.weight.detach())[:, None] * table.T)
            values = torch.linalg.eigvals(matrix)
            expected = float(values.real.sum() / values.abs().sum())
            assert float(scores[layer, head]) == pytest.approx(expected, abs=1e-3)


def test_one_pass_for_all_prompts_and_kinds(layers_read: list[int]) -> None:
    model = model_of(checkpoint("lgl"))
    kinds = [kind for kind in KINDS if kind != "copying"]
    results = gs.head_scores(model, kinds, n=5, length=6)
    assert layers_read == [0, 1, 2]
    assert list(results) == kinds
    for kind, result in results.items():
        alone = gs.head_scores(model, kind, n=5, length=6)
        assert (result.kind, result.over) == (alone.kind, alone.over)
        assert result.scores.identical(alone.scores)
    both = gs.head_scores(model, ("copying", "sink"), prompts=[[2, 5, 6]])
    assert both["copying"].scores.identical(gs.head_scores(model, "copying").scores)


def test_scores_in_parts_equal_those_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(checkpoint("lgl", vocab_size=9))
    runs, kinds = [prompt(11, 9), prompt(5, 9, seed=1)], ["induction", "local_reach", "sink"]
    at_once = gs.head_scores(model, kinds, prompts=runs)
    monkeypatch.setattr("gemmascope.analysis.patterns.EDGES", 8 * 11 * 2)
    parts = gs.head_scores(model, kinds, prompts=runs)
    for kind in kinds:
        assert parts[kind].over == at_once[kind].over
        assert np.allclose(parts[kind].scores, at_once[kind].scores, atol=1e-6)


def test_scores_of_a_bfloat16_model_are_those_of_its_patterns() -> None:
    """In the first layer to the digit; further on, runs that are grouped differently round differently.

    The runs of head_scores share a pass, where attention pads prompts of unlike lengths to one shape, and its bfloat16
    products sum in another order than those of a prompt alone. Neither order is nearer to float32.
    """
    source = checkpoint("lgl", vocab_size=9).bfloat16()
    model, runs = model_of(source), [prompt(11, 9), prompt(7, 9, seed=1)]
    results = gs.head_scores(model, ["induction", "sink"], prompts=runs)
    of_patterns = {kind: plain_score(kind, model, runs) for kind in results}
    exact_model = model_of(source.float())
    for kind, result in results.items():
        assert result.scores.dtype == np.float32
        scores, plain, exact = result.scores.values, of_patterns[kind], plain_score(kind, exact_model, runs)
        assert np.abs(scores - plain)[0].max() <= 1e-6
        assert np.abs(scores - exact).max() <= 2 * np.abs(plain - exact).max() <= 0.04


def test_random_prompts_are_short_enough_for_the_window() -> None:
    model = model_of(checkpoint("lgl"))  # of window 4
    assert [len(ids) for ids in random_prompts(model, 2, None, 0)] == [7, 7]
    for kind in ("induction", "duplicate_token"):
        assert gs.head_scores(model, kind).over.endswith("queries")
        far = gs.head_scores(model, kind, n=2, length=9)
        assert "18 queries; in 18 of them local layers (window 4) see none of the keys in question" in far.over
        assert float(far.scores.sel(layer=[0, 2]).max()) == 0.0 < float(far.scores.sel(layer=1).min())
    assert [len(ids) for ids in random_prompts(model_of(checkpoint("gg")), 1, None, 0)] == [49]
    # Of as many tokens as the window, the first saying is just out of sight, and what followed it is not.
    edge = gs.head_scores(model, ["duplicate_token", "induction"], n=1, length=4)
    assert "in 4 of them" in edge["duplicate_token"].over
    assert edge["induction"].over.endswith("4 queries")


@pytest.mark.parametrize("embedding_in_file", [False, True])
def test_streamed_equals_resident(embedding_in_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint("lgl").save_pretrained(tmp_path / "source")
    memory: int | str = "1GiB"
    if embedding_in_file:
        for name, small in (
            ("memory.placement.MICROBATCH_ROWS", 8),
            ("memory.placement.RESERVED_ROWS", 64),
            ("memory.placement.CHUNK_BYTES", 1000),
            ("streaming.file_embedding.CHUNK_BYTES", 1000),
        ):
            monkeypatch.setattr(f"gemmascope.{name}", small)
        with pytest.raises(BudgetError) as caught:
            gs.load(tmp_path / "source", memory=1)
        memory = int(str(caught.value).split("needs ")[1].split(" bytes")[0].replace(",", ""))
    resident, streamed = gs.load(tmp_path / "source"), gs.load(tmp_path / "source", memory=memory)
    assert isinstance(streamed.network.model.embed_tokens, FileEmbedding) == embedding_in_file
    resident_scores, streamed_scores = (gs.head_scores(m, list(KINDS), n=3, length=5) for m in (resident, streamed))
    assert all(np.allclose(resident_scores[kind].scores, streamed_scores[kind].scores, atol=1e-5) for kind in KINDS)
    a, b = (gs.attention_summary(gs.trace(prompt(9), model=m)).by_query for m in (resident, streamed))
    assert a.identical(b)
    x, y = (m.layer(1).ov(3).read_out(m) for m in (resident, streamed))
    assert x.equals(y)
    assert np.array_equal(*(gs.composition(m, "k").scores for m in (resident, streamed)), equal_nan=True)


@pytest.mark.nano
@pytest.mark.parametrize(("kind", "back", "first"), [("induction", 23, 25), ("previous_token", 1, 2)])
def test_nano_s_scores_are_means_along_a_diagonal_of_its_patterns(kind: str, back: int, first: int) -> None:
    model = gs.load()
    diagonals = []
    for ids in random_prompts(model, 4, 24, 1):
        t = gs.trace(ids, model=model)
        patterns = torch.stack([t["pattern", layer] for layer in range(model.n_layers)])
        diagonals.append(patterns.diagonal(-back, dim1=-2, dim2=-1)[..., first - back :].mean(-1))
    scores = gs.head_scores(model, kind, n=4, length=24, seed=1).scores
    assert np.allclose(scores, torch.stack(diagonals).mean(0), atol=1e-5)


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


def test_scores_over_text_prompts_have_a_text_form_a_table_and_a_picture() -> None:
    model = worded()
    result = gs.head_scores(model, "duplicate_token", prompts="When Mary and John went to the store, John gave a drink to")
    assert "duplicate_token scores of random" in repr(result)
    assert result.over == "1 prompt, 2 queries; in 2 of them local layers (window 4) see none of the keys in question"
    figure = result.plot()
    assert (figure.data[-1].zmin, figure.data[-1].zmax) == (0.0, 1.0)
    assert result.over in figure.layout.title.subtitle.text
    assert len(result.to_dataframe()) == 24
    best = result.best(3)
    assert [s for *_, s in best] == sorted((s for *_, s in best), reverse=True)
    assert gs.head_scores(model, "copying").plot().data[-1].zmin < 0


@pytest.mark.parametrize(
    ("asked_for", "error", "message"),
    [
        ({"kind": "inductoin"}, SiteError, "Did you mean 'induction'"),
        ({"kind": ["sink", "inductoin"]}, SiteError, "Did you mean 'induction'"),
        ({"kind": []}, SiteError, "the list of kinds is empty"),
        ({"kind": None}, SiteError, "there is no kind of head None"),
        ({"kind": "induction", "prompts": "When Mary and John"}, PromptError, "nothing to measure induction on .* repeat"),
        ({"kind": "sink", "prompts": [[2], [2]]}, PromptError, "nothing to measure sink on .* two tokens or more"),
        ({"prompts": [list(range(5)) * 13]}, PromptError, "65 tokens and 'random' a context of 64"),
        ({"kind": "copying", "prompts": "When Mary"}, PromptError, "read from the weights: leave prompts out"),
        ({"length": 32}, PromptError, "longer than the context of 64: 31 at most"),
        ({"length": 0}, PromptError, "length is a whole number of at least 1"),
        ({"n": True}, PromptError, "n is a whole number from 1"),
        ({"prompts": []}, PromptError, "the prompt is empty"),
        ({"length": 31, "model": planted()}, PromptError, "has 14 ordinary tokens; asked for 31"),
        ({"model": "nano"}, GemmascopeError, "model is what gs.load returns"),
    ],
)
def test_bad_arguments_are_refused(asked_for: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gs.head_scores(**{"model": worded(), **asked_for})


EDITS = (
    (),
    (gs.knockout(layer=1, head=2, q_pos=5, k_pos=[0, 1]),),
    (gs.ablate("pattern", layer=0, head=3), gs.ablate("q", layer=2, head=1), gs.ablate("resid_pre", layer=1, pos=3)),
)


@pytest.mark.parametrize("edits", EDITS)
def test_a_summary_equals_a_loop_over_the_pattern(edits: Any) -> None:
    model = model_of(checkpoint("lgl", seed=4))
    t = gs.trace(prompt(9), model=model, edits=edits)
    summary = gs.attention_summary(t)
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
                    assert float(summary.by_query[name][layer, head, q]) == pytest.approx(value, abs=1e-5), name
    for name in ("entropy", "distance", "on_bos", "beyond_window"):
        assert np.allclose(summary.mean[name], summary.by_query[name][..., 1:].mean("q_pos"))
    assert float(summary.by_query["beyond_window"].sel(layer=[0, 2]).max()) == 0.0


def test_a_summary_in_parts_equals_one_at_once(monkeypatch: pytest.MonkeyPatch, layers_read: list[int]) -> None:
    t = gs.trace(prompt(9), model=model_of(checkpoint("lgl")))
    layers_read.clear()
    at_once = gs.attention_summary(t).by_query
    assert layers_read == [0, 1, 2]
    monkeypatch.setattr("gemmascope.analysis.patterns.EDGES", 8 * 9 * 2)
    parts = gs.attention_summary(t).by_query
    assert all(np.allclose(at_once[name], parts[name], atol=1e-6) for name in at_once)


def test_a_summary_has_a_text_form_a_table_and_a_picture() -> None:
    t = gs.trace("When Mary and John went to the store", model=worded())
    summary = gs.attention_summary(t)
    assert "the window of 4 is shorter than the prompt" in repr(summary)
    assert "cuts nothing off here" in repr(gs.attention_summary(gs.trace("When", model=worded())))
    assert np.array_equal(summary.plot("distance").data[-1].z, summary.mean["distance"])
    assert len(summary.to_dataframe()) == 24
    with pytest.raises(SiteError, match="measure is one of 'entropy', 'distance'"):
        summary.plot("spread")
    with pytest.raises(SiteError, match="a summary is of a trace"):
        gs.attention_summary("When")  # type: ignore[arg-type]
