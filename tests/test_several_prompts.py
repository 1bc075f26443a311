"""Several prompts: means and standard errors beside single results, differences of lenses, stacked sites, the bootstrap."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint, model_of, prompt

import gemmascope as gs
from gemmascope.errors import SiteError, SweepError
from gemmascope.model.model import Model
from gemmascope.sweeps.resampling.bootstrap import bootstrap


@cache
def model() -> Model:
    return model_of(checkpoint("lgl"))


def traces(lengths: tuple[int, ...] = (7, 7, 7)) -> list[gs.Trace]:
    found: list[gs.Trace] = gs.trace([prompt(n, seed=i) for i, n in enumerate(lengths)], model=model())
    return found


# -- direct logits --


@pytest.mark.parametrize("by", ["sublayer", "head", "neuron", "token"])
def test_direct_logits_of_several_are_the_single_ones_and_their_means(by: str) -> None:
    runs, answers, against = traces(), [3, [4, 5], 6], [7, 8, 9]
    result = gs.direct_logits(runs, answers, against, by)
    single = [gs.direct_logits(t, a, b, by) for t, a, b in zip(runs, answers, against, strict=True)]
    assert all(np.array_equal(one.parts, other.parts) for one, other in zip(result.each, single, strict=True))
    parts = np.stack([one.parts.values for one in single])
    assert np.allclose(result.mean["parts"], parts.mean(0), atol=1e-6)
    assert np.allclose(result.stderr["parts"], parts.std(0, ddof=1) / 3**0.5, atol=1e-6)
    assert float(result.mean["parts"].sum() + result.mean["rest"].sum()) == pytest.approx(
        float(result.mean["total"]), abs=1e-3
    )
    assert float(result.mean["capped"]) == pytest.approx(np.mean([one.capped for one in single]), abs=1e-5)
    assert result.mean["parts"].attrs["long_name"] == "logit before the soft cap"
    assert "k_token" not in result.mean.coords  # the tokens differ
    assert len(result) == 3
    assert f"direct logits in random, by {by}: means over 3 prompts of parts" in repr(result)
    table = result.to_dataframe()
    assert len(table) == parts[0].size + result.mean["rest"].size + 2


def test_prompts_of_unlike_lengths_have_means_where_nothing_has_positions() -> None:
    runs = traces((5, 8))
    result = gs.direct_logits(runs, 3, by="head")  # one answer for all
    assert np.allclose(
        result.mean["parts"], sum(gs.direct_logits(t, 3, by="head").parts.values for t in runs) / 2, atol=1e-6
    )
    with pytest.raises(
        SiteError, match=r"parts has shape \(3, 8, 5\) in prompt 0 and \(3, 8, 8\) in prompt 1, so there is no"
    ):
        gs.direct_logits(runs, 3, by="token")


def test_a_part_of_one_run_wrote_nothing_in_the_other() -> None:
    edited = gs.trace(prompt(7), model=model(), edits=[gs.add("resid_post", torch.ones(32), layer=1)])
    result = gs.direct_logits([traces()[0], edited], 3, by="head")
    name = "edit at layers.1.resid_post"
    alone = gs.direct_logits(edited, 3, by="head").rest.sel(part=name).item()
    assert result.values["rest"].sel(rest_part=name).values == pytest.approx([0.0, alone])


# -- lenses --


@pytest.mark.parametrize("site", ["resid_post", "stream", "mlp_out"])
def test_the_difference_of_lenses_is_that_of_their_logits(site: str) -> None:
    a, b = traces((7, 7))
    found = gs.lens(a, site, 3, answer=5, against=b)
    ours, others = gs.lens(a, site, 3, answer=5), gs.lens(b, site, 3, answer=5)
    for pos in (0, 6):
        x, y = (torch.tensor(one.logits(pos).values) for one in (ours, others))
        best = (x - y).topk(3)
        assert np.allclose(found.raised_by.values[:, pos], best.values, atol=1e-5)
        assert np.array_equal(found.raised[:, pos], best.indices)
        kl = (x.softmax(-1) * (x.log_softmax(-1) - y.log_softmax(-1))).sum(-1)
        assert np.allclose(found.kl.values[:, pos], kl, atol=1e-4)
    assert np.allclose(found.answer_logit, ours.answer_logit.values - others.answer_logit.values)
    assert np.array_equal(found.answer_rank, ours.answer_rank.values - others.answer_rank.values)
    assert np.allclose(found.entropy, ours.entropy.values - others.entropy.values)
    assert found.kl.dims == ours.entropy.dims
    by_prompt = gs.lens(a, site, 3, answer=5, against=b.ids)  # a prompt is run
    assert np.allclose(by_prompt.kl, found.kl, atol=1e-5)
    assert float(gs.lens(a, site, against=a).kl.max()) == 0.0


def test_lenses_of_several_are_the_single_ones_and_their_means() -> None:
    runs = traces()
    result = gs.lens(runs, answer=[3, 4, 5], pos=-1)
    single = [gs.lens(t, answer=a, pos=-1) for t, a in zip(runs, (3, 4, 5), strict=True)]
    for name in ("entropy", "answer_prob", "answer_rank", "answer_logit"):
        values = np.stack([getattr(one, name).values for one in single])
        assert np.allclose(result.mean[name], values.mean(0))
        assert np.allclose(result.stderr[name], values.std(0, ddof=1) / 3**0.5)
    assert result.mean["entropy"].dims == ("layer", "pos")
    differences = gs.lens(runs, against=runs[::-1])
    kls = [gs.lens(a, against=b).kl.values for a, b in zip(runs, runs[::-1], strict=True)]
    assert np.allclose(differences.mean["kl"], np.mean(kls, 0), atol=1e-6)
    one_for_all = gs.lens(runs, against=runs[0])
    assert float(one_for_all.each[0].kl.max()) == 0.0


# -- stacked sites --


@pytest.mark.parametrize("site", ["resid_pre", "pattern", "k", "head_out", "mlp_act"])
def test_stacked_sites_are_those_of_the_runs(site: str) -> None:
    runs = traces()
    array = gs.stack(runs, site)
    assert array.dims == ("run", "layer", *gs.SITES[site].axes)
    for i, t in enumerate(runs):
        for layer in range(3):
            assert np.allclose(array.sel(run=i, layer=layer), t[site, layer], atol=1e-6)
    assert np.allclose(gs.stack(runs, site, -1), array.isel(layer=-1), atol=1e-6)
    assert array["kind"].values.tolist() == ["local", "global", "local"]
    same = gs.stack([runs[0], runs[0]], site)
    labels = {"k_token"} if site == "pattern" else {"token"}
    assert labels <= set(same.coords)
    assert not labels & set(array.coords)


def test_sites_outside_the_layers_and_names_with_a_layer_are_stacked() -> None:
    runs = traces()
    assert gs.stack(runs, "logits").shape == (3, 7, 61)
    assert gs.stack(runs, "blocks.1.attn.hook_z").dims == ("run", "pos", "head", "d_head")


# -- the bootstrap --


def naive(values: Any, level: float, n: int, seed: int) -> Any:
    drawn = np.random.default_rng(seed).integers(len(values), size=(n, len(values)))
    means = np.stack([np.mean([values[i] for i in row], 0) for row in drawn])
    return np.quantile(means, (1 - level) / 2, axis=0), np.quantile(means, (1 + level) / 2, axis=0)


@pytest.mark.parametrize("seed", range(3))
def test_the_bootstrap_is_the_naive_one(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(10 + seed).normal(size=(9, 2, 5))
    values[4, 0, 3] = np.nan
    low, high = bootstrap(values, 0.9, 200, seed)
    expected = naive(values, 0.9, 200, seed)
    assert np.allclose(low, expected[0], equal_nan=True)
    assert np.allclose(high, expected[1], equal_nan=True)
    assert np.isnan(low[0, 3])
    assert np.isnan(low).sum() == 1
    monkeypatch.setattr("gemmascope.sweeps.resampling.bootstrap.MEANS", 600)  # a few cells at a time
    assert np.allclose(bootstrap(values, 0.9, 200, seed), (low, high), equal_nan=True)


def test_the_interval_holds_the_true_mean_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    ends = [bootstrap(random.normal(3.0, 1.0, size=(40, 1)), 0.9, 400, i)[:, 0] for i in range(300)]
    assert 0.85 < np.mean([low < 3.0 < high for low, high in ends]) < 0.94


def test_the_effects_of_pairs_are_resampled() -> None:
    cleans, corrupts = [prompt(6, seed=i) for i in range(5)], [prompt(6, seed=10 + i) for i in range(5)]
    result = gs.sweep(cleans, corrupts, gs.logit_diff(3, 4), site="resid_pre", model=model(), progress=False)
    interval = result.interval(0.8, n=300, seed=2)
    low, high = naive(result.per_pair.values, 0.8, 300, 2)
    assert interval.dims == ("bound", "layer", "pos")
    assert np.allclose(interval.sel(bound="low"), low)
    assert np.allclose(interval.sel(bound="high"), high)
    assert bool((interval.sel(bound="low") <= result.effect).all())
    several = gs.direct_logits(traces(), 3, by="head")
    parts = several.interval(n=50)["parts"]
    assert parts.dims == ("bound", "layer", "head")
    assert np.allclose(parts.values, naive(several.values["parts"].values, 0.95, 50, 0), atol=1e-5)
    single = gs.sweep(cleans[0], corrupts[0], gs.logit_diff(3, 4), site="resid_pre", model=model(), progress=False)
    with pytest.raises(SweepError, match="draws from several pairs or prompts, two at least; there is one"):
        single.interval()
    for bad in (0, 1, 1.5, float("nan"), "x"):
        with pytest.raises(SweepError, match="level"):
            result.interval(bad)  # type: ignore[arg-type]
    with pytest.raises(SweepError, match="n is a whole number"):
        result.interval(n=0)


BAD: list[tuple[Any, str]] = [
    (lambda: gs.direct_logits([], 3), "the list of traces is empty"),
    (lambda: gs.direct_logits([prompt(5)], 3), "a list of traces is what gs.trace"),
    (lambda: gs.direct_logits(traces(), [3, 4]), "there are 3 traces and 2 of answer: give one for all, or one for each"),
    (lambda: gs.lens(traces(), against=traces()[:2]), "there are 3 traces and 2 of against"),
    (lambda: gs.lens(traces((5, 5))[0], against=traces((8,))[0]), "the run is read at 5 and against at 8; say pos="),
    (lambda: gs.lens(traces((5, 8))), r"entropy has shape \(3, 5\) in prompt 0 and \(3, 8\) in prompt 1"),
    (lambda: gs.stack(traces((5, 8)), "z"), r"runs of one length make one array; these have \[5, 8\] positions"),
    (lambda: gs.stack(traces(), "zz"), "zz"),
    (lambda: gs.direct_logits(traces((5,)), 3).stderr, "a standard error needs at least two prompts"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_what_does_not_fit_together_is_refused(call: Any, message: str) -> None:
    with pytest.raises(SiteError, match=message):
        call()
