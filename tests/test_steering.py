"""Steering: directions against naive means, probes on held-out cases, removal of a direction, and sweeps of strength."""

from __future__ import annotations

import json
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from checkpoints import checkpoint, model, model_of, prompt
from hypothesis import given, settings
from hypothesis import strategies as st
from pieces import ODD, STORY, worded
from reference import error
from torch import Tensor

import gemmascope as gs
from gemmascope.errors import EditError, GemmascopeError, MetricError, PromptError, SiteError, SweepError
from gemmascope.figures.steering import log_ticks
from gemmascope.run import microbatches
from gemmascope.steering import strengths as strengths_file
from gemmascope.steering.probe import L2, fit_probe, held_out
from gemmascope.sweeps.digest import digest, run_parts

CLOSE = 1e-5
N_POS = 9
WIDTHS = {"resid_pre": 32, "resid_mid": 32, "resid_post": 32, "mlp_out": 32, "mlp_act": 48, "z": 12, "k": 12, "head_out": 32}
HEADS = {"z": 8, "k": 4, "head_out": 8}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def along(x: Tensor, vector: Tensor) -> Tensor:
    return x.double() @ (vector.double() / vector.double().norm())


# -- gs.ablate_direction --


@settings(deadline=None, max_examples=40, derandomize=True)
@given(site=st.sampled_from(list(WIDTHS)), layer=st.integers(0, 2), size=st.sampled_from([1e-30, 1.0, 1e30]), data=st.data())
def test_ablation_removes_the_component_along_the_direction_and_nothing_else(
    site: str, layer: int, size: float, data: Any
) -> None:
    pos = data.draw(st.none() | st.lists(st.integers(0, 8), min_size=1, unique=True))
    head = data.draw(st.none() | st.integers(0, HEADS[site] - 1)) if site in HEADS else None
    vector = randn(WIDTHS[site], seed=layer) * size
    edit = gs.ablate_direction(site, vector, layer=layer, pos=pos, head=head)
    before = gs.trace(prompt(N_POS), model=model())[site, layer]
    after = gs.trace(prompt(N_POS), model=model(), edits=[edit])[site, layer]
    expected, unit = before.double(), vector.double() / vector.double().norm()
    for p in range(N_POS) if pos is None else pos:
        for h in [()] if site not in HEADS else [(h,) for h in range(HEADS[site]) if head in (None, h)]:
            expected[(p, *h)] -= (expected[(p, *h)] @ unit) * unit
    assert error(after, expected) <= 1e-6
    places = list(range(N_POS)) if pos is None else pos
    remaining = after[places] if head is None else after[places][:, head]
    assert float(along(remaining, vector).abs().max()) <= 1e-6 * float(before.abs().max())


def test_removing_a_direction_twice_is_removing_it_once() -> None:
    edit = gs.ablate_direction("resid_post", randn(32), layer=1)
    once, twice = (gs.trace(prompt(N_POS), model=model(), edits=[edit] * n)["resid_post", 1] for n in (1, 2))
    assert error(twice, once) <= 1e-7
    scaled = gs.ablate_direction("resid_post", -3 * randn(32), layer=1)
    assert error(gs.trace(prompt(N_POS), model=model(), edits=[scaled])["resid_post", 1], once) <= 1e-7


@pytest.mark.parametrize("layer", [0, 2])
def test_a_removed_direction_gives_the_logits_of_transformers_with_a_hook(layer: int) -> None:
    source, vector = checkpoint("lgl"), randn(32, seed=5)
    unit = vector / vector.norm()

    def hook(module: Any, args: Any, out: Any) -> Any:
        x = out[0] if isinstance(out, tuple) else out
        x = x - (x @ unit)[..., None] * unit
        return (x, *out[1:]) if isinstance(out, tuple) else x

    source.model.layers[layer].register_forward_hook(hook)
    with torch.no_grad():
        expected = source(torch.tensor([prompt(N_POS)])).logits[0]
    edit = gs.ablate_direction("resid_post", vector, layer=layer)
    assert error(gs.trace(prompt(N_POS), model=model(), edits=[edit]).logits, expected) <= CLOSE


def test_a_sweep_over_runs_with_a_removed_direction_equals_single_traces() -> None:
    edit, metric = gs.ablate_direction("resid_mid", randn(32), layer=1, pos=[2, -1]), gs.logit_diff(3, 4)
    clean, corrupt = prompt(N_POS), prompt(N_POS, seed=1)
    result = gs.sweep(clean, corrupt, metric, site="resid_post", layer=[0, 1], edits=[edit], model=model())
    source = gs.trace(clean, model=model())
    for layer in (0, 1):
        for pos in (0, 5, 8):
            patch = gs.patch("resid_post", source, layer=layer, pos=pos)
            run = gs.trace(corrupt, model=model(), edits=[edit, patch]).next_logits
            assert result.values[0, layer, pos] == pytest.approx(float(run[3] - run[4]), abs=1e-4)


