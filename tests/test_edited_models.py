"""An edited model: every function that runs prompts gives what it gives with the same edits named in the call."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint, model_of, prompt
from torch import Tensor

import gemmascope as gs
from gemmascope.edits.edit import Edit
from gemmascope.errors import EditError, SiteError
from gemmascope.model.model import Model

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
METRIC = gs.logit_diff(" Mary", " John")


def edits() -> list[Edit]:
    random = torch.Generator().manual_seed(0)
    return [
        gs.ablate("z", layer=3, head=0),
        gs.add("resid_post", torch.randn(128, generator=random), layer=1, pos=slice(2, None)),
        gs.knockout(layer=2, head=[1, 3], q_pos=slice(6, None), k_pos=2),
        gs.scale("mlp_out", 0.5, layer=4, pos=-1),
    ]


def sweep_values(result: gs.SweepResult) -> list[Any]:
    return [result.effect.values, result.clean, *([result.corrupt] if result.question.has_source else [])]


# Functions that take edits= and make them in every run.
SAME: dict[str, Callable[..., Any]] = {
    "trace": lambda **how: gs.trace(CLEAN, **how).logits,
    "several traces": lambda **how: [t.logits for t in gs.trace([CLEAN, "Mary and John went to the"], **how)],
    "a site": lambda **how: gs.trace(CLEAN, **how)["pattern", 2],
    "lens": lambda **how: gs.lens(gs.trace(CLEAN, **how)).top_probs.values,
    "direct logits": lambda **how: gs.direct_logits(gs.trace(CLEAN, **how), " Mary", by="head").parts.values,
    "gradient": lambda **how: gs.trace(CLEAN, **how).grad(METRIC, ("z", 1)),
    "generation": lambda **how: gs.generate(CLEAN, max_new_tokens=6, **how).logprobs,
    "samples": lambda **how: [g.ids for g in gs.generate(CLEAN, max_new_tokens=3, temperature=2.0, samples=2, **how)],
    "ablation sweep": lambda **how: sweep_values(
        gs.sweep(CLEAN, None, METRIC, site="z", by=("layer", "head"), ablate=0.0, progress=False, **how)
    ),
    "feature sweep": lambda **how: gs.feature_sweep(gs.load_sae(), CLEAN, METRIC, features=[804, 265], **how).effect.values,
}


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(np.allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-5, equal_nan=True))


@pytest.mark.nano
@pytest.mark.parametrize("name", SAME)
def test_an_edited_model_gives_what_the_same_edits_in_the_call_give(name: str) -> None:
    run, model = SAME[name], gs.load()
    used = edits()[:3] if name == "generation" else edits()
    before = run()
    result = run(model=model.edited(used))
    assert equal(result, run(edits=used))
    assert equal(run(model=model.edited(used[:1]).edited(used[1:])), result)  # nested: one after the other
    assert equal(run(model=model.edited(used[:1]), edits=used[1:]), result)  # the call's own come after
    assert not equal(result, before)
    assert equal(run(model=model), before)  # the first model is as it was


@pytest.mark.nano
@pytest.mark.parametrize("site", ["resid_pre", "z"])
@pytest.mark.parametrize("into", ["corrupt", "clean"])
def test_a_sweep_of_an_edited_model_has_its_edits_in_both_runs(site: str, into: str) -> None:
    model = gs.load().edited(edits())
    by = ("layer", "head") if site == "z" else ("layer", "pos")
    result = gs.sweep(CLEAN, CORRUPT, METRIC, site=site, by=by, into=into, layer=[0, 2, 5], model=model, progress=False)
    runs = {"clean": gs.trace(CLEAN, edits=edits()), "corrupt": gs.trace(CORRUPT, edits=edits())}
    metrics = {name: _measure(t) for name, t in runs.items()}
    assert (result.clean, result.corrupt) == pytest.approx((metrics["clean"], metrics["corrupt"]), abs=1e-4)
    base, source = (CORRUPT, runs["clean"]) if into == "corrupt" else (CLEAN, runs["corrupt"])
    for layer in (0, 2, 5):
        for i in (0, 3) if site == "z" else (2, 9, 14):
            place = {"head": i} if site == "z" else {"pos": i}
            patched = gs.trace(base, edits=[*edits(), gs.patch(site, source, layer=layer, **place)])
            cell = result.effect.sel(layer=layer, **place).item() + metrics[into]
            assert cell == pytest.approx(_measure(patched), abs=1e-3)
    again = gs.attribute(CLEAN, CORRUPT, METRIC, site=site, by=by, into=into, layer=[2], model=model)
    assert (again.clean, again.corrupt) == pytest.approx((metrics["clean"], metrics["corrupt"]), abs=1e-4)


def _measure(t: gs.Trace) -> float:
    mary, john = (t.model.tokenizer.single(name) for name in (" Mary", " John"))
    return float(t.next_logits[mary] - t.next_logits[john])


@pytest.mark.nano
def test_functions_without_edits_in_their_call_have_the_models_too() -> None:
    model, cut = gs.load(), gs.load().edited(edits())
    t = gs.trace(CLEAN, edits=edits())
    assert equal(cut.run(CLEAN), t.logits)
    seen: dict[Any, Tensor] = {}
    cut.run(CLEAN, tap=lambda site, layer, value: seen.update({(site, layer): value.clone()}))
    assert equal(seen["z", 3], t["z", 3])  # a tap sees what the edits wrote
    assert equal(seen["pattern", 2], t["pattern", 2])

    kinds = ["previous_token", "induction", "entropy", "positional"]
    prompts = [CLEAN, "Mary and John and Mary and John and Mary and John"]
    scores, traces = gs.head_scores(cut, kinds, prompts=prompts), gs.trace(prompts, edits=edits())
    entropy = np.mean(np.concatenate([_entropies(one) for one in traces], -1), -1)
    assert np.allclose(scores["entropy"].scores.values, entropy, atol=1e-4)
    assert not equal(scores["previous_token"].scores.values, gs.head_scores(model, kinds[0], prompts=prompts).scores.values)

    positive, negative = (
        ["Mary and John went to the store", "John and Mary went to the store"],
        ["Tom and Anna had a long day", "Tom said that the store was"],
    )
    direction = gs.direction(positive, negative, layer=4, model=cut)
    means = [
        torch.stack([gs.trace(text, edits=edits())["resid_post", 4][-1] for text in texts]).mean(0)
        for texts in (positive, negative)
    ]
    assert torch.allclose(direction.vector.float(), means[0] - means[1], atol=1e-3)
    steered = gs.strength_sweep([CLEAN], direction, METRIC, strengths=[0, 2.0], model=cut, progress=False)
    runs = [gs.trace(CLEAN, edits=edits()), gs.trace(CLEAN, edits=[*edits(), direction.add(2.0)])]
    assert np.allclose(steered.metric.values.ravel(), [_measure(run) for run in runs], atol=1e-3)


def _entropies(t: gs.Trace) -> np.ndarray[Any, Any]:
    patterns = torch.stack([t["pattern", layer] for layer in range(t.model.n_layers)])
    return torch.special.entr(patterns).sum(-1)[..., 1:].numpy()


def test_the_repr_the_fingerprint_and_the_code_say_the_edits() -> None:
    model = model_of(checkpoint("lg"))
    vector = torch.ones(32)
    one, other = model.edited([gs.add("resid_post", vector, layer=0)]), model.edited([gs.scale("z", 0.5, layer=1)])
    assert repr(other).endswith(", edits=[gs.scale('z', 0.5, layer=1)])")
    assert model.edits == ()
    assert other.edits == (gs.scale("z", 0.5, layer=1),)
    functions = [model.edited([gs.edit("z", fn, layer=0)]) for fn in (torch.relu, lambda x: x + 1, lambda x: x + 2)]
    prints = [m.fingerprint for m in (model, one, other, other.edited([gs.scale("z", 0.5, layer=0)]), *functions)]
    assert len(set(prints)) == len(prints)
    assert model.edited([gs.add("resid_post", torch.ones(32), layer=0)]).fingerprint == one.fingerprint
    assert model.edited([gs.add("resid_post", 2 * torch.ones(32), layer=0)]).fingerprint != one.fingerprint
    assert other.unedited().fingerprint == model.fingerprint
    vector[0] = 7.0  # what was written stays
    assert one.fingerprint == prints[1]
    assert (
        float(
            (one.run(prompt(5)) - model.edited([gs.add("resid_post", torch.ones(32), layer=0)]).run(prompt(5))).abs().max()
        )
        == 0
    )
    assert one.network is model.network


@pytest.mark.nano
def test_an_edited_model_is_copied_pickled_and_repeated_by_code() -> None:
    cut = gs.load().edited([gs.ablate("z", layer=3, head=0)])
    for again in (copy.copy(cut), copy.deepcopy(cut), pickle.loads(pickle.dumps(cut))):
        assert again.edits == cut.edits
        assert again.fingerprint == cut.fingerprint
        assert torch.equal(again.run(CLEAN), cut.run(CLEAN))
    result = gs.sweep(CLEAN, CORRUPT, METRIC, site="z", by=("layer", "head"), layer=5, model=cut, progress=False)
    assert "model = model.edited([gs.ablate('z', layer=3, head=0)])" in result.code()
    names: dict[str, Any] = {}
    exec(result.code(), names)
    assert equal(sweep_values(names["result"]), sweep_values(result))


BAD: list[tuple[Any, type[Exception], str]] = [
    (gs.scale("z", 2.0, layer=0), EditError, r"edits is a list of edits; given one: write model.edited\(\[gs.scale"),
    ([], EditError, "edits is an empty list: the model would be this one"),
    ([3], EditError, "edits is a list of edits, made by gs.patch, .*; it holds 3"),
    ("z", EditError, "edits is a list of edits; given 'z'"),
    ([gs.scale("zz", 2.0, layer=0)], SiteError, "zz"),
    ([gs.scale("z", 2.0, layer=9)], SiteError, "9"),
    ([gs.scale("z", 2.0, layer=0, head=8)], SiteError, "8"),
]


@pytest.mark.parametrize(("given", "kind", "message"), BAD)
def test_what_is_no_list_of_edits_is_refused(given: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        model_of(checkpoint("lg")).edited(given)


def test_a_position_that_a_prompt_lacks_is_an_error_of_that_run() -> None:
    model: Model = model_of(checkpoint("lg")).edited([gs.scale("z", 2.0, layer=0, pos=5)])
    assert gs.trace(prompt(6), model=model).edits == model.edits
    with pytest.raises(SiteError, match="no position 5"):
        gs.trace(prompt(5), model=model)
