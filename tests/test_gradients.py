"""Gradients and attribution: against finite differences, against autograd through transformers, and completeness."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint, model_of, prompt
from reference import error
from torch import Tensor

import gemmascope as gs
from gemmascope.errors import EditError, SiteError, SweepError
from gemmascope.model.model import Model
from gemmascope.sites import LAYER_SITES, SITES

CLEAN, CORRUPT = prompt(9, seed=1), prompt(9, seed=2)
METRIC = gs.logit_diff(5, 9)


@cache
def source() -> Any:
    # Scores so large that the softmax is nearly one-hot make gradients that finite differences cannot follow.
    model = checkpoint("lgl")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                weight.mul_(0.3)
    return model


@cache
def model() -> Model:
    return model_of(source())


def metric_with(site: str, layer: int | None, value: Tensor) -> float:
    """The metric of the clean run with a site's value replaced."""
    logits = gs.trace(CLEAN, model=model(), edits=[gs.patch(site, value, layer=layer)]).next_logits.double()
    return float(logits[5] - logits[9])


@pytest.mark.parametrize("site", ["embed", *LAYER_SITES])
def test_a_gradient_is_what_a_small_step_changes(site: str) -> None:
    layer = 1 if SITES[site].in_layer else None
    t = gs.trace(CLEAN, model=model())
    value = t[site, layer] if layer is not None else t[site]
    grad = t.grad(METRIC, (site, layer) if layer is not None else site)
    assert grad.shape == value.shape
    step = torch.randn(value.shape, generator=torch.Generator().manual_seed(3))
    if SITES[site].is_edges:
        step = step.tril()  # the mask hides the others, whatever stands there
    step *= 0.01 * value.norm() / step.norm()
    measured = (metric_with(site, layer, value + step) - metric_with(site, layer, value - step)) / 2
    predicted = float((grad.double() * step.double()).sum())
    assert measured == pytest.approx(predicted, rel=0.03, abs=2e-4)
    assert abs(predicted) > 1e-3


def test_gradients_at_the_stream_are_those_of_transformers() -> None:
    t = gs.trace(CLEAN, model=model())
    ours = t.grad(METRIC, ["embed", *((site, layer) for site in ("resid_pre", "resid_post") for layer in range(3))])
    out = source()(torch.tensor([CLEAN]), output_hidden_states=True)
    entries = out.hidden_states[:3]
    value = out.logits[0, -1, 5] - out.logits[0, -1, 9]
    theirs = torch.autograd.grad(value, entries)
    assert error(ours["embed"], theirs[0][0]) <= 1e-5
    for layer in range(3):
        assert error(ours["resid_pre", layer], theirs[layer][0]) <= 1e-5
    for layer in range(2):
        assert error(ours["resid_post", layer], theirs[layer + 1][0]) <= 1e-5


def test_a_gradient_leaves_the_model_unchanged_and_reads_each_layer_once(layers_read: list[int]) -> None:
    t = gs.trace(CLEAN, model=model())
    layers_read.clear()
    t.grad(METRIC, [("z", 0), ("z", 1), ("resid_mid", 1)])
    assert layers_read == [2, 1, 0]
    assert all(weight.grad is None for weight in model().network.parameters())


def test_gradients_are_taken_in_the_edited_run() -> None:
    edits = [gs.scale("mlp_out", 0.5, layer=1), gs.ablate("z", layer=2, head=3)]
    t = gs.trace(CLEAN, model=model(), edits=edits)
    grad = t.grad(METRIC, ("resid_mid", 0))
    value, step = t["resid_mid", 0], torch.randn(9, 32, generator=torch.Generator().manual_seed(3)) * 1e-2
    metrics = []
    for sign in (1, -1):
        moved = gs.trace(CLEAN, model=model(), edits=[gs.patch("resid_mid", value + sign * step, layer=0), *edits])
        metrics.append(float(moved.next_logits[5] - moved.next_logits[9]))
    assert (metrics[0] - metrics[1]) / 2 == pytest.approx(float((grad * step).sum()), rel=0.03, abs=1e-4)
    assert bool((t.grad(METRIC, ("z", 2))[:, 3] != 0).any())  # what would happen if the ablated head spoke


