"""On a device without float64, such as an Apple GPU, nothing uses it there. Emulated on the CPU: only what went through
.cpu() may become float64, and nothing is made in float64 on a device that is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

import gemmascope as gs

P = "When Mary and John went to the store, John gave a drink to"
Q = P.replace("John gave", "Mary gave")
DIFF = gs.logit_diff(" Mary", " John")


class NoFloat64(TorchFunctionMode):
    """Refuses float64 as torch does on an Apple GPU, for all tensors that were not moved to the CPU."""

    def __torch_function__(self, fn: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(fn, "__name__", "")
        brought = bool(args) and getattr(args[0], "brought", False)
        asks = name == "double" or (name in ("to", "type") and torch.float64 in (*args[1:], *kwargs.values()))
        makes = kwargs.get("dtype") is torch.float64 and kwargs.get("device") is not None
        if (asks and not brought and args[0].dtype != torch.float64) or makes:
            raise TypeError("Cannot convert a tensor to float64 dtype as the framework doesn't support float64")
        result = fn(*args, **kwargs)
        if name == "cpu" and isinstance(result, torch.Tensor):
            result = result.clone() if result is args[0] else result
            result.brought = True  # type: ignore[attr-defined]
        return result


@pytest.fixture
def no_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[NoFloat64]:
    monkeypatch.setattr("gemmascope.values.has_float64", lambda device: False)
    return NoFloat64()


def sampled() -> Any:
    return gs.generate(P, max_new_tokens=3, temperature=0.9, top_p=0.9, seed=3).logprobs


CALLS: dict[str, Callable[[], Any]] = {
    "sweep": lambda: gs.sweep(P, Q, DIFF, site="z", by=("layer", "head"), layer=[0, 5], pos=-1, progress=False).values,
    "path_sweep": lambda: gs.path_sweep(P, Q, DIFF, layer=[5], progress=False).values,
    "attribute": lambda: gs.attribute(P, Q, DIFF, site="z", by=("layer", "head")).values,
    "integrated": lambda: gs.attribute(P, Q, DIFF, site="z", by=("layer", "head"), layer=5, steps=2).values,
    "grad": lambda: gs.trace(P).grad(DIFF, ("z", 2)),
    "sampled": sampled,
    "head_scores": lambda: gs.head_scores(kind=["induction", "copying"], n=2)["induction"].scores,
    "compare": lambda: gs.compare(None, None, [P]).kl_all,
    "ablate_direction": lambda: (
        gs.trace(P, edits=[gs.ablate_direction("resid_post", torch.linspace(-1, 1, 128), layer=2)]).logits
    ),
    "direction": lambda: gs.direction([P, P + " the"], [Q, Q + " the"], layer=2).vector,
    "strength_sweep": lambda: (
        gs.strength_sweep(
            [P], torch.linspace(-1, 1, 128), DIFF, strengths=[1.0], site="resid_post", layer=2, progress=False
        ).perplexity
    ),
    "explained": lambda: gs.load_sae().encode(gs.trace(P)).explained,
    "loss_recovered": lambda: gs.load_sae().loss_recovered([P]).recovered,
    "feature_sweep": lambda: gs.feature_sweep(gs.load_sae(), P, DIFF, pos=-1).effect,
    "direct_logits": lambda: gs.direct_logits(gs.trace(P), " Mary").parts,
    "lens": lambda: gs.lens(gs.trace(P)).entropy,
}


@pytest.mark.parametrize("call", CALLS)
def test_a_device_without_float64_gives_the_same_numbers(call: str, no_float64: NoFloat64) -> None:
    with no_float64:
        actual = CALLS[call]()
    expected = CALLS[call]()
    assert np.size(expected)
    np.testing.assert_allclose(
        np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64), rtol=1e-6, atol=1e-6
    )


def test_the_emulation_refuses_what_an_apple_gpu_refuses() -> None:
    with NoFloat64(), pytest.raises(TypeError, match="float64"):
        torch.ones(2).double()
    with NoFloat64(), pytest.raises(TypeError, match="float64"):
        torch.ones(2).to(torch.float64)