def test_generation_removes_the_direction_at_every_position() -> None:
    edit = gs.ablate_direction("resid_post", randn(32), layer=1)
    generated = gs.generate(prompt(5), model=model(), edits=[edit], max_new_tokens=8)
    ids = prompt(5)
    for token in generated.ids.tolist()[5:]:
        assert int(gs.trace(ids, model=model(), edits=[edit]).next_logits.argmax()) == token
        ids.append(token)


def test_a_removal_prints_as_its_call_and_equals_only_its_copy() -> None:
    edit = gs.ablate_direction("z", torch.tensor([1.0, 2.5]), layer=3, pos=" Mary", head=2)
    assert repr(edit) == "gs.ablate_direction('z', torch.tensor([1.0, 2.5]), layer=3, pos=' Mary', head=2)"
    assert eval(repr(edit), {"gs": gs, "torch": torch}) == edit
    edits = [
        edit, gs.ablate_direction("z", torch.tensor([1.0, 2.0]), layer=3, pos=" Mary", head=2),
        gs.ablate_direction("z", torch.tensor([1.0, 2.5]), layer=2, pos=" Mary", head=2),
        gs.add("z", torch.tensor([1.0, 2.5]), layer=3, pos=" Mary", head=2),
    ]  # fmt: skip
    assert all(a != b for a, b in combinations(edits, 2))


def test_removals_of_two_directions_have_two_digests() -> None:
    ids = torch.tensor(prompt(N_POS))
    digests = {
        digest(run_parts(ids, [gs.ablate_direction("z", randn(12, seed=s), layer=1).bind(model(), ids)])) for s in (0, 1)
    }
    assert len(digests) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_trace_with_a_removed_direction_is_saved_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    edit = gs.ablate_direction("z", (randn(12).double() / 3).to(dtype), layer=1, pos=[1, 4], head=[0, 5])
    t = gs.trace(prompt(N_POS), model=model(), edits=[edit])
    t.save(tmp_path / "t.trace")
    back = gs.open_trace(tmp_path / "t.trace", model=model())
    assert torch.equal(back["z", 1], t["z", 1])
    assert torch.equal(back.logits, t.logits)
    assert torch.equal(back.edits[0].vector, edit.vector)  # type: ignore[attr-defined]


NOT_REMOVED: list[tuple[dict[str, Any], type[GemmascopeError], str]] = [
    ({"vector": torch.zeros(32)}, EditError, "a vector of zeros, which points nowhere"),
    ({"vector": torch.full((32,), torch.nan)}, EditError, "holds NaN or infinity"),
    ({"vector": torch.ones(12)}, EditError, r"has shape \(12,\); 'layers.1.resid_post' takes one of 32 numbers \(d_model\)"),
    ({"vector": torch.ones(9, 32)}, EditError, r"has shape \(9, 32\)"),
    ({"vector": torch.tensor(1.0)}, EditError, r"has shape \(\)"),
    ({"vector": [1.0] * 32}, EditError, "or what gs.direction returns; given list"),
    ({"vector": torch.ones(32, dtype=torch.complex64)}, EditError, "real numbers, .* given torch.complex64"),
    ({"site": "pattern"}, EditError, "'pattern' lives on attention edges"),
    ({"head": 1}, SiteError, "'resid_post' has no heads"),
    ({"layer": 3}, SiteError, "there is no layer 3"),
    ({"pos": 9}, SiteError, "there is no position 9"),
]


@pytest.mark.parametrize(("instead", "kind", "message"), NOT_REMOVED, ids=[m[:40] for _, _, m in NOT_REMOVED])
def test_a_bad_removal_is_refused(instead: dict[str, Any], kind: Any, message: str) -> None:
    arguments = {"site": "resid_post", "vector": torch.ones(32), "layer": 1, **instead}
    with pytest.raises(kind, match=message):
        gs.trace(
            prompt(N_POS),
            model=model(),
            edits=[gs.ablate_direction(arguments.pop("site"), arguments.pop("vector"), **arguments)],
        )


# -- gs.direction --

