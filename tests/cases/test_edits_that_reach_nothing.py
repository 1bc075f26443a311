"""Edits that cannot change anything: an error if that must be a mistake, a warning if it may be intended."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

import gemmascope as gs
from gemmascope.edits.edit import Edit
from gemmascope.errors import EditError, GemmascopeWarning

P = "Mary went to the store. " * 6
N_POS = 38
EDGES = ("scores", "scores_capped", "pattern")
# In nano layer 0 is local, with a window of 16, and layer 1 global.
HIDDEN = [
    {"layer": 0, "q_pos": -1, "k_pos": 1},  # outside the window
    {"layer": 0, "q_pos": 30, "k_pos": 14},  # just outside it
    {"layer": 0, "q_pos": [20, 30], "k_pos": slice(0, 5)},
    {"layer": 1, "q_pos": 3, "k_pos": 7},  # a key after its query
    {"layer": 1, "head": 2, "q_pos": slice(0, 4), "k_pos": [4, 5]},
]


def effect(edits: list[Edit]) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("error", GemmascopeWarning)
        return float((gs.trace(P, edits=edits).logits - gs.trace(P).logits).abs().max())


def makers(site: str) -> dict[str, Callable[..., Edit]]:
    """Edits that would have an effect if the mask did not hide their edges."""
    weightless: dict[str, Callable[..., Edit]] = {
        "scale": lambda **at: gs.scale(site, 3.0, **at),
        "ablate": lambda **at: gs.ablate(site, value=0.0 if site == "pattern" else 40.0, **at),
        "function": lambda **at: gs.edit(site, lambda x: x * 3, **at),
        "patch": lambda **at: gs.patch(site, gs.trace(P), **at),
    }
    if site != "pattern":
        weightless["add"] = lambda **at: gs.add(site, torch.tensor(40.0), **at)
    return weightless


@pytest.mark.parametrize("places", HIDDEN, ids=str)
@pytest.mark.parametrize(("site", "kind"), [(site, kind) for site in EDGES for kind in makers(site)])
def test_an_edit_of_edges_that_the_mask_hides_is_refused(site: str, kind: str, places: dict[str, Any]) -> None:
    with pytest.raises(EditError, match="reaches nothing"):
        gs.trace(P, edits=[makers(site)[kind](**places)])


@pytest.mark.parametrize("places", HIDDEN, ids=str)
def test_a_knockout_of_edges_that_the_mask_hides_is_refused(places: dict[str, Any]) -> None:
    with pytest.raises(EditError, match=r"sees keys q-15 to q" if places["layer"] == 0 else r"sees keys 0 to q"):
        gs.trace(P, edits=[gs.knockout(**places)])
    with pytest.raises(EditError, match="reaches nothing"):
        gs.generate(P, edits=[gs.knockout(**places)], max_new_tokens=2)
    with pytest.raises(EditError, match="reaches nothing"):
        gs.sweep(P, None, lambda x: x[:, 0], site="z", by=("layer",), ablate=0.0, edits=[gs.knockout(**places)])


@pytest.mark.parametrize(
    "edit",
    [
        gs.ablate("pattern", layer=0, q_pos=-1, k_pos=1, value=0.5),
        gs.add("pattern", torch.tensor(0.5), layer=1, q_pos=3, k_pos=7),
        gs.patch("pattern", torch.tensor(0.5), layer=0, q_pos=-1, k_pos=1),
        gs.edit("pattern", lambda x: x + 0.5, layer=0, q_pos=-1, k_pos=1),
    ],
    ids=lambda edit: type(edit).__name__,
)
def test_a_weight_that_is_put_on_a_hidden_edge_of_the_pattern_is_read(edit: Edit) -> None:
    assert effect([edit]) > 1e-3


def test_hidden_edges_among_visible_ones_are_accepted() -> None:
    one = effect([gs.knockout(layer=0, q_pos=-1, k_pos=30)])
    assert one > 1e-4
    assert effect([gs.knockout(layer=0, q_pos=slice(30, None), k_pos=slice(10, 20))]) > 1e-4
    with pytest.warns(GemmascopeWarning, match=r"reaches nothing at k_pos=\[1\]"):
        some = gs.trace(P, edits=[gs.knockout(layer=0, q_pos=-1, k_pos=[1, 30])])
    assert float((some.logits - gs.trace(P).logits).abs().max()) == one


def test_a_query_named_by_its_number_without_any_edge_is_a_warning() -> None:
    with pytest.warns(GemmascopeWarning, match=r"reaches nothing at q_pos=\[3\].* sees keys 0 to q"):
        gs.trace(P, edits=[gs.knockout(layer=1, q_pos=[3, 10], k_pos=7)])


def test_a_sweep_over_hidden_edges_has_no_number_there() -> None:
    prompt = P.rstrip()  # a sweep warns of a prompt that ends in a space
    n_pos = len(gs.trace(prompt))
    effect = gs.sweep(
        prompt,
        None,
        lambda x: x[:, 0],
        site="pattern",
        by=("k_pos",),
        layer=0,
        q_pos=-1,
        ablate=0.0,
        progress=False,
    ).effect
    assert bool(effect.sel(k_pos=slice(0, n_pos - 17)).isnull().all())
    assert bool(effect.sel(k_pos=slice(n_pos - 16, None)).notnull().all())


@pytest.mark.parametrize(
    "edits",
    [
        [gs.scale("z", 0.5, layer=1, head=2), gs.ablate("z", layer=1)],
        [
            gs.add("resid_post", torch.ones(128), layer=2, pos=3),
            gs.patch("resid_post", torch.zeros(128), layer=2, pos=[3, 4]),
        ],
        [gs.ablate("scores_capped", layer=1, q_pos=9, k_pos=3), gs.knockout(layer=1, q_pos=9, k_pos=[2, 3])],
        [gs.edit("embed", lambda x: x * 2), gs.ablate("embed")],
    ],
    ids=str,
)
def test_an_edit_that_a_later_one_overwrites_is_a_warning(edits: list[Edit]) -> None:
    with pytest.warns(GemmascopeWarning, match="has no effect: .* later in the list, overwrites all of it"):
        gs.trace(P, edits=edits)
    assert effect(edits[::-1]) != 0  # the other way round both count
    with pytest.warns(GemmascopeWarning, match="has no effect"):
        gs.generate(P, edits=edits, max_new_tokens=1)


@pytest.mark.parametrize(
    "edits",
    [
        [gs.scale("z", 0.5, layer=1), gs.ablate("z", layer=1, head=2)],
        [gs.ablate("z", layer=1), gs.ablate("z", layer=2)],
        [gs.ablate("z", layer=1, head=0), gs.add("z", torch.ones(32), layer=1, head=0)],
        [gs.add("resid_post", torch.zeros(128), layer=2)],  # the baseline of a loop over strengths
        [gs.scale("resid_post", 1.0, layer=2)],
    ],
    ids=str,
)
def test_edits_with_an_effect_and_baselines_give_no_warning(edits: list[Edit]) -> None:
    effect(edits)


def test_a_run_that_is_patched_into_itself_is_a_warning() -> None:
    with pytest.warns(GemmascopeWarning, match="patches a run into itself, which changes nothing"):
        gs.trace(P, edits=[gs.patch("z", gs.trace(P), layer=1)])
    effect([gs.patch("z", gs.trace(P), layer=1), gs.ablate("z", layer=3)])  # frozen beside another edit: not nothing


COMING = [
    (gs.add("resid_post", torch.ones(128), layer=2, pos=45), r"was never made.* ended with 40 positions, 0 to 39"),
    (gs.ablate("z", layer=1, pos=slice(42, 50)), "was never made"),
    (gs.knockout(layer=1, q_pos=44, k_pos=3), "was never made"),
    (gs.ablate("z", layer=1, pos=[3, 45]), r"was not made at pos=\[45\]"),
    (gs.knockout(layer=1, q_pos=[30, 44], k_pos=3), r"was not made at q_pos=\[44\]"),
]


@pytest.mark.parametrize(("edit", "message"), COMING, ids=[str(edit) for edit, _ in COMING])
def test_an_edit_at_a_position_that_was_not_generated_is_warned_about(edit: Edit, message: str) -> None:
    ids = gs.trace(P).ids
    end = int(gs.generate(ids, max_new_tokens=2).new_ids[-1])
    with pytest.warns(GemmascopeWarning, match=message):
        generation = gs.generate(ids, edits=[edit], max_new_tokens=16, stop=end)
    assert len(generation.ids) <= 41


@pytest.mark.parametrize(
    "edit",
    [gs.ablate("z", layer=1), gs.ablate("z", layer=1, pos=slice(30, None)), gs.ablate("z", layer=1, pos=[0, -1])],
    ids=str,
)
def test_an_edit_of_open_ended_positions_gives_no_warning(edit: Edit) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", GemmascopeWarning)
        gs.generate(P, edits=[edit], max_new_tokens=3)
