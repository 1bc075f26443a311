"""Sites that a trace keeps are those that it would compute again, bit for bit; a site of all layers comes from one pass."""

from __future__ import annotations

import copy
import gc
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint, model, prompt
from reference import error

import gemmascope as gs
from gemmascope.errors import BudgetError, SiteError, TraceError
from gemmascope.memory import placement
from gemmascope.model.maths import visible
from gemmascope.run import save
from gemmascope.run.reading import keep, layer_cache
from gemmascope.run.reading.layer_cache import LayerCache
from gemmascope.sites import EDGE_SITES, LAYER_SITES, SCALE_SITES, SITES

EDITS = [
    gs.ablate("z", layer=0, head=1),
    gs.scale("resid_pre", 0.5, layer=1, pos=3),
    gs.scale("head_out", 2.0, layer=1, head=2),
    gs.knockout(layer=2, head=0, q_pos=-1, k_pos=[-1]),
    gs.scale("attn_out_scale", 2.0, layer=0, pos=1),
    gs.scale("logits_raw", 0.5),
]
LENGTHS = (9, 4, 9, 1)
CLOSE = 1e-6
NINE = ["resid_pre", "q", "k", "v", "pattern", "z", "attn_out", "mlp_act", "mlp_out"]


def traced(ids: Any, **arguments: Any) -> Any:
    return gs.trace(ids, model=model("lgl"), **arguments)


def bare(ids: Any, **arguments: Any) -> Any:
    """A trace of which nothing is cached."""
    t = traced(ids, **arguments)
    for layer in range(t.model.n_layers):
        t.layer_cache.drop(layer)
    return t