# Lengths that differ, one of a single token; five of one class and three of the other.
POSITIVE = [prompt(n, seed=n) for n in (9, 4, 4, 12, 2)]
NEGATIVE = [prompt(n, seed=20 + n) for n in (6, 3, 9)]


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    site=st.sampled_from(list(WIDTHS)), layer=st.integers(-3, 2), head=st.integers(0, 3),
    pos=st.sampled_from([-1, 0, None, [0, -1], slice(1, None)]), microbatch_rows=st.sampled_from([1, 10, 1024]),
)  # fmt: skip
def test_a_direction_is_the_difference_of_means(site: str, layer: int, head: int, pos: Any, microbatch_rows: int) -> None:
    of_head = head if site in HEADS else None

    def naive(ids: list[int]) -> Tensor:
        value = gs.trace(ids, model=model())[site, layer].double()
        value = value if of_head is None else value[:, of_head]
        return value[slice(1, None) if pos is None else [pos] if isinstance(pos, int) else pos].mean(0)

    positive, negative = ([naive(ids) for ids in prompts] for prompts in (POSITIVE, NEGATIVE))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(microbatches, "MICROBATCH_ROWS", microbatch_rows)
        d = gs.direction(POSITIVE, NEGATIVE, site=site, layer=layer, pos=pos, head=of_head, model=model())
    means = torch.stack([torch.stack(positive).mean(0), torch.stack(negative).mean(0)])
    assert error(d.means, means) <= CLOSE
    assert error(d.vector, means[0] - means[1]) <= 10 * CLOSE
    assert d.norm == pytest.approx(float((means[0] - means[1]).norm()), rel=1e-4)
    assert float(d.unit.norm()) == pytest.approx(1.0)
    values = torch.stack([*positive, *negative])
    expected = along(values - means.mean(0), means[0] - means[1])
    assert error(d.projections.values, expected) <= 1e-4
    assert d.projections["class"].values.tolist() == ["positive"] * 5 + ["negative"] * 3
    assert (d.layer, d.head, d.n_held_out) == (layer % 3, of_head, 8)
    assert d.vector.dtype == torch.float32


def test_a_direction_takes_one_pass_that_ends_at_its_layer(layers_read: list[int]) -> None:
    gs.direction(POSITIVE, NEGATIVE, layer=1, model=model())
    assert layers_read == [0, 1]


def test_another_seed_changes_the_folds_of_a_direction_and_nothing_else() -> None:
    a, b, c = (gs.direction(POSITIVE, NEGATIVE, layer=1, seed=seed, model=model()) for seed in (0, 0, 1))
    assert torch.equal(a.probe, b.probe)
    assert np.array_equal(a.log_odds.values, b.log_odds.values)
    assert torch.equal(a.vector, c.vector)
    assert torch.equal(a.probe, c.probe)
    assert not np.array_equal(a.log_odds.values, c.log_odds.values)


def test_edits_of_a_direction_are_at_its_own_site_layer_and_head() -> None:
    d = gs.direction(POSITIVE, NEGATIVE, site="z", layer=-1, head=3, model=model())
    assert d.add(2.0, pos=-1) == gs.add("z", d.vector, layer=2, head=3, pos=-1, scale=2.0)
    assert d.ablate() == gs.ablate_direction("z", d, layer=2, head=3)
    assert d.ablate(pos=1, layer=0) == gs.ablate_direction("z", d.vector, layer=0, head=3, pos=1)


def test_one_prompt_a_class_makes_a_direction_without_an_accuracy() -> None:
    d = gs.direction("When Mary", ["When John"], layer=0, model=worded())
    assert np.isnan(d.accuracy)
    assert (d.n_held_out, d.n_folds) == (0, 0)
    assert "held-out accuracy: none, which needs two different prompts a class at least" in repr(d)
    assert np.isnan(d.log_odds.values).all()
    twice = gs.direction(["When Mary", "When Mary"], ["When John", " and John"], layer=0, model=worded())
    assert np.isnan(twice.accuracy)


def test_a_bfloat16_model_has_directions_in_float32() -> None:
    half = model_of(checkpoint("lgl").to(torch.bfloat16))
    d = gs.direction(POSITIVE, NEGATIVE, layer=1, model=half)
    assert d.vector.dtype == torch.float32
    edited = gs.trace(prompt(N_POS), model=half, edits=[d.ablate()])["resid_post", 1]
    assert float(along(edited, d.vector).abs().max()) <= 0.02 * float(edited.float().norm(dim=1).max())


