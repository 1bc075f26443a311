"""On an emulated CUDA device (emulated_cuda/) every call gives the CPU's numbers without a race."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from checkpoints import checkpoint, prompt
from emulated_cuda import EmulatedCuda
from every_call import CALLS, numbers
from torch import Tensor

import gemmascope as gs
from gemmascope.generation.graphs import StepGraphs
from gemmascope.generation.untapped import UntappedLayer
from gemmascope.model.gemma2 import Layer
from gemmascope.model.model import Model

CUDA = torch.device("cuda", 0)


# -- the emulation itself --


def test_tensors_of_two_devices_do_not_mix(cuda: EmulatedCuda) -> None:
    ours, theirs = torch.arange(6.0, device="cuda"), torch.arange(6.0)
    assert ours.device == CUDA
    for mixed in (
        lambda: ours + theirs,
        lambda: torch.cat([ours, theirs]),
        lambda: theirs[torch.tensor([1, 2], device="cuda")],
        lambda: ours.index_put_((torch.tensor([1, 2], device="cuda"),), torch.ones(2)),
        lambda: torch.where(ours > 1, theirs, 0.0),
        lambda: ours.masked_fill(theirs > 1, 0.0),
        lambda: theirs.add_(ours),
    ):
        with pytest.raises(RuntimeError, match="same device"):
            mixed()
    with pytest.raises(TypeError, match="to numpy"):
        ours.numpy()
    assert (ours * torch.tensor(2.0)).tolist() == [0, 2, 4, 6, 8, 10]
    assert ours[torch.tensor([1, 2])].tolist() == [1, 2]


def test_two_devices_are_two(monkeypatch: pytest.MonkeyPatch) -> None:
    with EmulatedCuda(n_devices=2) as cuda:
        first, second = torch.ones(300, device="cuda:0"), torch.ones(3, device="cuda:1")
        with pytest.raises(RuntimeError, match="cuda:0 and cuda:1"):
            first[:3] + second
        with torch.cuda.device(1):
            assert torch.zeros(1, device="cuda").device.index == 1
        assert first[:3].to("cuda:1").device.index == 1
        assert cuda.memories[0].allocated == 1536
        del first
        assert cuda.memories[0].allocated == 0


def test_gradients_go_through_moves(cuda: EmulatedCuda) -> None:
    leaf = torch.tensor([1.0, 2.0], requires_grad=True)
    (grad,) = torch.autograd.grad((leaf.to("cuda").square().cpu() * 2).sum(), leaf)
    assert not grad.is_cuda
    assert grad.tolist() == [4, 8]
    inside = torch.tensor([1.0, 2.0], device="cuda", requires_grad=True)
    (grad,) = torch.autograd.grad((inside[1:] ** 3).sum(), inside)
    assert grad.device == CUDA
    assert grad.tolist() == [0, 12]


@pytest.mark.parametrize("waits", [True, False])
def test_a_stream_that_does_not_wait_races(waits: bool) -> None:
    with EmulatedCuda() as cuda:
        side, target = torch.cuda.Stream(), torch.zeros(4, device="cuda")
        if waits:
            side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            target.add_(1)
        if waits:
            torch.cuda.current_stream().wait_stream(side)
        assert target.sum().item() == 4
        assert bool(cuda.races) == (not waits)


@pytest.mark.parametrize("waits", [True, False])
def test_memory_that_is_freed_under_a_copy_races(waits: bool) -> None:
    with EmulatedCuda() as cuda:
        side, target, source = torch.cuda.Stream(), torch.zeros(4, device="cuda"), torch.ones(4).pin_memory()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            target.copy_(source, non_blocking=True)
            copied = side.record_event()
        if waits:
            copied.synchronize()
            torch.cuda.current_stream().wait_event(copied)
        del source, target
        gc.collect()
        assert bool(cuda.races) == (not waits)


def test_what_is_counted(cuda: EmulatedCuda) -> None:
    x = torch.arange(8.0, device="cuda")
    cuda.counts.reset()
    y = (x * 2)[2:].view(2, 3)
    assert (cuda.counts.n_kernels, cuda.counts.n_syncs) == (1, 0)
    assert bool((y > 100).any()) is False
    _ = y[y > 3], y.cpu()
    assert cuda.counts.n_syncs == 3
    assert cuda.counts.operators["mul"] == 1


def test_threads_are_emulated_too(cuda: EmulatedCuda) -> None:
    found: list[Tensor] = []
    thread = threading.Thread(target=lambda: found.append(torch.ones(2, device="cuda") + 1))
    thread.start()
    thread.join()
    assert found[0].device == CUDA


def test_a_captured_graph_computes_again(cuda: EmulatedCuda) -> None:
    x = torch.ones(3, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = (x * 2).add_(1)
        with pytest.raises(RuntimeError, match="capturing"):
            y.sum().item()
    torch.cuda.synchronize()
    x.fill_(5)
    cuda.counts.reset()
    graph.replay()
    assert cuda.counts.n_kernels == 1
    torch.cuda.synchronize()
    assert y.tolist() == [11, 11, 11]


# -- every call, on nano --


@pytest.fixture(scope="module")
def nanos() -> tuple[EmulatedCuda, Model, Model]:
    on_cpu, emulation = gs.load("nano", device="cpu"), EmulatedCuda()
    with emulation:
        return emulation, on_cpu, gs.load("nano", device="cuda")


@pytest.mark.parametrize("call", CALLS)
def test_every_call_gives_the_numbers_of_the_cpu(call: str, nanos: tuple[EmulatedCuda, Model, Model]) -> None:
    emulation, on_cpu, on_cuda = nanos
    want = numbers(CALLS[call](on_cpu))
    with emulation:
        found = numbers(CALLS[call](on_cuda))
    assert want.size
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)
    assert emulation.races == []


# -- with Triton kernels --

# Some of the calls with their kernels computed, in Triton's interpreter, which takes a second for a prompt.
IN_KERNELS = ("edits", "sweep z", "generate several")


@pytest.mark.parametrize("cuda_in_kernels", ["computed"], indirect=True)
@pytest.mark.parametrize("call", IN_KERNELS)
def test_calls_in_kernels_give_the_numbers_of_the_cpu(
    call: str, nanos: tuple[EmulatedCuda, Model, Model], cuda_in_kernels: EmulatedCuda
) -> None:
    model = gs.load("nano", device="cuda")
    cuda_in_kernels.counts.reset()
    found = numbers(CALLS[call](model))
    assert {"_rms_norm", "_attend_runs"} <= set(cuda_in_kernels.counts.operators)
    np.testing.assert_allclose(found, numbers(CALLS[call](nanos[1])), rtol=2e-5, atol=2e-5)
    assert "with Triton kernels" in repr(model)


# -- how much a layer asks of the device --

METRIC = gs.logit_diff(5, 9)
TASKS: dict[str, Callable[[Model], Any]] = {
    "trace": lambda model: gs.trace(prompt(13), model=model),
    "prompt and 4 tokens": lambda model: gs.generate(prompt(13), model=model, max_new_tokens=5),
    "sweep resid_pre": lambda model: gs.sweep(
        prompt(9), prompt(9, seed=1), METRIC, site="resid_pre", layer=[0, 1], model=model, progress=False
    ),
    "sweep z": lambda model: gs.sweep(
        prompt(9), prompt(9, seed=1), METRIC, site="z", by=("layer", "head"), layer=[0, 1], model=model, progress=False
    ),
    "gradient": lambda model: gs.trace(prompt(9), model=model).grad(METRIC, ("resid_pre", 0)),
}
# The most kernels that one more layer may take without Triton.
BOUNDS: dict[tuple[str, str], float] = {
    ("source", "trace"): 67, ("source", "prompt and 4 tokens"): 314, ("source", "sweep resid_pre"): 123,
    ("source", "sweep z"): 161, ("source", "gradient"): 270,
    ("int8", "trace"): 98, ("int8", "prompt and 4 tokens"): 474, ("int8", "sweep resid_pre"): 149,
    ("int8", "sweep z"): 187, ("int8", "gradient"): 327,
}  # fmt: skip
# The most kernels that a layer may take with Triton, each time that it runs: for a prompt, a token, or a batch of a sweep.
# A sweep of z edits the last layer of the model of 2 layers, which saves it 2 kernels: the difference has them too.
BOUNDS_IN_KERNELS: dict[tuple[str, str], float] = {
    ("source", "trace"): 18, ("source", "prompt and 4 tokens"): 21, ("source", "sweep resid_pre"): 28,
    ("source", "sweep z"): 28, ("int8", "trace"): 17, ("int8", "prompt and 4 tokens"): 21,
    ("int8", "sweep resid_pre"): 32, ("int8", "sweep z"): 32,
}  # fmt: skip


@pytest.fixture(scope="module")
def low_and_high(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Checkpoints of 2 and of 4 layers, as they are and in int8."""
    folder = tmp_path_factory.mktemp("layers")
    for kinds in ("lg", "lglg"):
        checkpoint(kinds).save_pretrained(folder / kinds)
        gs.quantize(folder / kinds, folder / f"{kinds}8")
    return {"source": (folder / "lg", folder / "lglg"), "int8": (folder / "lg8", folder / "lglg8")}


