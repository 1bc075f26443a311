"""gs.compare against naive computation from traces, and laws of its numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from checkpoints import checkpoint, model_of, prompt
from hypothesis import given, settings
from hypothesis import strategies as st
from pieces import ODD, STORY, Pieces, worded
from test_showing import Page
from torch import Tensor

import gemmascope as gs
from gemmascope.analysis.comparison import rank_correlation
from gemmascope.errors import MetricError, PromptError, SweepError
from gemmascope.model.model import Model
from gemmascope.sweeps import sweep as sweep_file
from gemmascope.tokens.tokenizer import Tokenizer

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
# Lengths that differ, one of them the shortest there may be, and one beyond the window of 4.
PROMPTS = [prompt(9, seed=1), prompt(2, seed=2), prompt(5, seed=3)]


@cache
def noisy(share: float = 0.0, kinds: str = "lgl", seed: int = 7) -> Model:
    """The random model with noise on every matrix, a share of the matrix's own standard deviation.

    Its embedding is made smaller: a model that is sure of every answer keeps it whatever a head does.
    """
    source, draw = checkpoint(kinds), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        source.model.embed_tokens.weight *= 0.2
        for p in source.parameters():
            if p.dim() == 2:
                p += share * p.std() * torch.randn(p.shape, generator=draw)
    model = model_of(source)
    return Model(model.network, None, f"noise {share}")


@cache
def compared(a: float, b: float) -> gs.Comparison:
    return gs.compare(noisy(a), noisy(b), PROMPTS)


def log_p(logits: Tensor) -> Tensor:
    return logits.double().log_softmax(-1)


def cosine(x: Tensor, y: Tensor) -> float:
    return float(x.double() @ y.double() / (x.double().norm() * y.double().norm()))


# -- laws --


def test_a_model_compared_with_itself_has_no_difference() -> None:
    c = compared(0.0, 0.0)
    assert (c.kl == 0).all()
    assert (c.kl_all == 0).all()
    assert c.kl_mean == 0
    assert c.agrees.all()
    assert (c.logprob_change == 0).all()
    assert (c.cosine == 1).all()
    assert (c.relative_error == 0).all()
    assert c.top_heads_a == c.top_heads_b
    assert len(set(c.top_heads_a)) == c.top == 10
    assert c.head_agreement == 1
    assert c.head_rank_correlation == pytest.approx(1)
    assert np.abs(c.effect_a.values).max() > 0.1


def test_symmetric_measures_do_not_depend_on_the_order_of_the_models() -> None:
    pairs = [(prompt(6, seed=4), prompt(6, seed=5), gs.logit_diff(7, 8))]
    a_b, b_a = (gs.compare(noisy(a), noisy(b), PROMPTS, pairs=pairs, top=6) for a, b in ((0.0, 0.1), (0.1, 0.0)))
    assert np.allclose(a_b.cosine, b_a.cosine, rtol=0, atol=1e-14)
    assert np.array_equal(a_b.agrees, b_a.agrees)
    assert 0 < a_b.head_agreement == b_a.head_agreement < 1
    assert a_b.head_rank_correlation == pytest.approx(b_a.head_rank_correlation)
    assert a_b.top_heads_a == b_a.top_heads_b
    assert a_b.top_heads_b == b_a.top_heads_a
    assert np.array_equal(a_b.effect_a, b_a.effect_b)
    # |a - b| is symmetric; its ratio to the norm of a is not. Nor is KL(a || b) that of (b || a).
    assert not np.allclose(a_b.relative_error, b_a.relative_error, rtol=1e-3)
    assert not np.allclose(a_b.kl, b_a.kl, rtol=1e-3)


def test_differences_grow_with_the_noise() -> None:
    comparisons = [compared(0.0, share) for share in (0.003, 0.03, 0.3)]
    for less, more in pairwise(comparisons):
        assert 0 < less.kl_mean < more.kl_mean
        assert (less.kl < more.kl).all()
        assert (less.relative_error < more.relative_error).all()
        assert (more.cosine < less.cosine).all()
    # Ranks change in jumps, so the correlation falls with the noise only roughly.
    ranks = [c.head_rank_correlation for c in comparisons]
    assert max(ranks[1:]) < ranks[0] < 1
    assert ranks[0] > 0.9


def test_bfloat16_is_near_float32_of_the_same_weights() -> None:
    source = checkpoint("lgl")
    for p in source.parameters():  # weights that bfloat16 can write: only the arithmetic differs
        p.data = p.data.bfloat16().float()
    exact, rounded = model_of(source), model_of(source.bfloat16())
    c = gs.compare(exact, rounded, PROMPTS)
    assert 0 < c.kl_mean < 0.05
    assert (c.cosine > 0.999).all()
    assert (c.relative_error < 0.05).all()
    assert (c.relative_error[1:] > 1e-4).all()
    assert c.head_agreement >= 0.8
    assert c.model_a.startswith("'random' (float32, ")
    assert c.model_b.startswith("'random' (bfloat16, ")


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=2, max_size=20))
def test_rank_correlation_is_that_of_pandas(numbers: list[tuple[int, int]]) -> None:
    import pandas

    x, y = (np.array(column, dtype=float) for column in zip(*numbers, strict=True))
    correlation = rank_correlation(x, y)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert np.isnan(correlation)
    else:
        expected = pandas.Series(x).rank().corr(pandas.Series(y).rank())
        assert correlation == pytest.approx(expected, abs=1e-12)
        assert rank_correlation(np.exp(x), y) == pytest.approx(correlation)  # of ranks alone
        assert rank_correlation(-x, y) == pytest.approx(-correlation)


# -- against naive computation --


def test_answers_are_those_of_the_traces() -> None:
    c = compared(0.0, 0.3)
    for i, ids in enumerate(PROMPTS):
        p, q = (log_p(gs.trace(ids, model=noisy(share)).logits) for share in (0.0, 0.3))
        kl = [float(sum(a.exp() * (a - b) for a, b in zip(u, v, strict=True))) for u, v in zip(p, q, strict=True)]
        assert float(c.kl[i]) == pytest.approx(kl[-1], rel=1e-4)
        assert float(c.kl_all[i]) == pytest.approx(np.mean(kl), rel=1e-4)
        best_a, best_b = int(p[-1].argmax()), int(q[-1].argmax())
        assert bool(c.agrees[i]) == (best_a == best_b)
        assert (str(c.kl["answer_a"].values[i]), str(c.kl["answer_b"].values[i])) == (str(best_a), str(best_b))
        assert float(c.logprob_change[i]) == pytest.approx(float(q[-1][best_a] - p[-1][best_a]), rel=1e-4)
    assert 0 < int(c.agrees.sum()) < len(PROMPTS)  # both cases occur
    assert c.kl_mean == pytest.approx(float((c.kl_all * [9, 2, 5]).sum()) / 16)


def test_the_stream_is_compared_at_every_position_but_the_first() -> None:
    c = compared(0.0, 0.3)
    both = [[gs.trace(ids, model=noisy(share)) for share in (0.0, 0.3)] for ids in PROMPTS]
    sites = ["embed", *(("resid_post", layer) for layer in range(3))]
    assert c.cosine["site"].values.tolist() == ["embed", "resid_post 0", "resid_post 1", "resid_post 2"]
    for entry, site in enumerate(sites):
        rows = [(a, b) for x, y in both for a, b in zip(x[site][1:], y[site][1:], strict=True)]
        assert len(rows) == 8 + 1 + 4
        assert float(c.cosine[entry]) == pytest.approx(np.mean([cosine(a, b) for a, b in rows]), abs=1e-5)
        errors = [float((a - b).double().norm() / a.double().norm()) for a, b in rows]
        assert float(c.relative_error[entry]) == pytest.approx(np.mean(errors), rel=1e-4)


def test_without_pairs_every_head_is_set_to_0() -> None:
    c = compared(0.0, 0.3)
    for i, ids in enumerate(PROMPTS):
        best = gs.trace(ids, model=noisy(0.0)).top(1)[0][1]
        for effect, share in ((c.effect_a, 0.0), (c.effect_b, 0.3)):
            base = float(log_p(gs.trace(ids, model=noisy(share)).next_logits)[best])
            for layer, head in ((0, 3), (1, 0), (2, 7)):
                edits = [gs.ablate("z", layer=layer, head=head)]
                run = gs.trace(ids, model=noisy(share), edits=edits)
                expected = float(log_p(run.next_logits)[best]) - base
                assert float(effect[i].sel(layer=layer, head=head)) == pytest.approx(expected, abs=1e-4)
    assert c.effect_a.dims == ("pair", "layer", "head")
    assert c.effect_a.shape == (3, 3, 8)
    assert not c.patched


def test_top_heads_and_their_agreement_are_those_of_the_effects() -> None:
    c = compared(0.0, 0.3)
    named = []
    for effect, heads in ((c.effect_a, c.top_heads_a), (c.effect_b, c.top_heads_b)):
        size = {(layer, head): float(abs(effect[:, layer, head]).mean()) for layer in range(3) for head in range(8)}
        assert heads == sorted(size, key=lambda place: -size[place])[:10]
        named.append(set(heads))
    assert c.head_agreement == len(named[0] & named[1]) / 10 < 1
    assert c.head_agreement_by_chance == 10 / 24


def test_pairs_are_swept_with_both_models() -> None:
    metrics: list[Any] = [gs.logit_diff(7, 8), gs.answer_prob(3)]
    pairs = [(prompt(n, seed=n), prompt(n, seed=n + 9), metric) for n, metric in zip((4, 6), metrics, strict=True)]
    c = gs.compare(noisy(), noisy(0.3), prompt(3), pairs=pairs)
    cleans, corrupts, _ = map(list, zip(*pairs, strict=True))
    for effect, model in ((c.effect_a, noisy()), (c.effect_b, noisy(0.3))):
        s = gs.sweep(cleans, corrupts, metrics, site="z", by=("layer", "head"), model=model)
        assert np.array_equal(effect, s.per_pair)
    assert c.patched
    assert "patching z" in repr(c)


def test_pairs_may_be_those_of_a_family() -> None:
    one = gs.prompts.Pair(CLEAN, CORRUPT, " Mary", " John")
    family = gs.prompts.Pairs("ioi", (one,))
    c = gs.compare(worded(), worded(), CLEAN, pairs=family)
    s = gs.sweep(CLEAN, CORRUPT, gs.logit_diff(" Mary", " John"), site="z", by=("layer", "head"), model=worded())
    assert np.array_equal(c.effect_a[0], s.effect)


# -- prompts --


def test_prompts_of_different_lengths_do_not_affect_each_other() -> None:
    together = compared(0.0, 0.3)
    for i, ids in enumerate(PROMPTS):
        alone = gs.compare(noisy(), noisy(0.3), ids)  # one prompt is a list of one
        assert alone.kl.sizes == {"prompt": 1}
        for name in ("kl", "kl_all", "logprob_change"):
            assert float(getattr(alone, name)[0]) == pytest.approx(float(getattr(together, name)[i]), rel=1e-3, abs=1e-6)
        assert np.allclose(alone.effect_a[0], together.effect_a[i], atol=1e-4)
    assert together.kl["n_pos"].values.tolist() == [9, 2, 5]


def test_a_wide_vocabulary_is_compared_a_few_positions_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = compared(0.0, 0.3)
    for elements in (1, 2 * 61, 4 * 61):
        monkeypatch.setattr("gemmascope.run.logits.LOGIT_BYTES", 16 * elements)
        parts = gs.compare(noisy(), noisy(0.3), PROMPTS)
        assert np.allclose(parts.kl_all, at_once.kl_all, rtol=1e-5)
        assert np.allclose(parts.kl, at_once.kl, rtol=1e-5)
        assert np.array_equal(parts.agrees, at_once.agrees)


def test_text_is_read_once_and_a_model_without_a_tokenizer_runs_the_same_ids() -> None:
    mute = Model(worded().network, None, "mute")
    by_ids = gs.compare(mute, mute, [worded().ids(CLEAN), worded().ids(CORRUPT)])
    for a, b in ((worded(), mute), (mute, worded())):
        c = gs.compare(a, b, [CLEAN, CORRUPT])
        assert c.kl["text"].values.tolist() == ["<bos>" + CLEAN, "<bos>" + CORRUPT]
        assert np.array_equal(c.effect_a, by_ids.effect_a)
        assert (c.kl == 0).all()
    assert by_ids.kl["text"].values[0].startswith("2 3 4 5")


def test_equal_rows_of_zeros_have_cosine_1() -> None:
    source = checkpoint("l")
    source.model.embed_tokens.weight.data[5] = 0
    model = model_of(source)
    c = gs.compare(model, model, [2, 5, 5])
    assert (c.cosine == 1).all()
    assert (c.relative_error == 0).all()


# -- how it shows itself --


def test_the_text_form_holds_the_numbers_of_the_comparison() -> None:
    c = compared(0.0, 0.3)
    lines = repr(c).split("\n")
    assert lines[0] == "Comparison over 3 prompts, 16 positions"
    report = {line[2:14].strip(): line[14:] for line in lines[1:7]}
    assert list(report) == ["a", "b", "KL(a || b)", "answers", "stream", "heads"]
    assert report["a"].startswith("'noise 0.0' (float32, ")
    assert f"next token {float(c.kl.mean()):.3g} nats, at most {float(c.kl.max()):.3g};" in report["KL(a || b)"]
    assert report["KL(a || b)"].endswith(f"mean over all positions {c.kl_mean:.3g}")
    assert report["answers"].startswith(f"the same top answer in {int(c.agrees.sum())} of 3;")
    at = int(np.argmin(c.cosine.values))
    assert f"cosine at least {float(c.cosine[at]):.6f} ({c.cosine['site'].values[at]})" in report["stream"]
    assert "<bos> left out" in report["stream"]
    shared = len(set(c.top_heads_a) & set(c.top_heads_b))
    assert report["heads"].startswith(f"{shared} of the 10 strongest shared (4.2 by chance), rank correlation 0.")
    assert report["heads"].endswith("setting z to 0")
    assert [float(line.split()[0]) for line in lines[7:]] == sorted((float(f"{x:.3g}") for x in c.kl), reverse=True)


def test_the_tables_have_a_row_for_each_prompt_or_entry() -> None:
    c = compared(0.0, 0.3)
    prompts, layers, heads = (c.to_dataframe(by) for by in ("prompt", "layer", "head"))
    assert np.array_equal(c.to_dataframe()["kl"], prompts["kl"])
    assert np.array_equal(prompts["kl"], c.kl)
    assert {"prompt", "kl", "kl_all", "agrees", "logprob_change", "text", "answer_a", "answer_b"} <= set(prompts)
    assert np.array_equal(layers["cosine"], c.cosine)
    assert np.array_equal(layers["relative_error"], c.relative_error)
    assert layers["site"].tolist() == c.cosine["site"].values.tolist()
    assert len(heads) == 24
    row = heads[(heads["layer"] == 2) & (heads["head"] == 5)].iloc[0]
    assert row["effect_b"] == pytest.approx(float(c.effect_b[:, 2, 5].mean()))
    assert row["size_a"] == pytest.approx(float(abs(c.effect_a[:, 2, 5]).mean()))
    with pytest.raises(MetricError, match="is one of 'prompt', 'layer', 'head'; given 'row'"):
        c.to_dataframe("row")


def test_the_figure_has_a_point_for_every_entry_of_the_stream() -> None:
    c = compared(0.0, 0.3)
    figure = c.plot()
    go.Figure(json.loads(figure.to_json()), skip_invalid=False)
    above, below = figure.data
    assert list(above.x) == list(below.x) == [0, 1, 2, 3]
    assert np.array_equal(above.y, c.cosine)
    assert np.array_equal(below.y, c.relative_error)
    layout = figure.layout
    assert (layout.yaxis.title.text, layout.yaxis2.title.text) == ("cosine", "relative error |a - b| / |a|")
    assert layout.xaxis2.title.text == "layer that the stream enters (3: it leaves the last)"
    assert (layout.xaxis2.tickformat, layout.xaxis2.dtick) == ("d", 1)
    assert "model b beside that of model a" in layout.title.text


@pytest.mark.parametrize("odd", ODD)
def test_names_and_prompts_stay_text(odd: str) -> None:
    network = worded().network
    a, b = (Model(network, Tokenizer(Pieces([*STORY, *ODD]), bos_id=2), f"{odd}{name}") for name in "ab")
    c = gs.compare(a, b, [f"When{odd}", CLEAN])
    text, page = repr(c), Page(c._repr_html_())
    assert all(char.isprintable() or char == "\n" for char in text)
    assert len(text.split("\n")) == 7 + 2
    assert page.tags == {"div", "b", "table", "tr", "th", "td"}
    assert page.attributes == {"class"}
    assert page.comments == []
    shown_text = "".join(page.text)
    assert repr(f"<bos>When{odd}") in shown_text
    assert repr(odd + "a") in shown_text


# -- bad input --


@pytest.mark.parametrize(
    ("make_other", "numbers"),
    [
        (lambda: noisy(0.0, "lg"), "n_layers 3 and 2"),
        (lambda: model_of(checkpoint("lgl", vocab_size=70)), "vocab_size 61 and 70"),
        (lambda: model_of(checkpoint("lgl", hidden_size=16)), "d_model 32 and 16"),
        (
            lambda: model_of(checkpoint("lgl", num_attention_heads=4, num_key_value_heads=2)),
            "n_heads 8 and 4, n_kv_heads 4 and 2",
        ),
    ],
)
def test_models_of_other_shapes_are_refused(make_other: Callable[[], Model], numbers: str) -> None:
    with pytest.raises(
        MetricError, match=f"'noise 0.0' and '{make_other().name}' differ in shape: {numbers}\\. Compare two"
    ):
        gs.compare(noisy(), make_other(), PROMPTS)


BAD_PROMPTS: list[tuple[Any, str]] = [
    ([], "the list of prompts is empty"),
    ((), "the list of prompts is empty"),
    ("", "the prompt is empty"),
    ([[2, 3], [2]], "prompt 1 has a single token, '<bos>', and the first position is left out"),
    ([2], "prompt 0 has a single token, '<bos>'.*two tokens or more, <bos> included"),
    ([[2, 3], []], "the prompt is empty"),
    ([2, 61], "token id 61 is outside"),
    (3, "a prompt is text, token ids or chat messages; given int"),
]


@pytest.mark.parametrize(("prompts", "message"), BAD_PROMPTS, ids=[message[:30] for _, message in BAD_PROMPTS])
def test_bad_prompts_are_refused(prompts: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        gs.compare(worded(), worded(), prompts)


def test_tokenizers_that_read_a_text_differently_are_refused() -> None:
    other_model = Model(worded().network, Tokenizer(Pieces(STORY[::-1]), bos_id=2), "other")
    with pytest.raises(PromptError, match=r"'random' as \['<bos>', 'When'\], 'other' as .*Give token ids to run the same"):
        gs.compare(worded(), other_model, "When")
    assert (gs.compare(worded(), other_model, [2, 3]).kl == 0).all()  # ids are ids


BAD_PAIRS: list[tuple[Any, str]] = [
    ([], r"pairs is a list of \(clean, corrupt, metric\)"),
    ("ioi", "gs.prompts.ioi"),
    ((CLEAN, CORRUPT, gs.rank(3)), "each of pairs is .* given 'When Mary"),
    ([(CLEAN, CORRUPT)], "each of pairs is"),
    ([(CLEAN, None, gs.rank(3))], "each of pairs is"),
    ([(CLEAN, "When Mary", gs.rank(3))], "the positions of the two prompts must match"),
]


@pytest.mark.parametrize(("pairs", "message"), BAD_PAIRS, ids=[message[:30] for _, message in BAD_PAIRS])
def test_bad_pairs_are_refused(pairs: Any, message: str) -> None:
    with pytest.raises(SweepError, match=message):
        gs.compare(worded(), worded(), CLEAN, pairs=pairs)


@pytest.mark.parametrize("top", [0, -1, 1.5, True, None])
def test_a_bad_top_is_refused(top: Any) -> None:
    with pytest.raises(MetricError, match=r"top is how many of the strongest heads.*given"):
        gs.compare(noisy(), noisy(), PROMPTS, top=top)


def test_with_fewer_heads_than_top_all_heads_are_compared() -> None:
    c = gs.compare(noisy(), noisy(0.3), PROMPTS, top=99)
    assert c.top == 24
    assert c.head_agreement == c.head_agreement_by_chance == 1


def test_an_interrupt_of_a_comparison_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt = KeyboardInterrupt()

    def interrupted(*args: Any) -> None:
        raise interrupt

    monkeypatch.setattr(sweep_file.SweepRunner, "run_chunk", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        gs.compare(noisy(), noisy(), PROMPTS)
    assert caught.value is interrupt
