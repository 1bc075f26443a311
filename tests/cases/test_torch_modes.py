"""Torch's modes in a user's session change no number, and results made under them can be used afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import pytest
import torch

import gemmascope as gs

P = "When Mary and John went to the store, John gave a drink to"
Q = P.replace("John gave", "Mary gave")
DIFF = gs.logit_diff(" Mary", " John")


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def reduced_float32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast to bfloat16": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", dtype=torch.float16),
    "inference mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "default device meta": lambda: default_device("meta"),
    "default dtype float64": lambda: default_dtype(torch.float64),
    "default dtype bfloat16": lambda: default_dtype(torch.bfloat16),
    "deterministic algorithms": deterministic,
    "products in fewer bits": reduced_float32,
}


def sae() -> Any:
    return gs.load_sae("nano")


def steering() -> torch.Tensor:
    return torch.linspace(-1, 1, 128, dtype=torch.float32, device="cpu")


EDITS = [gs.add("resid_post", torch.linspace(-1, 1, 128), layer=1, pos=-1), gs.knockout(layer=2, q_pos=-1, k_pos=3)]

CALLS: dict[str, Callable[[], Any]] = {
    "trace": lambda: gs.trace(P).logits,
    "a site of a layer": lambda: gs.trace(P)["mlp_act", 2],
    "pattern": lambda: gs.trace(P)["pattern", 2],
    "edges": lambda: gs.trace(P).edges("scores", 2, head=1),
    "top": lambda: [p for _, _, p in gs.trace(P).top(5)],
    "edits": lambda: gs.trace(P, edits=EDITS).logits,
    "mean ablation": lambda: gs.trace(P, edits=[gs.ablate("z", layer=1, value="mean", reference=[gs.trace(Q)])]).logits,
    "lens of a trace": lambda: gs.trace(P).lens(),
    "grad": lambda: gs.trace(P).grad(DIFF, ("z", 2)),
    "grad with edits": lambda: gs.trace(P, edits=EDITS).grad(DIFF, ("resid_pre", 1)),
    "generate": lambda: gs.generate(P, max_new_tokens=4, edits=EDITS).logprobs,
    "sampled": lambda: gs.generate(P, max_new_tokens=4, temperature=0.9, seed=3).logprobs,
    "trace of a generation": lambda: gs.generate(P, max_new_tokens=3).trace().logits,
    "run": lambda: gs.load().run(P),
    "sweep": lambda: gs.sweep(P, Q, DIFF, site="z", by=("layer", "head"), layer=[0, 2], progress=False).values,
    "path_sweep": lambda: gs.path_sweep(P, Q, DIFF, layer=[0], progress=False).values,
    "attribute": lambda: gs.attribute(P, Q, DIFF, site="z", by=("layer", "head")).values,
    "lens": lambda: gs.lens(gs.trace(P)).entropy,
    "direct_logits": lambda: gs.direct_logits(gs.trace(P), " Mary", against=" John", by="head").parts,
    "head_scores": lambda: gs.head_scores(kind="induction", n=2).scores,
    "attention_summary": lambda: gs.attention_summary(gs.trace(P)).mean["entropy"],
    "composition": lambda: gs.composition().scores,
    "ov": lambda: gs.load().layer(1).ov(2).matrix(),
    "qk": lambda: gs.load().layer(1).qk(2, distance=3).singular()[1],
    "direction": lambda: gs.direction([P, P + " the"], [Q, Q + " the"], site="resid_post", layer=2).vector,
    "strength_sweep": lambda: (
        gs.strength_sweep([P], steering(), DIFF, strengths=[0.0, 2.0], site="resid_post", layer=2, progress=False).metric
    ),
    "encode": lambda: sae().encode(gs.trace(P)).acts,
    "decode": lambda: sae().encode(gs.trace(P)).reconstruction,
    "splice": lambda: gs.trace(P, edits=[gs.splice(sae(), {3: 2.5, 17: 0.0})]).logits,
    "feature_sweep": lambda: gs.feature_sweep(sae(), P, DIFF, pos=-1).effect,
    "loss_recovered": lambda: sae().loss_recovered([P]).recovered,
    "compare": lambda: gs.compare(None, None, [P, Q]).kl,
}


def numbers(value: Any) -> np.ndarray[Any, Any]:
    if isinstance(value, torch.Tensor):
        assert not value.requires_grad
        assert not value.is_inference()
        value = value.detach().cpu().numpy()
    return np.asarray(value, dtype=np.float64)


PLAIN: dict[str, np.ndarray[Any, Any]] = {}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("mode", MODES)
def test_no_number_changes_under_a_mode_of_the_session(mode: str, call: str) -> None:
    if call not in PLAIN:
        PLAIN[call] = numbers(CALLS[call]())
    with MODES[mode]():
        result = CALLS[call]()
    assert PLAIN[call].size
    scale = float(np.nanmax(np.abs(PLAIN[call])))
    np.testing.assert_allclose(numbers(result), PLAIN[call], rtol=0, atol=2e-6 * scale)  # rounding; autocast is 4e-3 off