class Asked(NamedTuple):
    """What a task asks of the device, and how often a layer runs in it."""

    kernels: int
    syncs: int
    layer_runs: int


def asked(task: str, folder: Path, cuda: EmulatedCuda, monkeypatch: pytest.MonkeyPatch) -> Asked:
    model, runs = gs.load(folder, device="cuda"), 0

    def counting(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def counted(*args: Any) -> Tensor:
            nonlocal runs
            runs += 1
            return call(*args)

        return counted

    TASKS[task](model)  # the first time, digests of the weights are computed
    gc.collect()  # a model that is freed waits for the copies from its memory
    cuda.counts.reset()
    with monkeypatch.context() as patch:
        patch.setattr(Layer, "forward", counting(Layer.forward))
        patch.setattr(UntappedLayer, "__call__", counting(UntappedLayer.__call__))
        patch.setattr(StepGraphs, "step", lambda *_: None)  # one launch for all of them: the bounds are of what is inside
        TASKS[task](model)
    # Digests of the weights are compared now and then, which waits: that is no part of a pass.
    syncs = sum(count for line, count in cuda.counts.syncs.items() if "digests.py" not in line)
    return Asked(cuda.counts.n_kernels, syncs, runs)


@pytest.mark.parametrize(("kind", "task"), BOUNDS)
def test_a_layer_asks_no_more_of_the_device_than_its_bound(
    kind: str,
    task: str,
    low_and_high: dict[str, tuple[Path, Path]],
    cuda: EmulatedCuda,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    low, high = (asked(task, folder, cuda, monkeypatch) for folder in low_and_high[kind])
    assert 0 < (high.kernels - low.kernels) / 2 <= BOUNDS[kind, task], str(cuda.counts)
    assert high.syncs == low.syncs, str(cuda.counts)


@pytest.mark.parametrize("cuda_in_kernels", ["counted"], indirect=True)
@pytest.mark.parametrize(("kind", "task"), BOUNDS_IN_KERNELS)
def test_a_layer_in_kernels_asks_for_fewer_than_forty_each_time_it_runs(
    kind: str,
    task: str,
    low_and_high: dict[str, tuple[Path, Path]],
    cuda_in_kernels: EmulatedCuda,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    low, high = (asked(task, folder, cuda_in_kernels, monkeypatch) for folder in low_and_high[kind])
    found = (high.kernels - low.kernels) / (high.layer_runs - low.layer_runs)
    assert 0 < found <= BOUNDS_IN_KERNELS[kind, task] < 40, str(cuda_in_kernels.counts)
    assert high.syncs == low.syncs, str(cuda_in_kernels.counts)
