"""The table of sites, and the names by which a user may refer to one."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from checkpoints import checkpoint, every_site, model_of, prompt
from hypothesis import given, settings
from hypothesis import strategies as st

from gemmascope.errors import GemmascopeError, SiteError
from gemmascope.sites import EDGE_SITES, LAYER_SITES, SITES, Address, Site, find, find_layer, find_site, near_names

AXES = {"pos", "q_pos", "k_pos", "head", "kv_head", "d_head", "d_model", "d_mlp", "vocab"}
OUTSIDE = ("embed", "final", "logits_raw", "logits")

# Names of TransformerLens, as in notebooks of its users, and our site of the same value.
HOOKS = {
    "hook_resid_pre": "resid_pre", "hook_resid_mid": "resid_mid", "hook_mlp_in": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out", "hook_mlp_out": "mlp_out", "attn.hook_q": "q", "attn.hook_k": "k", "attn.hook_v": "v",
    "attn.hook_rot_q": "q_rot", "attn.hook_rot_k": "k_rot", "attn.hook_z": "z", "attn.hook_pattern": "pattern",
    "mlp.hook_pre": "mlp_gate", "mlp.hook_pre_linear": "mlp_up", "mlp.hook_post": "mlp_act",
}  # fmt: skip
OTHER_NUMBERS = {
    "attn.hook_attn_scores": "'scores'", "attn.hook_result": "'head_out'", "ln1.hook_normalized": "'attn_in'",
    "ln2.hook_normalized": "'mlp_in'", "hook_attn_in": "'resid_pre'",
}  # fmt: skip


def test_every_site_of_the_table_has_known_axes() -> None:
    assert len(SITES) == 26
    assert all(name == site.name and set(site.axes) <= AXES and site.meaning for name, site in SITES.items())
    assert tuple(name for name, site in SITES.items() if not site.in_layer) == OUTSIDE
    assert EDGE_SITES == ("scores", "scores_capped", "pattern")
    assert {*LAYER_SITES, *OUTSIDE} == set(SITES)
    assert {name for name, site in SITES.items() if site.heads == "kv_head"} == {"k", "v", "k_rot"}
    by_head = {"q", "q_rot", "scores", "scores_capped", "pattern", "z", "head_out"}
    assert {name for name, site in SITES.items() if site.heads == "head"} == by_head


def test_a_site_has_the_shape_that_its_axes_say() -> None:
    model = model_of(checkpoint("lg"))
    for (site, _), value in every_site(model, prompt(7)).items():
        assert value.shape == tuple(model.config.size_of(axis, 7) for axis in SITES[site].axes)


@pytest.mark.parametrize("site", LAYER_SITES)
def test_every_spelling_of_a_site_in_the_layers_is_accepted(site: str) -> None:
    expected = Address(SITES[site], 5)
    spellings = [(site, 5), f"layers.5.{site}", f"blocks.5.{site}", (site, -3), f"layers.-3.{site}", (site, np.int64(5))]
    assert [find(spelling, 8) for spelling in spellings] == [expected] * len(spellings)
    assert find(site, 8, layer=5) == find(site, 8, -3) == find(f"layers.5.{site}", 8, 5) == expected
    assert find(str(expected), 8) == expected
    assert find_site(site) is find_site(SITES[site]) is SITES[site]


@pytest.mark.parametrize("site", OUTSIDE)
def test_a_site_outside_the_layers_has_none(site: str) -> None:
    assert find(site, 8) == find((site, None), 8) == find(str(find(site, 8)), 8) == Address(SITES[site], None)
    for key in ((site, 3), f"layers.3.{site}"):
        with pytest.raises(SiteError, match=f"'{site}' is outside the layers: ask for it without one; given layer 3"):
            find(key, 8)


@pytest.mark.parametrize(("hook", "site"), HOOKS.items())
def test_a_name_from_transformer_lens_is_accepted(hook: str, site: str) -> None:
    assert find(f"blocks.5.{hook}", 8) == find((hook, 5), 8) == find((f"blocks.5.{hook}", 5), 8) == Address(SITES[site], 5)
    assert site in HOOKS.values()


def test_the_embedding_by_its_name_in_transformer_lens() -> None:
    assert find("hook_embed", 8) == Address(SITES["embed"], None)
    assert {site.hook for site in SITES.values() if site.hook} == {*HOOKS, "hook_embed"} - {"hook_mlp_in"}


@pytest.mark.parametrize(("hook", "site"), OTHER_NUMBERS.items())
def test_a_name_that_means_another_number_there_is_refused(hook: str, site: str) -> None:
    with pytest.raises(SiteError, match=f"TransformerLens' '{hook}'.*{site}"):
        find(f"blocks.5.{hook}", 8)


def test_the_last_norm_by_its_name_in_transformer_lens_is_refused() -> None:
    with pytest.raises(SiteError, match="is before the norm's gain there; 'final' is after it"):
        find("ln_final.hook_normalized", 8)


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        ("patern", "pattern"), ("resid", "resid_pre"), ("residpost", "resid_post"), ("attn_pattern", "pattern"),
        ("logit", "logits"), ("mlp_post", "mlp_out"), ("hook_patern", "pattern"), ("Z", "z"), ("Pattern", "pattern"),
        ("neurons", None), ("", None),
    ],
)  # fmt: skip
def test_an_unknown_name_is_an_error_with_the_near_ones(typed: str, near: str | None) -> None:
    for key in (typed, (typed, 5), f"blocks.5.{typed}") if typed else (typed,):
        with pytest.raises(SiteError, match=r"there is no site .* The sites are: embed, resid_pre, .*, logits$") as caught:
            find(key, 8)
        message = str(caught.value)
        assert repr(typed) in message
        if near:
            assert "Did you mean" in message
            assert repr(near) in message.split("The sites are")[0]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("pattern", r"'pattern' is in every layer: say which, from 0 to 7 \(or from -1 to -8, counted from the end\)"),
        (("pattern", None), "'pattern' is in every layer: say which"),
        (("pattern", 8), r"there is no layer 8: layers go from 0 to 7 \(or from -1 to -8"),
        (("pattern", -9), "there is no layer -9"),
        ("layers.8.pattern", "there is no layer 8"),
        (("pattern", 1.0), "a layer is a whole number, from 0 to 7 .*; given 1.0"),
        (("pattern", True), "a layer is a whole number, from 0 to 7 .*; given True"),
        (("pattern", "5"), "a layer is a whole number, from 0 to 7 .*; given '5'"),
        (("pattern", 5, 1), r"looked up as \('site', layer\), such as \('pattern', 5\); given \('pattern', 5, 1\)"),
        (("pattern",), r"looked up as \('site', layer\)"),
        (("layers.5.pattern", 3), "'layers.5.pattern' names layer 5, and layer 3 was given as well"),
        (5, "there is no site 5"),
        (None, "there is no site None"),
        ("layers.x.pattern", "there is no site 'layers.x.pattern'"),
        ("layers.5.", "there is no site 'layers.5.'"),
    ],
)  # fmt: skip
def test_a_value_that_is_no_site_or_layer_is_refused(key: object, message: str) -> None:
    with pytest.raises(SiteError, match=message):
        find(key, 8)


def test_a_layer_counted_from_the_end_may_stand_beside_its_number() -> None:
    assert find(("layers.-1.pattern", 7), 8) == find(("layers.7.pattern", -1), 8) == Address(SITES["pattern"], 7)


def test_a_site_error_is_caught_as_ours_and_as_a_look_up() -> None:
    assert issubclass(SiteError, GemmascopeError)
    assert issubclass(SiteError, LookupError)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.one_of(st.text(max_size=30), st.tuples(st.sampled_from(list(SITES)), st.integers()), st.integers(), st.none()))
def test_look_up_answers_or_refuses_by_its_own_error(key: Any) -> None:
    with contextlib.suppress(SiteError):
        address = find(key, 8)
        assert isinstance(address.site, Site)
        assert find(str(address), 8) == address


@settings(derandomize=True)
@given(st.integers(1, 60), st.integers(-80, 80))
def test_layers_count_from_both_ends(n_layers: int, layer: int) -> None:
    if -n_layers <= layer < n_layers:
        assert find_layer(layer, n_layers) == range(n_layers)[layer]
    else:
        with pytest.raises(SiteError, match=f"there is no layer {layer}"):
            find_layer(layer, n_layers)


def test_near_names_are_few_and_the_nearest_first() -> None:
    assert near_names("resid_pst", list(SITES))[0] == "resid_post"
    assert len(near_names("mlp", list(SITES))) == 3
    assert near_names("qqqqqq", list(SITES)) == []
