"""Path sweeps of edited models: those of the same edits put in by hand, and the plain model's for edits of nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import model, prompt
from torch import Tensor

import gemmascope as gs
from gemmascope.edits.edit import Edit

# What is frozen overwrites what an edit of the same site wrote, which the runs by hand warn of.
pytestmark = pytest.mark.filterwarnings("ignore:.* has no effect.*:gemmascope.GemmascopeWarning")

CLEAN, CORRUPT = prompt(9, seed=1), prompt(9, seed=2)
METRIC = gs.logit_diff(5, 9)
N_LAYERS = 4


def plain() -> Any:
    return model("lgll")


def doubled_rows(value: Tensor) -> Tensor:
    return value * 1.5


def edits() -> list[Edit]:
    """At the senders, between them and the receivers, and at the receivers: written, added, computed, cut."""
    random = torch.Generator().manual_seed(0)
    width = plain().config.d_model
    return [
        gs.add("resid_post", torch.randn(width, generator=random), layer=0, pos=slice(3, None)),
        gs.ablate("z", layer=1, head=2),
        gs.ablate("resid_mid", layer=2, pos=4),
        gs.edit("mlp_out", doubled_rows, layer=1),
        gs.edit("resid_pre", doubled_rows, layer=3),
        gs.scale("q", 0.5, layer=3, head=1),
        gs.knockout(layer=2, head=3, q_pos=slice(5, None), k_pos=2),
        gs.scale("final", 0.9, pos=-1),
    ]


def by_hand(site: str, layers: list[int], place: dict[str, Any], receivers: Any, mlps: str, kept: list[Edit]) -> float:
    """The metric of a cell: every run is a trace of the plain model with the edits named in the call."""
    base, source = (gs.trace(ids, model=plain(), edits=kept) for ids in (CORRUPT, CLEAN))
    first = list(kept)
    for layer in range(min(layers), N_LAYERS):
        if layer not in layers or site == "mlp_out":
            first.append(gs.patch("attn_out", base, layer=layer))
        elif site == "z":
            first += [gs.patch("z", base, layer=layer), gs.patch("z", source, layer=layer, **place)]
        else:
            first += [gs.patch(site, base, layer=layer), gs.patch(site, source, layer=layer, **place)]
        if mlps == "frozen":
            first.append(gs.patch("mlp_out", base, layer=layer))
        if layer in layers and site == "mlp_out":
            first.append(gs.patch("mlp_out", source, layer=layer, **place))
    arriving = gs.trace(CORRUPT, model=plain(), edits=first)
    late = [("resid_post", N_LAYERS - 1, None)] if receivers is None else [r for r in receivers if r[1] > min(layers)]
    second = [gs.patch(kind, arriving, layer=layer, head=head) for kind, layer, head in late]
    logits = gs.trace(CORRUPT, model=plain(), edits=[*kept, *second]).next_logits
    return float(logits[5] - logits[9])


@pytest.mark.parametrize(
    ("site", "receivers", "mlps"),
    [
        ("z", [("q", 3, [1, 6])], "live"),
        ("z", [("k", 3, 1), ("v", 2, None)], "frozen"),
        ("attn_out", None, "live"),
        ("attn_out", [("q", 3, [1, 6])], "frozen"),
        ("mlp_out", [("k", 3, 1), ("v", 2, None)], "live"),
        ("mlp_out", None, "frozen"),
    ],
)
def test_a_path_sweep_of_an_edited_model_is_that_of_the_edits_by_hand(site: str, receivers: Any, mlps: str) -> None:
    kept = edits()
    axis, numbers = ("head", [0, 2]) if site == "z" else ("pos", [4, 8])
    given: dict[str, Any] = {"sender": site, "receiver": receivers or "final", "by": ("layer", axis), "mlps": mlps}
    given |= {axis: numbers, "layer": [0, 2, 3], "progress": False}
    sweep = gs.path_sweep(CLEAN, CORRUPT, METRIC, model=plain().edited(kept), **given)
    last = 3 if receivers is None else 2
    for place, layer in enumerate([0, 2, 3][:last]):
        for i, number in enumerate(numbers):
            expected = by_hand(site, [layer], {axis: number}, receivers, mlps, kept)
            assert sweep.values[0, place, i] == pytest.approx(expected, abs=3e-4), (layer, number)
    assert np.isnan(sweep.values[0, last:]).all()
    logits = gs.trace(CORRUPT, model=plain(), edits=kept).next_logits
    assert sweep.corrupt == pytest.approx(float(logits[5] - logits[9]), abs=1e-4)
    without = gs.path_sweep(CLEAN, CORRUPT, METRIC, model=plain(), **given)
    assert float(np.nanmax(np.abs(sweep.values - without.values))) > 1e-2, "the edits matter"


@pytest.mark.parametrize("mlps", ["live", "frozen"])
def test_senders_of_several_layers_send_together(mlps: str) -> None:
    kept = edits()
    sweep = gs.path_sweep(
        CLEAN, CORRUPT, METRIC, receiver=("q", 3), by=("head",), layer=[0, 2], mlps=mlps, model=plain().edited(kept),
        progress=False,
    )  # fmt: skip
    for head in (1,):
        expected = by_hand("z", [0, 2], {"head": head}, [("q", 3, None)], mlps, kept)
        assert sweep.values[0, head] == pytest.approx(expected, abs=3e-4)


@pytest.mark.parametrize(
    ("site", "axis", "mlps"), [("z", "head", "live"), ("attn_out", "pos", "frozen"), ("mlp_out", "pos", "live")]
)
def test_edits_of_nothing_change_no_path(site: str, axis: str, mlps: str) -> None:
    """The plain model's path sweeps are held to transformers with hooks."""
    still = plain().edited([gs.scale("resid_mid", 1.0, layer=1), gs.scale("z", 1.0, layer=2, head=1)])
    given: dict[str, Any] = {
        "sender": site,
        "by": ("layer", axis),
        "receiver": [("q", 3, [0, 5]), ("v", 2, 1)],
        "mlps": mlps,
    }
    ours, expected = (
        gs.path_sweep(CLEAN, CORRUPT, METRIC, model=m, progress=False, **given).values for m in (still, plain())
    )
    assert np.allclose(ours, expected, atol=3e-4, equal_nan=True)
    assert np.nanstd(expected) > 1e-2