@pytest.mark.parametrize(
    ("site", "by"), [("resid_pre", ("layer", "pos")), ("z", ("layer", "head")), ("pattern", ("layer", "head"))]
)
def test_an_estimate_is_the_sweep_to_first_order(site: str, by: tuple[str, ...]) -> None:
    """With a source very close to the base, the sweep of each cell equals its estimate."""
    base = gs.trace(CLEAN, model=model())
    near = {layer: base[site, layer] * 1.01 for layer in range(3)}
    e = gs.attribute(CLEAN, CORRUPT, METRIC, site=site, by=by, into="clean", model=model())
    grads = {layer: base.grad(METRIC, (site, layer)) for layer in range(3)}
    source_values = {layer: gs.trace(CORRUPT, model=model())[site, layer] for layer in range(3)}
    for layer in range(3):
        product = (source_values[layer] - base[site, layer]) * grads[layer]
        expected = product.sum(-1) if by == ("layer", "pos") else product.sum((0, 2) if site == "z" else (1, 2))
        assert error(torch.tensor(e.effect[layer].values), expected) <= 1e-4
    measured = metric_with(site, 1, near[1]) - metric_with(site, 1, base[site, 1])
    assert measured == pytest.approx(float(((near[1] - base[site, 1]) * grads[1]).sum()), rel=0.05, abs=1e-3)


def test_with_many_steps_the_cells_of_a_layer_add_up_to_patching_them_all() -> None:
    cell = {"site": "resid_mid", "layer": [0, 2], "model": model()}
    joint = gs.sweep(CLEAN, CORRUPT, METRIC, by=("layer",), **cell).effect.values
    errors = [
        float(np.abs(gs.attribute(CLEAN, CORRUPT, METRIC, steps=steps, **cell).effect.sum("pos").values - joint).max())
        for steps in (1, 64)
    ]
    assert errors[1] < 0.02 * np.abs(joint).max()
    assert errors[1] < errors[0] / 10


def test_steps_move_only_the_places_of_the_grid() -> None:
    cell = {"site": "resid_mid", "layer": 1, "pos": [8], "model": model()}
    one = gs.sweep(CLEAN, CORRUPT, METRIC, **cell).effect.item()
    assert gs.attribute(CLEAN, CORRUPT, METRIC, steps=64, **cell).effect.item() == pytest.approx(one, rel=0.02)


@pytest.mark.parametrize("how", ["mean", "mean_by_pos"])
def test_an_estimate_of_a_mean_ablation_goes_to_the_mean(how: str) -> None:
    reference = gs.trace([prompt(9, seed=s) for s in (3, 4)], model=model())
    e = gs.attribute(CLEAN, None, METRIC, site="z", by=("layer", "head"), ablate=how, reference=reference, model=model())
    base = gs.trace(CLEAN, model=model())
    for layer in range(3):
        ablated = gs.trace(CLEAN, model=model(), edits=[gs.ablate("z", layer=layer, value=how, reference=reference)])
        expected = ((ablated["z", layer] - base["z", layer]) * base.grad(METRIC, ("z", layer))).sum((0, 2))
        assert error(torch.tensor(e.effect[layer].values), expected) <= 1e-4


def test_an_estimate_has_the_labels_of_a_sweep_and_says_that_it_is_one() -> None:
    arguments = {
        "site": "pattern",
        "by": ("layer", "head", "q_pos", "k_pos"),
        "model": model(),
        "layer": [0, 1],
        "head": [0, 5],
    }
    e, s = gs.attribute(CLEAN, CORRUPT, METRIC, **arguments), gs.sweep(CLEAN, CORRUPT, METRIC, **arguments)
    assert e.effect.dims == s.effect.dims
    assert (e.finished == s.finished).all(), "edges that the mask hides have no estimate either"
    assert (e.clean, e.corrupt) == pytest.approx((s.clean, s.corrupt), abs=1e-4)
    assert repr(e).startswith("estimate (gradient)")
    assert repr(s).startswith("sweep")


def test_bad_arguments_are_refused() -> None:
    t = gs.trace(CLEAN, model=model())
    with pytest.raises(SiteError, match="'logits' comes after the layers"):
        t.grad(METRIC, "logits")
    with pytest.raises(SweepError, match="steps is a whole number from 1 to 10000; given 0"):
        gs.attribute(CLEAN, CORRUPT, METRIC, site="z", steps=0, model=model())
    edited = gs.trace(CLEAN, model=model(), edits=[gs.scale("final", 2.0)])
    with pytest.raises(EditError, match="after its layers"):
        edited.grad(METRIC, ("z", 0))