def streamed(folder: Path) -> Any:
    checkpoint("lgl").save_pretrained(folder)
    return gs.load(folder, memory="1GiB")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The layers that run."""
    from gemmascope.model.gemma2 import Layer

    numbers: list[int] = []
    forward = Layer.forward
    monkeypatch.setattr(Layer, "forward", lambda self, *args: (numbers.append(self.index), forward(self, *args))[1])
    return numbers


@pytest.mark.parametrize("edits", [(), EDITS], ids=["plain", "edited"])
def test_what_is_kept_is_what_a_layer_that_runs_again_gives(edits: Any, runs: list[int]) -> None:
    t, again = traced(prompt(9), edits=edits, keep=list(SITES)), traced(prompt(9), edits=edits)
    assert all(torch.equal(a, b) for a, b in zip(t.stream, again.stream, strict=True))
    runs.clear()
    values = {key: t[key] for key in t.kept}
    assert runs == []  # kept values need no layer
    assert {site for site, _ in values} == set(SITES) - {"embed", "resid_post"} - (set() if edits else {"resid_pre"})
    for key, value in values.items():
        assert torch.equal(value, again[key]), key


def test_each_of_several_prompts_keeps_its_own() -> None:
    prompts = [prompt(n, seed=n) for n in LENGTHS]
    for t, ids in zip(traced(prompts, keep=NINE, edits=[gs.scale("v", 0.5, layer=1)]), prompts, strict=True):
        alone = traced(ids, edits=[gs.scale("v", 0.5, layer=1)])
        for site in NINE:
            for layer in range(3):
                assert torch.equal(t[site, layer], alone[site, layer]), (site, layer)
        without = copy.copy(t)
        without.kept_values = {}
        assert all(torch.equal(without[key], t[key]) for key in t.kept)


def test_a_long_prompt_keeps_patterns_and_the_bits_of_the_run() -> None:
    """Attention goes in chunks there, which the scores that are looked at would not."""
    long, ids = model("lg", max_position_embeddings=600), prompt(530)
    t, again = gs.trace(ids, model=long, keep=["pattern", "mlp_out"]), gs.trace(ids, model=long)
    assert all(torch.equal(a, b) for a, b in zip(t.stream, again.stream, strict=True))
    assert torch.equal(t["pattern", 1], again["pattern", 1])
    assert torch.equal(t["mlp_out", 1], again["mlp_out", 1])
    for trace in (t, again):
        for layer in range(2):
            hidden = ~visible(torch.arange(530), torch.arange(530), long.config.window_of(layer))
            wanted = trace["scores_capped", layer].masked_fill(hidden, -torch.inf).softmax(-1)  # whole, and no chunks
            assert error(trace["pattern", layer], wanted) <= CLOSE
            assert not trace["pattern", layer][:, hidden].any()


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        ("z", {("z", 0), ("z", 1), ("z", 2)}), (("z", -1), {("z", 2)}), (["layers.1.z", ("q", 0)], {("z", 1), ("q", 0)}),
        (["attn.hook_pattern"], {("pattern", n) for n in range(3)}), (["blocks.1.mlp.out.hook_in"], {("mlp_act", 1)}),
        ([("post", 1), ("k", 0, "attn"), "z", ("z", 1)], {("mlp_act", 1), ("k_raw", 0), *(("z", n) for n in range(3))}),
        (["logits", "final"], {("logits", None), ("final", None)}), (["embed", "resid_post"], set()), ([], set()),
    ],
)  # fmt: skip
def test_sites_to_keep_are_named_as_those_to_read(keep: Any, kept: set[Any]) -> None:
    t = traced(prompt(5), keep=keep)
    assert set(t.kept) == kept
    assert all(torch.equal(t[key], traced(prompt(5))[key]) for key in kept)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (["patern"], "there is no site 'patern'. Did you mean 'pattern'"),
        ([("z", 3)], "there is no layer 3: layers go from 0 to 2"),
        (["layers.7.z"], "there is no layer 7"),
        (["attn.hook_result"], "'attn.hook_result' leaves out Gemma 2's post-norm"),
        ([("final", 1)], "'final' is outside the layers"),
        (5, r"keep is a list of sites, such as \['pattern', \('z', 5\)\]; given 5"),
        ([5], "there is no site 5"),
        (None, "keep is a list of sites"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_anything_runs(keep: Any, message: str, layers_read: list[int]) -> None:
    with pytest.raises(SiteError, match=message):
        traced(prompt(5), keep=keep)
    assert layers_read == []


def test_sites_that_do_not_fit_are_refused_with_the_bytes(monkeypatch: pytest.MonkeyPatch, layers_read: list[int]) -> None:
    n_bytes = 3 * (8 * 9 * 9 + 8 * 4 * 4) * 4 + (9 + 4) * 4
    monkeypatch.setattr(placement, "free_bytes", lambda device: n_bytes - 1)
    with pytest.raises(
        BudgetError, match=rf"keep= of pattern, final_scale.* would take {n_bytes:,} bytes, and {n_bytes - 1:,}"
    ):
        traced([prompt(9), prompt(4)], keep=["pattern", "final_scale"])
    assert layers_read == []
    monkeypatch.setattr(placement, "free_bytes", lambda device: n_bytes)
    assert len(traced([prompt(9), prompt(4)], keep=["pattern", "final_scale"])) == 2


def test_writing_to_a_kept_value_changes_no_later_read() -> None:
    t = traced(prompt(5), keep=["z"])
    before = t["z", 1]
    t["z", 1].zero_()
    assert torch.equal(t["z", 1], before)


# -- copies and files --


@pytest.mark.parametrize("way", ["saved", "pickled", "copied", "deepcopied"])
def test_a_copy_of_a_trace_keeps_what_it_kept(way: str, tmp_path: Path, layers_read: list[int]) -> None:
    t = traced(prompt(9), keep=["pattern", ("z", 1), "logits"], edits=EDITS[:2])
    if way == "saved":
        t.save(tmp_path / "t")
        other = gs.open_trace(tmp_path / "t", model=t.model)
    else:
        ways: dict[str, Any] = {"copied": copy.copy, "deepcopied": copy.deepcopy}
        other = ways.get(way, lambda t: pickle.loads(pickle.dumps(t)))(t)
    layers_read.clear()
    assert set(other.kept) == set(t.kept)
    assert len(t.kept) == 5
    assert all(torch.equal(other[key], t[key]) for key in t.kept)
    assert layers_read == []


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("kept.z.1", torch.zeros(8, 8, 12), r"kept.z.1 is torch.float32 of shape \[8, 8, 12\]; \[9, 8, 12\] is right"),
        ("kept.z.1", torch.zeros(9, 8, 12, dtype=torch.int64), "kept.z.1 is torch.int64"),
        ("kept.z.7", torch.zeros(9, 8, 12), "it kept 'kept.z.7', which is no site: there is no layer 7"),
        ("kept.zz.1", torch.zeros(9, 8, 12), "it kept 'kept.zz.1', which is no site"),
        ("kept.z", torch.zeros(9, 8, 12), "it kept 'kept.z', which is no site: 'z' is in every layer"),
    ],
)
def test_a_file_with_a_kept_value_that_is_none_is_damaged(
    name: str, value: torch.Tensor, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    t = traced(prompt(9))
    t.kept_values = {("z", 1): value}
    monkeypatch.setattr(save, "_kept_name", lambda site, layer: name)
    t.save(tmp_path / "t")
    with pytest.raises(TraceError, match=f"damaged trace: {message}"):
        gs.open_trace(tmp_path / "t", model=t.model)


# -- all layers --


@pytest.mark.parametrize("edits", [(), EDITS], ids=["plain", "edited"])
def test_a_site_without_a_layer_is_that_of_all_layers(edits: Any) -> None:
    t, other = traced(prompt(9), edits=edits), traced(prompt(9), edits=edits)
    for site in LAYER_SITES:
        whole = t[site]
        assert whole.dims == ("layer", *SITES[site].axes)
        assert whole.dtype == np.float32
        assert np.array_equal(whole.values, torch.stack([other[site, layer] for layer in range(3)]).numpy()), site
    pattern = t["attn.hook_pattern"]
    assert pattern.equals(t["pattern"])
    assert pattern.kind.values.tolist() == ["local", "global", "local"]
    assert pattern.q_token.values.tolist() == pattern.k_token.values.tolist() == t.tokens
    assert t["z"].token.values.tolist() == t.tokens


def test_all_layers_come_from_one_stream(tmp_path: Path, layers_read: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    t = gs.trace(prompt(9), model=streamed(tmp_path))
    layers_read.clear()
    first = t["mlp_act"]
    assert layers_read == [0, 1, 2]
    assert t["pattern"].shape == (3, 8, 9, 9)
    assert t["resid_pre"].shape == (*first.shape[:2], 32)
    assert layers_read == [0, 1, 2]  # what the layers made besides was cached
    monkeypatch.setattr("gemmascope.run.reading.all_layers.MAX_CACHED_BYTES", 1000)
    fresh = gs.trace(prompt(9), model=t.model)
    layers_read.clear()
    assert fresh["mlp_act"].equals(first)
    assert fresh.layer_cache.sizes() == []  # three layers would not fit, and each would evict another
    assert layers_read == [0, 1, 2]
    kept = gs.trace(prompt(9), model=t.model, keep=["mlp_act", ("pattern", 0), ("pattern", 2)])
    layers_read.clear()
    assert kept["mlp_act"].equals(first)
    assert layers_read == []
    assert kept["pattern"].equals(t["pattern"])
    assert layers_read == [0, 1]  # layer 1 alone is missing; none after it is read


def test_all_layers_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    t = traced(prompt(9))
    monkeypatch.setattr(placement, "free_bytes", lambda device: 100)
    with pytest.raises(
        BudgetError, match=r"'pattern' of 3 layers would take 7,776 bytes, and 100 are free on cpu: read a layer"
    ):
        t["pattern"]


# -- the cache of layers that ran again --


def test_a_layer_runs_once_for_all_sites_in_either_order(runs: list[int]) -> None:
    by_site, by_layer = bare(prompt(9)), bare(prompt(9))
    runs.clear()
    first = {(site, layer): by_site[site, layer] for site in NINE for layer in range(3)}
    assert sorted(runs) == [0, 1, 2]
    runs.clear()
    second = {(site, layer): by_layer[site, layer] for layer in range(3) for site in reversed(NINE)}
    assert runs == [0, 1, 2]
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("edits", [(), EDITS], ids=["plain", "edited"])
def test_what_a_run_made_anyway_is_read_without_running_a_layer_again(edits: Any, runs: list[int]) -> None:
    t, again = traced(prompt(9), edits=edits), bare(prompt(9), edits=edits)
    made = [(site.name, layer) for site in layer_cache.MADE_ANYWAY for layer in range(3)]
    runs.clear()
    values = {key: t[key] for key in made}
    assert runs == []
    assert all(torch.equal(value, again[key]) for key, value in values.items())


def test_scales_and_edges_are_computed_from_what_is_cached_and_take_no_bytes(runs: list[int]) -> None:
    t, again = traced(prompt(9)), bare(prompt(9))
    sizes = t.layer_cache.sizes()
    runs.clear()
    for site in (*EDGE_SITES, *SCALE_SITES[:4]):
        for layer in range(3):
            value = t[site, layer]
            assert runs == []
            assert torch.equal(value, gs.trace(prompt(9), model=t.model, keep=[(site, layer)])[site, layer])
            assert torch.equal(value, again[site, layer])
            runs.clear()
    assert t.layer_cache.sizes() == sizes


@pytest.mark.parametrize("why", ["too many bytes of a layer", "too many bytes of a run", "little is free", "streamed"])
def test_a_run_caches_nothing_that_would_not_fit(why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert traced(prompt(9)).layer_cache.sizes()
    if why == "streamed":
        assert gs.trace(prompt(9), model=streamed(tmp_path)).layer_cache.sizes() == []
        return
    if why == "little is free":
        monkeypatch.setattr(keep, "UNCHECKED_BYTES", 1000)
        monkeypatch.setattr(keep, "free_bytes", lambda device: 1000)
    else:
        monkeypatch.setattr(keep, "MAX_CACHED_LAYER_BYTES" if why.endswith("layer") else "MAX_CACHED_BYTES", 1000)
    t = traced(prompt(9))
    assert t.layer_cache.sizes() == []
    assert torch.equal(t["z", 1], traced(prompt(9), keep=["z"])["z", 1])


def test_traces_share_a_limit_and_the_layer_read_longest_ago_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    gc.collect()
    a, b = bare(prompt(9)), bare(prompt(9, seed=1))
    a["z", 0]
    size = sum(a.layer_cache.sizes())
    others = sum(sum(cache.sizes()) for cache in list(layer_cache._caches)) - size
    monkeypatch.setattr(layer_cache, "MAX_CACHED_BYTES", others + 3 * size)
    a["z", 1], b["z", 0]
    a["z", 0]  # read again, so that layer 1 is the oldest
    monkeypatch.setattr(layer_cache, "MAX_CACHED_BYTES", 3 * size)
    b["z", 1]
    assert set(a.layer_cache.sizes_by_layer()) == {0}
    assert set(b.layer_cache.sizes_by_layer()) == {0, 1}


def test_a_trace_takes_its_cached_layers_with_it() -> None:
    t = traced(prompt(9))
    t["z", 0]
    cache = t.layer_cache
    assert isinstance(cache, LayerCache)
    assert cache in layer_cache._caches
    n_before = len(layer_cache._caches)
    del cache, t
    gc.collect()
    assert len(layer_cache._caches) < n_before
