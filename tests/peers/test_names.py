"""Every name of TransformerLens' cache: what holds a number of ours is read by that name, and the rest says why not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checkpoints import prompt
from reference import error
from transformer_lens_bridge import cache_of, side_by_side, side_by_side_3, unbatched

import gemmascope as gs
from gemmascope.errors import SiteError
from gemmascope.hook_names import AFTER_THE_LAYERS, OTHER_VALUE, SITE_OF_HOOK
from gemmascope.model.model import Model

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs

CLOSE = 1e-5
IDS = prompt(11)
SHAPES: list[dict[str, Any]] = [
    {},  # a window of 4, 8 heads over 4
    {"kinds": "gll", "seed": 1, "num_key_value_heads": 2, "sliding_window": 3},
    {"kinds": "lg", "seed": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "sliding_window": 7},
]
# The names of one layer and of what is outside the layers that TransformerLens 4.3 has for Gemma 2, and those of them that
# hold a number of ours.
N_NAMES, N_READ = 67, 56

SHORT = [
    ("attn", 1), ("pattern", 0), ("post", 1), ("pre", -1), ("pre_linear", 0), ("key", 1), ("query", 1), ("value", 0),
    ("z", 1), ("rot_k", 1), ("rot_q", 0), ("mlp_post", 1), ("mlp_pre", 0), ("k", 1, "attn"), ("q", 1, "a"), ("resid_pre", 1),
    ("resid_mid", 1), ("resid_post", -1), ("attn_out", 1), ("mlp_out", 0), ("scale", 1, "ln1"), ("scale", 0, "ln2_post"),
    ("in", 1, "mlp"), ("out", 1, "attn"), "k1", "pre0", "attn1", "scale1ln2", "embed", "scale",
]  # fmt: skip


def local(name: str) -> str:
    """A name without its layer."""
    return name.split(".", 2)[2] if name.startswith("blocks.") else name


@pytest.fixture(params=range(len(SHAPES)))
def both(request: pytest.FixtureRequest) -> tuple[Any, gs.Trace]:
    """Their cache and our trace of one prompt."""
    bridge, model = side_by_side(**SHAPES[request.param])
    return cache_of(bridge, IDS), gs.trace(IDS, model=model)


def test_every_name_of_a_cache_is_read_or_refused_with_the_reason(both: tuple[Any, gs.Trace]) -> None:
    theirs, t = both
    names = [name for name in theirs.cache_dict if not name.startswith("blocks.") or name.startswith("blocks.1.")]
    assert len(names) >= N_NAMES
    n_read = 0
    for name in theirs.cache_dict:
        if local(name) in OTHER_VALUE:
            with pytest.raises(SiteError, match=f"TransformerLens' '{local(name)}'"):
                t[name]
            continue
        n_read += name in names
        ours = t[name]
        assert error(ours, unbatched(theirs.cache_dict[name], ours)) <= CLOSE, name
    assert n_read == N_READ


def test_a_short_form_reads_what_it_reads_in_their_cache(both: tuple[Any, gs.Trace]) -> None:
    theirs, t = both
    for key in SHORT:
        ours = t[key]
        assert error(ours, unbatched(theirs[key], ours)) <= CLOSE, key


def test_every_hook_of_a_bridge_is_known() -> None:
    bridge, _ = side_by_side()
    known = {*SITE_OF_HOOK, *OTHER_VALUE, AFTER_THE_LAYERS}
    hooks = {local(name) for name in bridge.hook_dict} | {local(name) for name in gemma_3()[0].hook_dict}
    assert hooks <= known
    assert {*SITE_OF_HOOK, AFTER_THE_LAYERS} <= hooks


def gemma_3() -> tuple[Any, Model]:
    return side_by_side_3("lllllg", factor=8.0)


def test_every_name_of_a_gemma_3_is_read_or_refused_with_the_reason() -> None:
    bridge, model = gemma_3()
    theirs, t = cache_of(bridge, IDS).cache_dict, gs.trace(IDS, model=model)
    read = [name for name in theirs if local(name) not in OTHER_VALUE]
    assert len([name for name in read if "blocks.5." in name or "." not in name]) > 45
    for name in theirs:
        if name not in read:
            with pytest.raises(SiteError, match=f"TransformerLens' '{local(name)}'"):
                t[name]
            continue
        ours = t[name]
        value = theirs[name].transpose(1, 2) if "_norm" in name else theirs[name]  # heads come first there
        assert error(ours, unbatched(value, ours)) <= CLOSE, name


def test_their_masked_scores_are_the_capped_ones_where_a_query_sees_the_key(both: tuple[Any, gs.Trace]) -> None:
    theirs, t = both
    for layer in range(t.model.n_layers):
        masked, ours = theirs["attn_scores", layer][0], t["scores_capped", layer]
        seen = t["pattern", layer] > 0
        assert error(ours[seen], masked[seen]) <= CLOSE
        assert (masked[~seen] < -1e30).all()


def test_a_norm_divides_by_the_scale_there_and_here(both: tuple[Any, gs.Trace]) -> None:
    theirs, t = both
    norms = [
        ("ln1", "attn_in_scale"),
        ("ln1_post", "attn_out_scale"),
        ("ln2", "mlp_in_scale"),
        ("ln2_post", "mlp_out_scale"),
    ]
    for layer in range(t.model.n_layers):
        for norm, site in norms:
            divided = theirs[f"blocks.{layer}.{norm}.hook_in"][0] / t[site, layer][:, None]
            assert error(divided, theirs[f"blocks.{layer}.{norm}.hook_normalized"][0]) <= CLOSE


def test_a_frozen_scale_is_a_hook_at_theirs() -> None:
    """A run that keeps the scales of another, by edits here and by hooks at every hook_scale there."""
    bridge, model = side_by_side()
    other = prompt(11, seed=1)
    kept = cache_of(bridge, other)
    scales = [name for name in kept.cache_dict if name.endswith("hook_scale")]
    hooks = [(name, lambda value, hook: kept.cache_dict[hook.name]) for name in scales]
    with torch.no_grad():
        theirs = bridge.run_with_hooks(torch.tensor([IDS]), fwd_hooks=hooks)[0]
    source = gs.trace(other, model=model)
    ours = gs.trace(IDS, model=model, edits=[gs.patch(name, source) for name in scales]).logits
    assert error(ours, theirs) <= CLOSE
    assert error(gs.trace(IDS, model=model).logits, theirs) > 1e-2
