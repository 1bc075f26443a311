"""Steps of generation: layers that no tap reads are computed in fewer operators, with the numbers of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint, checkpoint_3, model_of, prompt
from emulated_cuda import EmulatedCuda

import gemmascope as gs
from gemmascope.errors import CheckpointError
from gemmascope.generation.decoder import Decoder
from gemmascope.generation.graphs import StepGraphs
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


# -- on an emulated GPU --


STOPPED_EARLY = [int(id_) for id_ in range(0, 61, 3)]


@pytest.mark.parametrize(
    "given", [{}, {"stop": STOPPED_EARLY}, {"temperature": 0.9, "top_k": 20}, {"repetition_penalty": 1.3}]
)
def test_a_token_makes_the_host_wait_once(given: dict[str, Any], cuda: EmulatedCuda, tmp_path: Path) -> None:
    """Edits that look at values may wait for more."""
    on_cpu, model = on_both(tmp_path)
    ids = [prompt(5), prompt(5, seed=1), prompt(8, seed=2)]
    gs.generate(ids, model=model, max_new_tokens=2)  # the first time, digests of the weights are computed

    def waits(n: int) -> tuple[int, int]:
        cuda.counts.reset()
        found = gs.generate(ids, model=model, max_new_tokens=n, **given)
        count = sum(n for line, n in cuda.counts.syncs.items() if "generation/graphs.py" not in line)
        wanted = gs.generate(ids, model=on_cpu, max_new_tokens=n, **given)
        assert [one.ids.tolist() for one in found] == [one.ids.tolist() for one in wanted]
        return count, max(len(one.logprobs) for one in found)

    (few, first), (many, last) = waits(1), waits(9)
    assert many - few == last - first >= 1, str(cuda.counts)


# -- CUDA graphs, emulated --


def on_both(tmp_path: Path, dtype: str = "float32") -> tuple[Model, Model]:
    checkpoint("lgl", max_position_embeddings=200).save_pretrained(tmp_path)
    return gs.load(tmp_path, device="cpu", dtype=dtype), gs.load(tmp_path, device="cuda", dtype=dtype)


def replays(cuda: EmulatedCuda) -> int:
    return cuda.counts.operators["graph"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("seed", range(3))
def test_replayed_steps_have_the_bits_of_eager_ones(
    dtype: str, seed: int, cuda: EmulatedCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over random lengths, past the window and the end of a graph's stretch, with runs that stop at different times."""
    _, model = on_both(tmp_path, dtype)
    random = np.random.default_rng(seed)
    ids = [prompt(int(n), seed=seed + i) for i, n in enumerate(random.integers(2, 30, size=1 + 2 * seed))]
    given: dict[str, Any] = {"max_new_tokens": 25, "stop": [int(i) for i in random.integers(61, size=seed)]}
    cuda.counts.reset()
    found = gs.generate(ids, model=model, **given)
    assert replays(cuda) >= (20 if seed == 0 else 1)
    cuda.counts.reset()
    with monkeypatch.context() as patch:
        patch.setattr(StepGraphs, "step", lambda *_: None)
        assert_same(found, gs.generate(ids, model=model, **given))
    assert not replays(cuda)


def test_edits_and_streamed_layers_go_on_without_graphs(cuda: EmulatedCuda, tmp_path: Path) -> None:
    _, model = on_both(tmp_path)
    gs.generate(prompt(5), model=model, max_new_tokens=9, edits=[gs.scale("z", 0.5, layer=1, head=2)])
    gs.quantize(tmp_path, tmp_path / "int8")
    gs.generate(prompt(5), model=gs.load(tmp_path / "int8", device="cuda"), max_new_tokens=9)
    assert not replays(cuda)
    gs.generate(prompt(5), model=model, max_new_tokens=9)
    assert replays(cuda) == 8


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory"), RuntimeError("not permitted")])
def test_a_capture_that_fails_is_said_and_steps_go_on(
    error: RuntimeError, cuda: EmulatedCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_cpu, model = on_both(tmp_path)

    def refuse(*_: Any) -> None:
        raise error

    monkeypatch.setattr(torch.cuda.CUDAGraph, "capture_begin", refuse)
    with pytest.warns(UserWarning, match=f"without CUDA graphs.*{type(error).__name__}: {error}") as said:
        found = gs.generate(prompt(5), model=model, max_new_tokens=12)
    assert len(said) == 1
    assert torch.equal(found.ids.cpu(), gs.generate(prompt(5), model=on_cpu, max_new_tokens=12).ids)


def test_what_a_graph_may_not_do_is_refused(cuda: EmulatedCuda) -> None:
    x, y = torch.ones(3, device="cuda"), torch.ones(3, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        z = x + y
        with pytest.raises(RuntimeError, match="capturing: a copy"):
            x.copy_(torch.ones(3).pin_memory(), non_blocking=True)
    graph.replay()
    torch.cuda.synchronize()
    assert z.tolist() == [2, 2, 2]
    del y
    with pytest.raises(RuntimeError, match="freed"):
        graph.replay()
