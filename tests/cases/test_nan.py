"""NaN and infinity that arise in a run give an error that names their cause, never a text of <pad>."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import gemmascope as gs
from gemmascope.edits.edit import Edit
from gemmascope.errors import CheckpointError, EditError, TapError

P = "When Mary and John went to the store, John gave a drink to"

BORN = {
    "a function that divides by 0": gs.edit("resid_post", lambda x: x / 0, layer=2),
    "a function that gives NaN": gs.edit("z", lambda x: x * torch.nan, layer=1, pos=[3], head=2),
    "at the scores": gs.edit("scores", lambda x: x * torch.nan, layer=1, q_pos=[3], k_pos=[1]),
    "infinity at the scores": gs.edit("scores_capped", lambda x: x + torch.inf, layer=1, q_pos=[3], k_pos=[1]),
    "at the pattern": gs.edit("pattern", lambda x: x / 0, layer=1),
    "a factor": gs.scale("resid_post", 3e38, layer=1),
    "at the embedding": gs.edit("embed", lambda x: x * torch.nan),
}


@pytest.mark.parametrize("edit", BORN.values(), ids=BORN.keys())
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_edit_that_gives_what_is_no_number_is_named(edit: Edit, temperature: float) -> None:
    edits = [edit]
    with pytest.raises(EditError) as trace:
        gs.trace(P, edits=edits)
    with pytest.raises(EditError) as text:
        gs.generate(P, edits=edits, max_new_tokens=3, temperature=temperature)
    for error in (trace, text):
        assert repr(edit) in str(error.value)
        assert f"{edit.site}'" in str(error.value)


@pytest.mark.parametrize("site", ["final", "logits_raw", "logits"])
def test_a_function_after_the_layers_is_named_where_its_numbers_are_read(site: str) -> None:
    bad = gs.edit(site, lambda x: x * torch.nan)
    for read in (
        lambda: gs.trace(P, edits=[bad]).top(2),
        lambda: gs.trace(P, edits=[bad]).logits,
        lambda: gs.trace(P, edits=[bad]).next_logits,
        lambda: gs.generate(P, edits=[bad], max_new_tokens=3),
        lambda: gs.generate(P, edits=[bad], max_new_tokens=3, temperature=1.0),
    ):
        with pytest.raises(EditError, match=site):
            read()


def test_an_edit_at_a_position_that_is_generated_is_named() -> None:
    with pytest.raises(EditError, match=r"gs.edit\('z', <lambda>, layer=1, pos=\[?16\]?\)"):
        gs.generate(P, edits=[gs.edit("z", lambda x: x * torch.nan, layer=1, pos=16)], max_new_tokens=4)


def test_a_sum_that_leaves_the_range_names_the_one_that_left_it() -> None:
    vector = torch.full((128,), 3e38)
    edits = [gs.add("resid_post", vector, layer=1), gs.add("resid_post", torch.full((128,), 2e38), layer=1)]
    with pytest.raises(EditError, match=r"layers\.1\.resid_post") as error:
        gs.trace(P, edits=edits)
    assert repr(edits[1]) in str(error.value)


def test_numbers_that_overflow_on_the_way_name_the_site_and_the_edits() -> None:
    edits = [
        gs.patch("resid_mid", torch.full((128,), 3e38), layer=1),
        gs.patch("mlp_out", torch.full((128,), 3e38), layer=1),
    ]
    with pytest.raises(EditError, match=r"first at 'layers.1.mlp_in', position 0; without them it does not: gs.patch"):
        gs.trace(P, edits=edits)
    with pytest.raises(EditError, match=r"first at 'layers.1.mlp_in'"):
        gs.generate(P, edits=edits, max_new_tokens=2)


@pytest.mark.parametrize("site", ["scores", "scores_capped"])
def test_minus_infinity_at_the_scores_hides_an_edge(site: str) -> None:
    places: dict[str, Any] = {"layer": 1, "q_pos": 9, "k_pos": [2, 3]}
    hidden = gs.trace(P, edits=[gs.edit(site, lambda x: x - torch.inf, **places)])
    assert torch.isfinite(hidden.logits).all()
    if site == "scores_capped":
        assert torch.equal(hidden.logits, gs.trace(P, edits=[gs.knockout(**places)]).logits)


def test_minus_infinity_at_the_logits_rules_tokens_out() -> None:
    first = gs.trace(P).top(1)[0]
    ban = gs.edit("logits", lambda x: x.index_fill(-1, torch.tensor([first[1]]), -torch.inf))
    assert gs.trace(P, edits=[ban]).top(1)[0][1] == gs.trace(P).top(2)[1][1]
    assert first[1] not in gs.generate(P, edits=[ban], max_new_tokens=3).new_ids.tolist()


def damaged(name: str, at: int) -> gs.Model:
    model = gs.load()
    with torch.no_grad():
        model.network.get_parameter(name).view(-1)[at] = torch.nan
    return model


@pytest.mark.parametrize(
    ("name", "at", "where"),
    [
        ("model.layers.2.mlp.down_proj.weight", 5, "layers.2.mlp_raw"),
        ("model.layers.1.self_attn.q_proj.weight", 7, "layers.1.q"),
        ("model.layers.3.input_layernorm.weight", 0, "layers.3.attn_in"),
        ("model.norm.weight", 0, "final"),
        ("model.embed_tokens.weight", 3000 * 128, "logits_raw"),  # a token that is not in the prompt
        ("model.embed_tokens.weight", 2 * 128, "embed"),  # <bos>
    ],
)
def test_weights_with_nan_are_said_to_be_damaged(name: str, at: int, where: str) -> None:
    model = damaged(name, at)
    reads: list[Callable[[], Any]] = [
        lambda: gs.trace(P, model=model).top(1),
        lambda: gs.trace(P, model=model).logits,
        lambda: gs.generate(P, model=model, max_new_tokens=2),
        lambda: gs.generate(P, model=model, max_new_tokens=2, temperature=0.5),
        lambda: gs.trace(P, model=model, edits=[gs.ablate("z", layer=4)]).top(1),
        lambda: gs.trace(P, model=model, edits=[gs.scale("z", 0.5, layer=4)]).top(1),
        lambda: model.run(P),
    ]
    for read in reads:
        with pytest.raises(CheckpointError, match=r"weights are damaged.*check=True") as error:
            read()
        assert where in str(error.value)


def test_a_tap_that_gives_nan_is_named_with_its_site() -> None:
    def tap(site: str, layer: int | None, value: torch.Tensor) -> torch.Tensor:
        return value * torch.nan if (site, layer) == ("mlp_in", 3) else value

    with pytest.raises(TapError, match="'mlp_in' of layer 3"):
        gs.load().run(P, tap=tap)


def test_a_sweep_over_a_run_without_numbers_is_refused() -> None:
    model = damaged("model.layers.2.mlp.down_proj.weight", 5)
    with pytest.raises(gs.GemmascopeError, match="NaN"):
        gs.sweep(P, None, lambda x: x[:, 0], site="z", by=("layer",), ablate=0.0, model=model, progress=False)
