"""A model on the meta device has shapes and no numbers: calls that need numbers say so."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

import gemmascope as gs
from gemmascope.errors import DeviceError

P = "When Mary and John went to the store, John gave a drink to"
Q = P.replace("John gave", "Mary gave")
DIFF = gs.logit_diff(" Mary", " John")


@cache
def meta() -> gs.Model:
    return gs.load("nano", device="meta")


CALLS: dict[str, Callable[[], Any]] = {
    "trace": lambda: gs.trace(P, model=meta()),
    "generate": lambda: gs.generate(P, model=meta()),
    "run": lambda: meta().run(P),
    "ids": lambda: meta().ids(P),
    "fingerprint": lambda: meta().fingerprint,
    "network_fingerprint": lambda: meta().network_fingerprint,
    "ov": lambda: meta().layer(0).ov(0),
    "qk": lambda: meta().layer(0).qk(0),
    "sweep": lambda: gs.sweep(P, Q, DIFF, site="z", model=meta(), progress=False),
    "path_sweep": lambda: gs.path_sweep(P, Q, DIFF, model=meta(), progress=False),
    "attribute": lambda: gs.attribute(P, Q, DIFF, site="z", model=meta()),
    "compare": lambda: gs.compare(None, meta(), [P]),
    "head_scores": lambda: gs.head_scores(meta(), n=1),
    "copying": lambda: gs.head_scores(meta(), kind="copying"),
    "composition": lambda: gs.composition(meta()),
    "direction": lambda: gs.direction([P], [Q], layer=1, model=meta()),
    "strength_sweep": lambda: gs.strength_sweep(
        P, torch.ones(128), DIFF, strengths=[1.0], site="resid_post", layer=1, model=meta(), progress=False
    ),
    "feature_sweep": lambda: gs.feature_sweep(gs.load_sae(), P, DIFF, model=meta()),
    "loss_recovered": lambda: gs.load_sae().loss_recovered([P], model=meta()),
    "load_sae": lambda: gs.load_sae(model=meta()),
    "encode": lambda: gs.load_sae(device="meta").encode(gs.trace(P)),
    "encode rows": lambda: gs.load_sae(device="meta").encode(torch.zeros(2, 128)),
    "decode": lambda: gs.load_sae(device="meta").decode(torch.zeros(2, 512)),
    "activations": lambda: gs.load_sae(device="meta").activations(torch.zeros(2, 128)),
    "splice": lambda: gs.trace(P, edits=[gs.splice(gs.load_sae(device="meta"), {3: 1.0})]),
    "patching_lab": lambda: gs.patching_lab(P, Q, " Mary", " John", model=meta()).run(),
    "head_lab": lambda: gs.head_lab(P, model=meta()),
    "steer_lab": lambda: gs.steer_lab(P, torch.ones(128), site="resid_post", layer=1, model=meta()),
    "graph_lab": lambda: gs.graph_lab(P, model=meta()),
}


@pytest.mark.parametrize("call", CALLS)
def test_calls_that_need_numbers_say_that_a_meta_model_has_none(call: str) -> None:
    with pytest.raises(DeviceError, match=r"meta.*has shapes and no values"):
        CALLS[call]()


def test_calls_that_need_only_the_shape_work() -> None:
    assert "meta" in repr(meta())
    assert gs.plan(meta()).total == gs.plan("nano").total