NO_DIRECTION: list[tuple[dict[str, Any], type[GemmascopeError], str]] = [
    ({"positive": []}, PromptError, "the list of positive prompts is empty: give at least one"),
    ({"negative": []}, PromptError, "the list of negative prompts is empty"),
    ({"negative": [POSITIVE[2], [5]]}, PromptError, "positive prompt 2 and negative prompt 0 are the same as far as"),
    ({"positive": [[3, 4, 5]], "negative": [[3, 4, 6]], "pos": 1}, PromptError, "prompts that differ at or before the pos"),
    ({"positive": [[3, 4]], "negative": [[4, 3]], "pos": None}, None, ""),
    ({"positive": [[3]], "pos": None}, PromptError, "has a single position, which pos=None leaves out"),
    ({"positive": [[99]]}, PromptError, "token id 99 is outside"),
    ({"positive": 3}, PromptError, "a prompt is text, token ids or chat messages; given int"),
    ({"positive": ["text"]}, PromptError, "came without a tokenizer"),
    ({"site": "final", "layer": None}, SiteError, "'final' is outside the layers"),
    ({"site": "pattern"}, SiteError, "'pattern' lives on attention edges"),
    ({"site": "resid_pots"}, SiteError, "Did you mean 'resid_post'"),
    ({"site": "z"}, SiteError, "'z' has 8 heads: say which one, head=0 to 7"),
    ({"site": "z", "head": [1, 2]}, SiteError, r"say which one, head=0 to 7; given \[1, 2\]"),
    ({"site": "v", "head": 5}, SiteError, "'v' has 4 kv heads, 0 to 3; given head=5"),
    ({"head": 1}, SiteError, "'resid_post' has no heads"),
    ({"layer": 3}, SiteError, "there is no layer 3"),
    ({"pos": 5}, SiteError, "there is no position 5"),
    ({"seed": 0.5}, GemmascopeError, "seed is a whole number; given 0.5"),
    ({"model": "nano"}, GemmascopeError, "model is what gs.load returns"),
]


@pytest.mark.parametrize(
    ("instead", "kind", "message"), NO_DIRECTION, ids=[f"{list(i)}-{m[:25]}" for i, _, m in NO_DIRECTION]
)
def test_a_bad_direction_is_refused(instead: dict[str, Any], kind: Any, message: str, layers_read: list[int]) -> None:
    arguments = {"positive": POSITIVE, "negative": NEGATIVE, "layer": 1, "model": model(), **instead}
    if kind is None:
        assert gs.direction(**arguments).norm > 0
        return
    with pytest.raises(kind, match=message):
        gs.direction(**arguments)
    assert not layers_read


# -- probes --


def cases(n: int, d: int, seed: int, gap: float = 0.0) -> tuple[Tensor, Tensor]:
    """Random cases of two classes of n, their means `gap` standard deviations apart along the first axis."""
    x = randn(2 * n, d, seed=seed).double()
    positive = torch.arange(2 * n) < n
    x[positive, 0] += gap
    return x, positive


@settings(deadline=None, max_examples=20, derandomize=True)
@given(n=st.integers(1, 20), d=st.integers(1, 40), seed=st.integers(0, 99), size=st.sampled_from([1e-4, 1.0, 1e4]))
def test_a_probe_is_the_minimum_of_its_loss(n: int, d: int, seed: int, size: float) -> None:
    x, positive = cases(n, d, seed, gap=1.0)
    x = (x + 3) * size
    probe = fit_probe(x, positive)
    centred = x - x.mean(0)
    unit = centred.square().sum(1).mean().sqrt()
    miss = torch.sigmoid(probe.log_odds(x)) - positive.double()
    assert float((centred.T @ miss / len(x) / unit + L2 * probe.weight * unit).abs().max()) <= 1e-6
    assert float(miss.mean().abs()) <= 1e-6


def test_a_probe_finds_what_was_planted() -> None:
    x, positive = cases(40, 20, seed=0, gap=8.0)
    probe = held_out(x, positive, range(80), seed=0)
    assert probe is not None
    assert probe.right(positive).all()
    weight = fit_probe(x, positive).weight
    assert float(weight[0] / weight.norm()) > 0.8


def test_accuracy_is_that_of_cases_the_probe_was_not_fitted_on() -> None:
    fitted_accuracies, held_out_accuracies = [], []
    for seed in range(20):
        x, positive = cases(20, 400, seed)  # nothing to find, and more axes than cases
        fitted_accuracies.append(float(((fit_probe(x, positive).log_odds(x) > 0) == positive).double().mean()))
        probe = held_out(x, positive, range(40), seed)
        assert probe is not None
        held_out_accuracies.append(float(probe.right(positive).double().mean()))
    assert min(fitted_accuracies) == 1.0
    assert 0.42 <= np.mean(held_out_accuracies) <= 0.58


