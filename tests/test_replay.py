"""Replays give every site of every layer as the trace does, edits included, in one pass over the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import checkpoint, model_of, prompt
from reference import error

import gemmascope as gs
from gemmascope.errors import SiteError
from gemmascope.run.replay import replay
from gemmascope.sites import EDGE_SITES, LAYER_SITES

ROW_SITES = [site for site in LAYER_SITES if site not in EDGE_SITES]
EDITS: list[Any] = [
    gs.ablate("z", layer=0, head=1),
    gs.scale("resid_pre", 0.5, layer=1, pos=3),
    gs.scale("head_out", 2.0, layer=1, head=2),
    gs.knockout(layer=2, head=0, q_pos=-1, k_pos=[-1]),
    gs.ablate("mlp_out", layer=2, pos=[1, 4]),
]


def run(edits: Any = (), length: int = 9) -> gs.Trace:
    trace = gs.trace(prompt(length), model=model_of(checkpoint("lgl")), edits=edits)
    assert isinstance(trace, gs.Trace)
    return trace


@pytest.mark.parametrize("edits", [(), EDITS], ids=["plain", "edited"])
@pytest.mark.parametrize("sites", [ROW_SITES, EDGE_SITES], ids=["rows", "edges"])
@pytest.mark.parametrize("length", [1, 9])
def test_a_replay_gives_the_values_of_the_trace(edits: Any, sites: list[str], length: int) -> None:
    t = run(edits if length > 1 else (), length)
    for number, (layer, values) in enumerate(replay(t, sites)):
        assert layer.index == number
        assert set(values) == set(sites)
        for site in sites:
            ours, oracle = (value.nan_to_num(neginf=-1.0) for value in (values[site], t[site, number]))  # cut edges
            assert error(ours, oracle) <= 1e-5, (site, number)


def test_a_site_of_one_layer_is_replayed_in_that_layer_only() -> None:
    t = run()
    sites_by_layer = [set(values) for _, values in replay(t, ["z", ("pattern", 1), ("head_out", -1)])]
    assert sites_by_layer == [{"z"}, {"z", "pattern"}, {"z", "head_out"}]


def test_layers_are_read_once_and_in_order(layers_read: list[int]) -> None:
    t = run(EDITS)
    layers_read.clear()
    for _ in replay(t, LAYER_SITES):
        pass
    assert layers_read == [0, 1, 2]


def test_a_replay_that_is_left_early_does_not_block_the_stream(tmp_path: Path) -> None:
    checkpoint("lgl").save_pretrained(tmp_path)
    streamed, resident = gs.load(tmp_path, memory="1GiB"), gs.load(tmp_path)
    t, expected = gs.trace(prompt(9), model=streamed), gs.trace(prompt(9), model=resident)
    for _, values in replay(t, ["z"]):
        assert torch.equal(values["z"], expected["z", 0])
        break
    for layer, values in replay(t, ["mlp_out"]):
        assert torch.equal(values["mlp_out"], expected["mlp_out", layer.index])


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        (["z", "logits"], "'logits' is not in the layers; those that are: resid_pre"),
        (["embed"], "'embed' is not in the layers"),
        (["patern"], "there is no site 'patern'. Did you mean 'pattern'"),
        ([("pattern", 3)], "there is no layer 3: layers go from 0 to 2"),
    ],
)
def test_a_site_that_is_not_in_the_layers_is_refused_before_anything_runs(
    sites: Any, message: str, layers_read: list[int]
) -> None:
    t = run()
    layers_read.clear()
    with pytest.raises(SiteError, match=message):
        replay(t, sites)
    assert layers_read == []
