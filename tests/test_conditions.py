"""Edits with a condition, in traces, replays and generation; patchscopes against edits by hand."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch
from checkpoints import model, prompt
from random_dictionaries import dictionary
from torch import Tensor

import gemmascope as gs
from gemmascope.edits.edit import Edit
from gemmascope.errors import DictionaryError, EditError, SiteError
from gemmascope.model.model import Model

LAYER = 1


def big(rows: Tensor) -> Tensor:
    return rows[:, 0] > 0


def every_kind(when: object) -> list[Edit]:
    v = torch.linspace(-1, 1, 32)
    more = {"layer": LAYER, "when": when}
    return [
        gs.add("resid_post", v, scale=3.0, **more),  # type: ignore[arg-type]
        gs.scale("resid_post", 0.5, **more),  # type: ignore[arg-type]
        gs.ablate("resid_post", value=1.0, **more),  # type: ignore[arg-type]
        gs.ablate_direction("resid_post", v, **more),  # type: ignore[arg-type]
        gs.patch("resid_post", v, **more),  # type: ignore[arg-type]
    ]


def test_an_edit_is_made_where_its_condition_holds_and_nowhere_else() -> None:
    m, ids = model("lgl"), prompt(9)
    plain = gs.trace(ids, model=m)
    holds = big(plain["resid_post", LAYER])
    assert 0 < int(holds.sum()) < 9
    for conditional, always in zip(every_kind(big), every_kind(None), strict=True):
        t, everywhere = (gs.trace(ids, model=m, edits=[edit]) for edit in (conditional, always))
        expected = torch.where(holds[:, None], everywhere["resid_post", LAYER], plain["resid_post", LAYER])
        assert torch.equal(t["resid_post", LAYER], expected)
        by_position = [int(i) for i in holds.nonzero()[:, 0]]
        again = gs.trace(ids, model=m, edits=[replace(always, pos=by_position)])
        assert torch.allclose(t.logits, again.logits, atol=1e-5)
        assert "when=big)" in repr(conditional)
        assert pickle.loads(pickle.dumps(conditional)) == conditional
        assert conditional.digest() != always.digest()


def test_where_a_feature_is_on_and_a_probe_is_exceeded() -> None:
    m, ids = model("lgl"), prompt(9)
    sae = dictionary(32, "resid_post", LAYER)
    rows = gs.trace(ids, model=m)["resid_post", LAYER]
    acts = sae.activations(rows)
    feature = int(((acts > 0.5).sum(0) - 4).abs().argmin())
    on = acts[:, feature] > 0.5
    assert 0 < int(on.sum()) < 9
    edit = gs.scale("resid_post", 2.0, layer=LAYER, when=gs.feature_on(sae, feature, above=0.5))
    changed = (gs.trace(ids, model=m, edits=[edit])["resid_post", LAYER] != rows).any(1)
    assert torch.equal(changed, on)
    probe = torch.randn(32, generator=torch.Generator().manual_seed(1))
    readings = (rows @ probe).sort().values
    level = float(readings[4:6].mean())  # between two rows: at one of them, rounding decides
    edit = gs.scale("resid_post", 2.0, layer=LAYER, when=gs.probe_above(probe, level))
    changed = (gs.trace(ids, model=m, edits=[edit])["resid_post", LAYER] != rows).any(1)
    assert torch.equal(changed, rows @ probe > level)
    direction = gs.direction([ids, prompt(9, seed=4)], [prompt(9, seed=5), prompt(9, seed=6)], layer=LAYER, model=m)
    edit = gs.scale("resid_post", 2.0, layer=LAYER, when=gs.probe_above(direction))
    changed = (gs.trace(ids, model=m, edits=[edit])["resid_post", LAYER] != rows).any(1)
    assert torch.equal(changed, rows @ direction.probe + direction.bias > 0)
    assert bool(changed[-1])


def test_generation_with_a_condition_is_the_whole_text_run_again() -> None:
    m, ids = model("lgl"), prompt(6)
    mixed = 0
    for column in range(3):
        edit = gs.add("resid_post", 4 * torch.linspace(-1, 1, 32), layer=LAYER, when=lambda rows, c=column: rows[:, c] > 0)
        generated = gs.generate(ids, model=m, edits=[edit], max_new_tokens=5)
        mixed += _is_whole_run_again(m, ids, edit, generated, column)
    assert mixed  # in one at least the condition holds at some generated tokens and not at others


def _is_whole_run_again(m: Model, ids: list[int], edit: Edit, generated: gs.Generation, column: int) -> bool:
    """Asserts it; whether the condition holds at some generated positions and not at all of them."""
    for n in range(len(ids), len(generated.ids)):
        whole = gs.trace(generated.ids[:n], model=m, edits=[edit])
        assert int(whole.next_logits.argmax()) == int(generated.ids[n])
    rows = gs.trace(generated.ids, model=m)["resid_post", LAYER][len(ids) :, column] > 0
    return 0 < int(rows.sum()) < len(rows)


def test_a_sweep_of_a_run_with_a_condition_is_the_loop_of_runs() -> None:
    m, clean, corrupt = model("lgl"), prompt(7), prompt(7, seed=2)
    edit = gs.scale("resid_post", 0.3, layer=0, when=big)
    metric = gs.logit_diff(3, 4)
    result = gs.sweep(clean, corrupt, metric, site="mlp_out", edits=[edit], model=m, progress=False)
    source = gs.trace(clean, model=m)
    for layer, pos in ((0, 2), (1, 5), (2, 6)):
        patched = gs.patch("mlp_out", source, layer=layer, pos=pos)
        logits = gs.trace(corrupt, model=m, edits=[edit, patched]).next_logits
        expected = float(logits[3] - logits[4]) - result.corrupt
        assert result.effect.sel(layer=layer, pos=pos).item() == pytest.approx(expected, abs=2e-3)


def test_a_patchscope_is_an_edit_in_generation() -> None:
    m, ids, into = model("lgl"), prompt(8), prompt(5, seed=3)
    t = gs.trace(ids, model=m)
    found = gs.patchscope(t, layer=1, pos=3, into=into, into_layer=0, into_pos=2, max_new_tokens=4)
    edit = gs.patch("resid_post", t["resid_post", 1][3], layer=0, pos=2)
    expected = gs.generate(into, model=m, edits=[edit], max_new_tokens=4)
    assert torch.equal(found.ids, expected.ids)
    several = gs.patchscope(t, "resid_pre", layer=[0, 2], into=into, max_new_tokens=2)
    assert isinstance(several, list)
    for layer, one in zip((0, 2), several, strict=True):
        edit = gs.patch("resid_pre", t["resid_pre", layer][-1], layer=layer, pos=4)
        assert torch.equal(one.ids, gs.generate(into, model=m, edits=[edit], max_new_tokens=2).ids)
    with pytest.raises(SiteError, match="a patchscope reads a trace"):
        gs.patchscope("text", layer=1, into=into)  # type: ignore[arg-type]
    with pytest.raises(SiteError, match="reads a row of a site"):
        gs.patchscope(t, "pattern", layer=1, into=into)
    with pytest.raises(SiteError):
        gs.patchscope(t, layer=7, into=into)
    for fraction in (2.7, [0, 2.7], [1, True], ["1"], torch.tensor([0.5])):
        with pytest.raises(SiteError, match="a layer is a whole number"):
            gs.patchscope(t, layer=fraction, into=into)  # type: ignore[arg-type]
    with pytest.raises(SiteError, match="reads one position"):
        gs.patchscope(t, layer=1, pos=[1, 2], into=into)  # type: ignore[arg-type]


def test_bad_conditions() -> None:
    m, ids = model("lgl"), prompt(6)
    sae = dictionary(32, "resid_post", LAYER)

    def run(when: object, site: str = "resid_post", layer: int = LAYER) -> None:
        gs.trace(ids, model=m, edits=[gs.scale(site, 0.5, layer=layer, when=when)])  # type: ignore[arg-type]

    with pytest.raises(EditError, match="when is a condition"):
        run(3)
    with pytest.raises(EditError, match="must return a bool for each position"):
        run(lambda rows: rows > 0)
    with pytest.raises(EditError, match="lives on attention edges"):
        run(big, site="pattern")
    with pytest.raises(EditError, match="a condition reads the rows that the edit changes"):
        run(gs.feature_on(sae, 3), layer=0)
    with pytest.raises(EditError, match="the probe has 5 weights"):
        run(gs.probe_above(torch.ones(5)))
    with pytest.raises(EditError, match="a probe is what"):
        gs.probe_above("x")  # type: ignore[arg-type]
    with pytest.raises(DictionaryError, match="feature"):
        gs.feature_on(sae, 99)
    with pytest.raises(DictionaryError, match="a feature is one of a dictionary"):
        gs.feature_on("nano", 3)  # type: ignore[arg-type]