def test_a_cases_log_odds_are_linear_in_the_case() -> None:
    x, positive = cases(7, 5, seed=1)
    for case in (0, 9):
        log_odds = []
        for step in range(3):
            moved = x.clone()
            moved[case] += 10 * step * randn(5).double()
            probe = held_out(moved, positive, range(14), seed=3)
            assert probe is not None
            log_odds.append(float(probe.log_odds[case]))
        assert log_odds[2] - log_odds[1] == pytest.approx(log_odds[1] - log_odds[0], rel=1e-5)


@pytest.mark.parametrize("other_number", [False, True])
def test_all_copies_of_a_prompt_are_held_out_together(other_number: bool) -> None:
    accuracies = []
    for seed in range(20):
        x, positive = cases(10, 100, seed)
        x, positive, groups = x.repeat(3, 1), positive.repeat(3), [*range(20)] * 3
        keep = slice(0, 59 if other_number else 60)  # classes of one size are paired as well
        probe = held_out(x[keep], positive[keep], groups[keep], seed)
        assert probe is not None
        accuracies.append(float(probe.right(positive[keep]).double().mean()))
    assert 0.35 <= np.mean(accuracies) <= 0.65


def test_classes_of_equal_cases_are_classified_at_chance() -> None:
    x, _ = cases(10, 30, seed=0)
    probe = held_out(torch.cat([x, x]), torch.arange(40) < 20, range(40), seed=0)
    assert probe is not None
    assert float(probe.right(torch.arange(40) < 20).double().mean()) == 0.5


@settings(deadline=None, max_examples=30, derandomize=True)
@given(n_positive=st.integers(1, 12), n_negative=st.integers(1, 12), seed=st.integers(0, 9))
def test_every_case_is_held_out_where_there_are_two_of_each_class(n_positive: int, n_negative: int, seed: int) -> None:
    n = n_positive + n_negative
    x, positive = randn(n, 3, seed=seed).double(), torch.arange(n) < n_positive
    probe = held_out(x, positive, range(n), seed)
    assert (probe is None) == (min(n_positive, n_negative) < 2)
    if probe is not None:
        assert torch.isfinite(probe.log_odds).all()
        assert probe.n_folds == min(5, n_positive, n_negative)


# -- gs.strength_sweep --

PROMPTS = [prompt(n, seed=30 + n) for n in (9, 5, 9, 2)]
TEXTS = [prompt(n, seed=40 + n) for n in (12, 3, 1, 5)]
METRIC = gs.logit_diff(3, 4)


def nll(t: Any) -> list[float]:
    log_probs = t.logits.double().log_softmax(-1)
    return [-float(log_probs[i, token]) for i, token in enumerate(t.ids.tolist()[1:])]


