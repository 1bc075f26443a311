"""What only a GPU can show: layers that arrive by copies of their own, and page-locked memory. Skipped without CUDA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import checkpoint, prompt
from reference import error

import gemmascope as gs
from gemmascope.generation.graphs import StepGraphs
from gemmascope.kernels import switch
from gemmascope.model.model import Model
from gemmascope.streaming.layer_stream import LayerStream

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

METRIC = gs.logit_diff(5, 9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gpu")
    checkpoint("lglgl").save_pretrained(path / "source")
    gs.quantize(path / "source", path / "int8")
    return path


def streamed(folder: Path, kind: str, kept: tuple[int, ...], held: tuple[int, ...], ahead: int = 1) -> Model:
    from gemmascope.streaming.cuda import CudaTransfer

    model = gs.load(folder / kind, device="cuda", memory="1GiB")
    layer_source: Any = model.network.layer_source
    device = torch.device("cuda")
    transfer = CudaTransfer(device, {index: layer_source.packed[index] for index in held})
    model.network.layer_source = LayerStream(model.config, layer_source.packed, torch.float32, device, kept, ahead, transfer)
    return model


@pytest.mark.parametrize("kind", ["source", "int8"])
@pytest.mark.parametrize(("kept", "held", "ahead"), [((), (), 1), ((), (0, 1, 2, 3, 4), 1), ((1,), (0, 2), 3)])
def test_streamed_equals_resident(folder: Path, kind: str, kept: Any, held: Any, ahead: int) -> None:
    one, other = gs.load(folder / kind, device="cuda"), streamed(folder, kind, kept, held, ahead)
    for _ in range(3):
        a, b = (gs.trace(prompt(13), model=model) for model in (one, other))
        assert torch.equal(a.logits, b.logits)
    found = [
        gs.sweep(prompt(9), prompt(9, seed=1), METRIC, site="z", by=("layer", "head"), model=m).values for m in (one, other)
    ]
    assert (found[0] == found[1]).all()
    grads = [gs.trace(prompt(9), model=m).grad(METRIC, ("resid_pre", 0)) for m in (one, other)]
    assert torch.equal(*grads)


def test_the_gpu_gives_what_the_cpu_gives(folder: Path) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    one, other = (gs.load(folder / "source", device=device) for device in ("cpu", "cuda"))
    assert error(gs.trace(prompt(13), model=other).logits.cpu(), gs.trace(prompt(13), model=one).logits) <= 1e-4
    found = [gs.sweep(prompt(9), prompt(9, seed=1), METRIC, site="resid_pre", model=m).values for m in (one, other)]
    assert abs(found[0] - found[1]).max() <= 1e-4 * abs(found[0]).max()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kernels_give_what_plain_torch_gives(folder: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    if not switch.runs_triton(device):
        pytest.skip(f"the card computes{switch.describe(device)}")
    model = gs.load(folder / "int8", device=device, dtype=dtype)
    assert "with Triton kernels" in repr(model)
    found = [model.run(prompt(n)) for n in (5, 40)]
    monkeypatch.setattr(switch, "triton_refusal", lambda _: "not now")
    plain = gs.load(folder / "int8", device=device, dtype=dtype)
    assert "without Triton kernels (not now)" in repr(plain)
    for n, logits in zip((5, 40), found, strict=True):
        assert error(logits.cpu(), plain.run(prompt(n)).cpu()) <= (1e-4 if dtype == "float32" else 0.1)


def test_page_locked_memory_is_of_the_exact_size() -> None:
    from gemmascope.streaming.page_locked import HostBuffer

    buffer = HostBuffer(3 * 2**20 + 17, torch.device("cuda"))
    assert buffer.locked
    assert len(buffer.data) == 3 * 2**20 + 17
    assert buffer.data.is_pinned()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("triton", [True, False])
def test_replayed_steps_give_what_eager_ones_give(
    folder: Path, dtype: str, triton: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over unlike lengths, past the window, with a run that stops early."""
    if not triton:
        monkeypatch.setattr(switch, "triton_refusal", lambda _: "not now")
    model = gs.load(folder / "source", device="cuda", dtype=dtype)
    ids, replays = [prompt(5), prompt(5, seed=1), prompt(21, seed=2)], []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: replays.append(1) or replay(graph))
    stop = int(gs.generate(ids[0], model=model, max_new_tokens=6).ids[-1])
    replays.clear()
    found = gs.generate(ids, model=model, max_new_tokens=40, stop=stop)
    assert replays
    monkeypatch.setattr(StepGraphs, "step", lambda *_: None)
    for one, other in zip(found, gs.generate(ids, model=model, max_new_tokens=40, stop=stop), strict=True):
        assert torch.equal(one.ids, other.ids)
        assert error(torch.tensor(one.logprobs), torch.tensor(other.logprobs)) <= (1e-4 if dtype == "float32" else 0.1)
