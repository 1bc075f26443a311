"""Steps of generation: layers that no tap reads are computed in fewer operators, with the numbers of the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint, checkpoint_3, model_of, prompt

import gemmascope as gs
from gemmascope.errors import CheckpointError
from gemmascope.generation.decoder import Decoder
from gemmascope.generation.untapped import UntappedLayer
from gemmascope.model.model import Model


def models(dtype: torch.dtype) -> list[Model]:
    return [model_of(source.to(dtype)) for source in (checkpoint("lgl"), checkpoint_3("lgl"))]


def assert_same(found: list[gs.Generation], wanted: list[gs.Generation]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one.ids, other.ids)
        assert one.logprobs == other.logprobs
        assert all(torch.equal(a, b) for a, b in zip(one.stream, other.stream, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(4))
def test_untapped_layers_have_the_bits_of_the_others(dtype: torch.dtype, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over random lengths, past the window, with runs that stop at different times, and with edits of one layer."""
    random = np.random.default_rng(seed)
    ids = [prompt(int(n), seed=seed + i) for i, n in enumerate(random.integers(2, 12, size=random.integers(1, 5)))]
    given: dict[str, Any] = {"max_new_tokens": 9, "stop": [int(i) for i in random.integers(61, size=6)]}
    if seed % 2:
        given["edits"] = [gs.ablate("z", layer=1, head=int(random.integers(8)))]
    for model in models(dtype):
        calls = []
        call = UntappedLayer.__call__
        with monkeypatch.context() as patch:
            patch.setattr(UntappedLayer, "__call__", lambda *args: calls.append(1) or call(*args))  # noqa: B023
            found = gs.generate(ids, model=model, **given)
        n_steps = max(len(one.logprobs) for one in found) - 1
        assert len(calls) == n_steps * (2 if seed % 2 else 3)
        with monkeypatch.context() as patch:
            patch.setattr(Decoder, "_untapped_layers", lambda self: {})
            assert_same(found, gs.generate(ids, model=model, **given))


def test_layers_with_hooks_or_quantised_ones_run_as_modules(tmp_path: Any) -> None:
    source = checkpoint("lg")
    source.save_pretrained(tmp_path / "source")
    gs.quantize(tmp_path / "source", tmp_path / "int8")
    quantised, hooked = gs.load(tmp_path / "int8"), model_of(source)
    assert UntappedLayer.of(hooked.layer(0)) is not None
    assert UntappedLayer.of(quantised.layer(0)) is None or type(quantised.layer(0).mlp.up_proj).__name__ == "Linear"
    seen: list[int] = []
    handle = hooked.layer(1).mlp.register_forward_hook(lambda *_: seen.append(1))
    gs.generate(prompt(5), model=hooked, max_new_tokens=4)
    handle.remove()
    assert len(seen) == 4


def test_a_model_that_changes_while_it_generates_is_refused() -> None:
    source = checkpoint("lg")
    model = gs.load(source)

    def change(logits: torch.Tensor) -> torch.Tensor:
        source.model.layers[0].self_attn.scaling = 1.0
        return logits

    with pytest.raises(CheckpointError, match="scaling"):
        gs.generate(prompt(5), model=model, max_new_tokens=3, edits=[gs.edit("logits", change)])