@settings(deadline=None, max_examples=15, derandomize=True)
@given(
    site=st.sampled_from(["resid_pre", "resid_post", "attn_out", "mlp_act", "z", "head_out"]), layer=st.integers(0, 2),
    pos=st.sampled_from([None, 0, -2]), texts=st.sampled_from([None, TEXTS[:2]]), rows=st.sampled_from([1, 30, 10_000]),
    strengths=st.lists(st.sampled_from([-20.0, -1.5, 0.0, 0.5, 3, 40]), min_size=1, unique=True),
)  # fmt: skip
def test_a_strength_sweep_equals_a_loop_of_edited_runs(
    site: str, layer: int, pos: Any, texts: Any, rows: int, strengths: list[float]
) -> None:
    vector, head = randn(WIDTHS.get(site, 32), seed=2), 1 if site in HEADS else None
    where: dict[str, Any] = {"site": site, "layer": layer, "pos": pos, "head": head}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(strengths_file, "rows_within", lambda *_: rows)
        patched.setattr("gemmascope.run.logits.LOGIT_BYTES", 16 * rows * 61)
        patched.setattr(microbatches, "MICROBATCH_ROWS", max(8, rows // 4))
        result = gs.strength_sweep(PROMPTS, vector, METRIC, strengths=strengths, texts=texts, model=model(), **where)
    assert result.metric["strength"].values.tolist() == strengths
    plain = [gs.trace(ids, model=model()) for ids in PROMPTS]
    for i, strength in enumerate(strengths):
        edit = gs.add(site, vector, layer=layer, pos=pos, head=head, scale=strength)
        runs = [gs.trace(ids, model=model(), edits=[edit]) for ids in PROMPTS]
        read = runs if texts is None else [gs.trace(ids, model=model(), edits=[edit]) for ids in texts]
        metric = [float(t.next_logits[3] - t.next_logits[4]) for t in runs]
        assert np.allclose(result.per_prompt.values[:, i], metric, atol=3e-4)
        assert float(result.metric[i]) == pytest.approx(np.mean(metric), abs=3e-4)
        losses = [loss for t in read for loss in nll(t)]
        assert float(result.perplexity[i]) == pytest.approx(np.exp(np.mean(losses)), rel=3e-4)
        kl = [float(gs.kl_from(a).bind(model())(b.next_logits[None])) for a, b in zip(plain, runs, strict=True)]
        assert float(result.kl[i]) == pytest.approx(np.mean(kl), abs=3e-4)
    assert result.n_predicted == sum(len(ids) - 1 for ids in texts or PROMPTS)


def test_strength_zero_is_the_unsteered_run() -> None:
    result = gs.strength_sweep(PROMPTS, randn(32), METRIC, strengths=[5, 0, -5], site="resid_mid", layer=1, model=model())
    at = result.metric.sel(strength=0)
    runs = gs.trace(PROMPTS, model=model())
    assert float(at) == result.unsteered_metric
    assert float(result.perplexity.sel(strength=0)) == result.unsteered_perplexity
    assert result.unsteered_metric == pytest.approx(
        np.mean([float(t.next_logits[3] - t.next_logits[4]) for t in runs]), 1e-4
    )
    assert float(result.kl.sel(strength=0)) <= 1e-9
    only = gs.strength_sweep(PROMPTS, randn(32), METRIC, strengths=[0], site="resid_mid", layer=1, model=model())
    assert float(only.perplexity[0]) == pytest.approx(result.unsteered_perplexity, rel=1e-5)


def test_a_direction_brings_its_place_and_arguments_of_the_call_replace_it() -> None:
    d = gs.direction(POSITIVE, NEGATIVE, site="z", layer=1, head=3, model=model())
    options: dict[str, Any] = {"strengths": [-2, 2], "model": model()}
    own = gs.strength_sweep(PROMPTS, d, METRIC, **options)
    explicit = gs.strength_sweep(PROMPTS, d.vector, METRIC, site="z", layer=1, head=3, **options)
    assert np.array_equal(own.metric.values, explicit.metric.values)
    assert own.edit == explicit.edit
    moved = gs.strength_sweep(PROMPTS, d, METRIC, layer=0, **options)
    assert moved.edit == gs.strength_sweep(PROMPTS, d.vector, METRIC, site="z", layer=0, head=3, **options).edit
    elsewhere = gs.strength_sweep(PROMPTS, d, METRIC, site="q", layer=0, **options)
    assert "head" not in elsewhere.edit


def test_every_prompt_may_have_a_metric_of_its_own() -> None:
    metrics = [gs.answer_prob(3), METRIC, lambda logits: logits[:, 5], gs.rank(6)]
    options: dict[str, Any] = {"strengths": [-2, 2], "site": "resid_post", "layer": 0, "model": model()}
    result = gs.strength_sweep(PROMPTS, randn(32), metrics, **options)
    for i, metric in enumerate(metrics):
        alone = gs.strength_sweep(PROMPTS[i], randn(32), metric, **options)
        assert np.allclose(result.per_prompt.values[i], alone.metric.values, atol=1e-4)


def test_there_is_no_perplexity_where_steering_reaches_no_token() -> None:
    options: dict[str, Any] = {"strengths": [-2, 2], "site": "resid_post", "layer": 0, "model": model()}
    last = gs.strength_sweep(PROMPTS, randn(32), METRIC, pos=-1, **options)
    assert np.isnan(last.perplexity.values).all()
    assert np.isfinite(last.unsteered_perplexity)
    assert "perplexity: not measured, no predicted token comes after a steered position" in repr(last)
    single = gs.strength_sweep([[7]], randn(32), METRIC, **options)
    assert np.isnan(single.perplexity.values).all()
    assert "perplexity: none, the texts have no token to predict after their first" in repr(single)
    for result in (last, single):
        valid(result.plot())


def test_a_strength_sweep_reads_each_layer_once_a_pass(layers_read: list[int]) -> None:
    gs.strength_sweep(PROMPTS, randn(12), METRIC, strengths=range(9), site="z", layer=1, head=0, model=model())
    assert layers_read == [0, 1, 2]


def test_a_bar_counts_the_runs(bars: list[Any]) -> None:
    options: dict[str, Any] = {"strengths": [-2, 0, 2], "site": "resid_post", "layer": 0, "model": model()}
    gs.strength_sweep(PROMPTS, randn(32), METRIC, texts=TEXTS, **options)
    assert [(bar.total, bar.done, bar.options["disable"]) for bar in bars] == [(24, 24, False)]
    gs.strength_sweep(PROMPTS, randn(32), METRIC, progress=False, **options)
    assert bars[1].options["disable"] is True


def test_a_strength_sweep_has_a_text_form_and_a_table() -> None:
    options: dict[str, Any] = {"strengths": [3, -1], "site": "resid_post", "layer": 0, "model": worded()}
    result = gs.strength_sweep("When Mary and John", torch.ones(32), gs.logit_diff(" Mary", " John"), **options)
    text = repr(result)
    assert text.startswith("2 strengths from -1 to 3 of gs.add('resid_post', <tensor [32]>, layer=0) in random\n")
    assert "gs.logit_diff(' Mary', ' John'): " in text
    assert "perplexity over 4 tokens: " in text
    frame = result.to_dataframe()
    assert list(frame) == ["strength", "metric", "perplexity", "kl"]
    assert frame["strength"].tolist() == [3.0, -1.0]
    assert result.per_prompt["text"].values.tolist() == ["<bos>When Mary and John"]


NOT_SWEPT: list[tuple[dict[str, Any], type[GemmascopeError], str]] = [
    ({"strengths": []}, SweepError, "strengths is an empty list: give at least one number"),
    ({"strengths": 2.0}, SweepError, "strengths, such as .*, is a list; given 2.0"),
    ({"strengths": "12"}, SweepError, "strengths, such as .*, is a list"),
    ({"strengths": [1, float("nan")]}, SweepError, "a strength is a finite number; given nan"),
    ({"strengths": [1, True]}, SweepError, "a strength is a finite number; given True"),
    ({"strengths": [1, "2"]}, SweepError, "a strength is a finite number; given '2'"),
    ({"strengths": [1, 2, 1.0]}, SweepError, "strengths name a number twice"),
    ({"strengths": [0.0, -0.0]}, SweepError, "strengths name a number twice"),
    ({"strengths": [1e39]}, EditError, "holds NaN or infinity"),
    ({"vector": torch.zeros(32)}, EditError, "the vector holds zeros alone, which steer nowhere"),
    ({"vector": torch.full((32,), torch.inf)}, EditError, "holds NaN or infinity"),
    ({"vector": torch.ones(12)}, EditError, r"the vector has shape \(12,\)"),
    ({"vector": [1.0] * 32}, EditError, "the vector is a tensor; given list"),
    ({"site": None}, SiteError, "say the site and layer to steer at: a tensor does not know them"),
    ({"layer": None}, SiteError, "'resid_post' is in every layer: say which"),
    ({"site": "final", "layer": None}, SiteError, "'final' is outside the layers"),
    ({"site": "scores", "vector": torch.tensor(1.0)}, SiteError, "'scores' lives on attention edges"),
    ({"pos": 3}, SiteError, "there is no position 3"),
    ({"prompts": []}, PromptError, "the list of prompts is empty"),
    ({"texts": []}, PromptError, "the list of texts is empty"),
    ({"prompts": [[99]]}, PromptError, "token id 99 is outside"),
    ({"metric": 3}, MetricError, "a metric is a function"),
    ({"metric": gs.logit_diff(3, 99)}, PromptError, "token id 99 is outside"),
    ({"metric": lambda logits: logits.mean()}, MetricError, r"the metric returned \(\)"),
    ({"metric": [METRIC]}, SweepError, "there are 4 prompts and 1 metrics"),
    ({"memory": 100}, SweepError, "memory of 100 bytes is too little"),
]


@pytest.mark.parametrize(("instead", "kind", "message"), NOT_SWEPT, ids=[f"{list(i)}-{m[:25]}" for i, _, m in NOT_SWEPT])
def test_a_bad_strength_sweep_is_refused(instead: dict[str, Any], kind: Any, message: str, layers_read: list[int]) -> None:
    arguments: dict[str, Any] = {"prompts": PROMPTS, "vector": torch.ones(32), "metric": METRIC, "strengths": [1]}
    arguments |= {"site": "resid_post", "layer": 1, "model": model(), **instead}
    with pytest.raises(kind, match=message):
        gs.strength_sweep(arguments.pop("prompts"), arguments.pop("vector"), arguments.pop("metric"), **arguments)
    assert not layers_read


# -- pictures --


def valid(figure: Any) -> dict[str, Any]:
    """The figure as plotly's JSON reads it back, checked by plotly."""
    data: dict[str, Any] = json.loads(figure.to_json())
    go.Figure(data, skip_invalid=False)
    return data


def test_a_picture_of_a_direction_has_a_mark_for_every_prompt() -> None:
    positive = [f"When{word}" for word in STORY[1:7]]
    negative = [f"{piece} went" for piece in ODD[:5]]
    d = gs.direction(positive, negative, layer=1, model=worded())
    figure = d.plot()
    valid(figure)
    drawn = {trace.name: trace for trace in figure.data}
    assert sorted([*drawn["positive"].x, *drawn["negative"].x]) == sorted(d.projections.values.tolist())
    wrong = sum(trace.marker.symbol.count("x") for trace in figure.data)
    assert wrong == d.n_held_out - round(d.accuracy * d.n_held_out)
    assert any("&lt;img" in text for text in drawn["negative"].customdata)
    assert not any("<img" in text for text in drawn["negative"].customdata)
    assert figure.layout.title.text == "Direction at resid_post of layer 1, pos -1, random"
    frame = d.to_dataframe()
    assert frame["text"].tolist() == [f"<bos>{text}" for text in [*positive, *negative]]


def test_a_picture_of_strengths_is_in_their_order_with_perplexity_on_a_logarithmic_axis() -> None:
    result = gs.strength_sweep(PROMPTS, randn(32), METRIC, strengths=[3, -1, 0], site="resid_post", layer=0, model=model())
    figure = result.plot()
    valid(figure)
    metric, perplexity = figure.data
    assert list(metric.x) == list(perplexity.x) == [-1.0, 0.0, 3.0]
    assert list(metric.y) == [float(result.metric.sel(strength=s)) for s in (-1, 0, 3)]
    assert figure.layout.yaxis.type != "log"
    assert figure.layout.yaxis2.type == "log"
    assert figure.layout.yaxis.title.text == "gs.logit_diff(3, 4)"


# -- nano --


@cache
def by_gender(n: int, seed: int) -> tuple[list[str], list[str]]:
    pairs = gs.prompts.pronouns(n, seed=seed)
    women = [p.clean if p.answer == " she" else p.corrupt for p in pairs]
    return women, [p.corrupt if p.answer == " she" else p.clean for p in pairs]


@pytest.mark.nano
def test_nanos_direction_of_gender_exists_from_the_layer_that_reads_the_name() -> None:
    women, men = by_gender(24, 0)
    assert gs.direction(women, men, layer=0).accuracy <= 0.6
    assert gs.direction(women, men, layer=-1).accuracy >= 0.95


@pytest.mark.nano
def test_nanos_direction_of_gender_moves_the_pronoun_step_by_step() -> None:
    d = gs.direction(*by_gender(24, 0), layer=4)
    women, men = by_gender(8, 1)
    result = gs.strength_sweep([*women, *men], d, gs.logit_diff(" she", " he"), strengths=[-2, -1, -0.5, 0, 0.5, 1, 2])
    assert (np.diff(result.metric.values) > 0).all()
    assert float(result.metric[0]) < -3
    assert float(result.metric[-1]) > 3
    assert float(result.perplexity.sel(strength=0.5)) <= 1.2 * result.unsteered_perplexity


@pytest.mark.nano
def test_removing_its_direction_of_gender_halves_nanos_preference() -> None:
    d = gs.direction(*by_gender(24, 0), layer=4)
    gaps = []
    for edits in ([], [d.ablate(layer=layer) for layer in range(6)]):
        women, men = (gs.trace(list(texts), edits=edits) for texts in by_gender(8, 1))
        metric = gs.logit_diff(" she", " he").bind(women[0].model)
        means = [float(metric(torch.stack([t.next_logits for t in runs])).mean()) for runs in (women, men)]
        gaps.append(means[0] - means[1])
    assert abs(gaps[1]) <= 0.5 * gaps[0]


@pytest.mark.parametrize("limits", [(9.4, 235.0), (239.5, 292.2), (1.01, 1.02), (3.0, 18.7), (99.0, 101.0), (0.9, 5.6)])
def test_an_axis_of_perplexity_has_ticks_however_narrow_its_range(limits: tuple[float, float]) -> None:
    axis = log_ticks(np.array(limits))
    marks = axis["tickvals"]
    assert [float(text.replace(",", "")) for text in axis.get("ticktext", map(str, marks))] == marks
    assert 2 <= len([mark for mark in marks if limits[0] <= mark <= limits[1]]) <= 12


def test_an_axis_over_many_decades_has_plotlys_ticks() -> None:
    assert log_ticks(np.array([1.0, 1e4])) == log_ticks(np.array([])) == {}


def test_marks_within_decades_say_the_whole_number() -> None:
    axis = log_ticks(np.array([7.0, 900.0]))
    assert axis["ticktext"] == ["1", "2", "5", "10", "20", "50", "100", "200", "500", "1,000", "2,000", "5,000"]
    assert {"7", "0.7"}.isdisjoint(log_ticks(np.array([7.0]))["ticktext"])
    assert log_ticks(np.array([0.7]))["ticktext"][:3] == ["0.1", "0.2", "0.5"]
