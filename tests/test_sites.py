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
from gemmascope.hook_names import SITE_OF_HOOK
from gemmascope.sites import (
    EDGE_SITES,
    LAYER_SITES,
    SCALE_SITES,
    SITES,
    Address,
    Site,
    find,
    find_layer,
    find_site,
    near_names,
)

AXES = {"pos", "q_pos", "k_pos", "head", "kv_head", "d_head", "d_model", "d_mlp", "vocab"}
OUTSIDE = ("embed", "final_scale", "final", "logits_raw", "logits")

# Names of TransformerLens, as in notebooks of its users, and our site of the same value.
HOOKS = {
    "hook_resid_pre": "resid_pre", "hook_resid_mid": "resid_mid", "hook_mlp_in": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out", "hook_mlp_out": "mlp_out", "attn.hook_q": "q_raw", "attn.hook_k": "k_raw",
    "attn.hook_v": "v", "attn.hook_q_normed": "q", "attn.k_norm.hook_out": "k", "attn.q_norm.hook_in": "q_raw",
    "attn.hook_rot_q": "q_rot", "attn.hook_rot_k": "k_rot", "attn.hook_z": "z", "attn.hook_pattern": "pattern",
    "mlp.hook_pre": "mlp_gate", "mlp.hook_pre_linear": "mlp_up", "mlp.hook_post": "mlp_act",
    "hook_in": "resid_pre", "ln1.hook_out": "attn_in", "attn.q.hook_in": "attn_in", "attn.k.hook_out": "k_raw",
    "attn.o.hook_in": "z", "attn.hook_out": "attn_raw", "ln1_post.hook_in": "attn_raw", "ln1_post.hook_out": "attn_out",
    "mlp.hook_in": "mlp_in", "mlp.gate.hook_out": "mlp_gate", "mlp.in.hook_out": "mlp_up", "mlp.out.hook_in": "mlp_act",
    "mlp.hook_out": "mlp_raw", "ln2_post.hook_scale": "mlp_out_scale", "hook_out": "resid_post",
}  # fmt: skip
OUTSIDE_HOOKS = {
    "hook_embed": "embed", "embed.hook_out": "embed", "ln_final.hook_scale": "final_scale", "ln_final.hook_out": "final",
    "unembed.hook_in": "final", "unembed.hook_out": "logits_raw", "hook_unembed": "logits_raw", "scale": "final_scale",
}  # fmt: skip
# The short forms of ActivationCache, and our key of the same value.
SHORT = {
    ("attn", 5): "pattern", ("post", 5): "mlp_act", ("pre", -3): "mlp_gate", ("pre_linear", 5): "mlp_up",
    ("key", 5): "k_raw", ("query", 5): "q_raw", ("value", 5): "v", ("rot_q", 5): "q_rot", ("mlp_post", 5): "mlp_act",
    ("k", 5, "attn"): "k_raw",
    ("k", 5, "a"): "k_raw", ("resid_pre", 5, "b"): "resid_pre", ("scale", 5, "ln1"): "attn_in_scale",
    ("scale", -3, "ln2_post"): "mlp_out_scale", ("out", 5, "mlp"): "mlp_raw", ("in", 5, "attn.o"): "z",
    "k5": "k_raw", "pre5": "mlp_gate", "attn5": "pattern", "scale5ln2": "mlp_in_scale",
    ("mlp_in", 5): "mlp_in", ("attn_in", 5): "attn_in",  # ours, where both have the name
}  # fmt: skip
OTHER_NUMBERS = {
    "attn.hook_attn_scores": "'scores_capped'", "attn.hook_result": "'head_out'", "ln1.hook_normalized": "'attn_in'",
    "ln2.hook_normalized": "'mlp_in'", "hook_attn_in": "'resid_pre'", "hook_q_input": "'resid_pre'",
    "ln2_post.hook_normalized": "'mlp_out'", "attn.hook_cos": "'q_rot'", "attn.q_norm.hook_normalized": "'q'",
    "attn.k_norm.hook_scale": "'k_raw'",
}  # fmt: skip


def test_every_site_of_the_table_has_known_axes() -> None:
    assert len(SITES) == 33
    assert all(name == site.name and set(site.axes) <= AXES and site.meaning for name, site in SITES.items())
    assert tuple(name for name, site in SITES.items() if not site.in_layer) == OUTSIDE
    assert EDGE_SITES == ("scores", "scores_capped", "pattern")
    assert {*LAYER_SITES, *OUTSIDE} == set(SITES)
    assert SCALE_SITES == ("attn_in_scale", "attn_out_scale", "mlp_in_scale", "mlp_out_scale", "final_scale")
    assert {name for name, site in SITES.items() if site.heads == "kv_head"} == {"k_raw", "k", "v", "k_rot"}
    by_head = {"q_raw", "q", "q_rot", "scores", "scores_capped", "pattern", "z", "head_out"}
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


@pytest.mark.parametrize(("hook", "site"), OUTSIDE_HOOKS.items())
def test_a_site_outside_the_layers_by_its_name_in_transformer_lens(hook: str, site: str) -> None:
    assert find(hook, 8) == find((hook, None), 8) == Address(SITES[site], None)


def test_what_enters_the_last_norm_is_what_leaves_the_last_layer() -> None:
    assert find("ln_final.hook_in", 8) == find("ln_final.hook_in", 8, -1) == Address(SITES["resid_post"], 7)


@pytest.mark.parametrize(("key", "site"), SHORT.items())
def test_the_short_forms_of_a_cache_are_accepted(key: object, site: str) -> None:
    assert find(key, 8) == Address(SITES[site], 5)


def test_the_table_names_a_hook_of_the_site_itself() -> None:
    assert all(SITE_OF_HOOK[site.hook] == name for name, site in SITES.items() if site.hook)
    without = {"scores", "scores_capped", "head_out", "logits"}
    assert {name for name, site in SITES.items() if not site.hook} == without
    assert {*SITE_OF_HOOK.values()} == {name for name, site in SITES.items() if site.hook}


@pytest.mark.parametrize("key", [("z", 5, "mlp"), ("scale", 5, "ln3"), "z5ln1", ("hook_in", 5, "attn")])
def test_a_short_form_of_nothing_is_an_error(key: object) -> None:
    with pytest.raises(SiteError, match="there is no site"):
        find(key, 8)


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
        ("logit", "logits"), ("mlp_output", "mlp_out"), ("hook_patern", "pattern"), ("Z", "z"), ("Pattern", "pattern"),
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
