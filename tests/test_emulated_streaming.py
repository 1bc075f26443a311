"""Layers that stream to an emulated CUDA device: the CPU's numbers, whatever stays, and no race, however a pass ends."""

from __future__ import annotations

import gc
import mmap
import os
import warnings
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint, prompt
from emulated_cuda import EmulatedCuda
from torch import Tensor

import gemmascope as gs
import gemmascope.memory.limits as limits_module
import gemmascope.memory.placement as placement_module
import gemmascope.streaming.file_embedding as embedding_module
from gemmascope.errors import BudgetError
from gemmascope.model.model import Model
from gemmascope.model.tap import Tap
from gemmascope.streaming.cuda import CudaTransfer
from gemmascope.streaming.file_embedding import FileEmbedding
from gemmascope.streaming.layer_stream import LayerStream
from gemmascope.streaming.page_locked import HostBuffer

METRIC = gs.logit_diff(5, 9)
KINDS = pytest.mark.parametrize("kind", ["source", "int8"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("emulated")
    checkpoint("lgl").save_pretrained(path / "source", max_shard_size="40KB")
    gs.quantize(path / "source", path / "int8")
    return path


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Budgets of a small model's size: a pass needs room for few rows."""
    for module, name, value in (
        (placement_module, "MICROBATCH_ROWS", 8), (placement_module, "RESERVED_ROWS", 64),
        (limits_module, "MICROBATCH_ROWS", 8),
        (embedding_module, "CHUNK_BYTES", 1000), (placement_module, "CHUNK_BYTES", 1000),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)


def streamed(
    folder: Path, kind: str, kept: tuple[int, ...] = (), held: tuple[int, ...] = (0, 1, 2), ahead: int = 1
) -> Model:
    """The model with these layers kept on the device and those held in page-locked memory."""
    model = gs.load(folder / kind, device="cuda", memory="1GiB")
    layer_source: Any = model.network.layer_source
    transfer = CudaTransfer(model.device, {index: layer_source.packed[index] for index in held})
    model.network.layer_source = LayerStream(
        model.config, layer_source.packed, torch.float32, model.device, kept, ahead, transfer
    )
    return model


def least_memory(path: Path) -> int:
    with pytest.raises(BudgetError, match=r"needs [\d,]+ bytes at least") as told:
        gs.load(path, device="cuda", memory=100)
    return int(str(told.value).split("needs ")[1].split(" bytes")[0].replace(",", ""))


def results(model: Model) -> list[Any]:
    """What a model gives, call by call."""
    trace = gs.trace(prompt(13), model=model)
    return [
        trace.logits, trace["pattern", 1], trace["mlp_act", 2], trace.lens(pos=-1).values,
        gs.sweep(
            prompt(9), prompt(9, seed=1), METRIC, site="z", by=("layer", "head"), layer=[1], head=[0, 3], model=model,
            progress=False,
        ).values,
        *gs.trace(prompt(5), model=model).grad(METRIC, [("resid_pre", 1), ("z", 2)]).values(),
        gs.generate(prompt(5), model=model, max_new_tokens=2).logprobs,
    ]  # fmt: skip


def require_same(found: list[Any], want: list[Any]) -> None:
    for one, other in zip(found, want, strict=True):
        left, right = (x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x, float) for x in (one, other))
        np.testing.assert_allclose(left, right, rtol=2e-5, atol=2e-5)


@pytest.fixture(scope="module")
def wanted(folder: Path) -> dict[str, tuple[list[Any], str]]:
    """What the CPU gives, and the fingerprint, by the kind of the weights."""
    models = {kind: gs.load(folder / kind, device="cpu") for kind in ("source", "int8")}
    return {kind: (results(model), model.fingerprint) for kind, model in models.items()}


# Layers kept on the device, layers held in host memory, and how many may be loading.
TIERS: list[tuple[str, tuple[int, ...], tuple[int, ...], int]] = [
    ("source", (), (), 1), ("source", (1,), (0, 2), 2), ("int8", (), (0, 1, 2), 1), ("int8", (0, 1, 2), (), 1),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "kept", "held", "ahead"), TIERS)
def test_streamed_layers_give_the_numbers_of_the_cpu(
    folder: Path, wanted: Any, cuda: EmulatedCuda, kind: str, kept: Any, held: Any, ahead: int
) -> None:
    require_same(results(streamed(folder, kind, kept, held, ahead)), wanted[kind][0])


@KINDS
@pytest.mark.usefixtures("little")
def test_every_budget_gives_the_numbers_of_the_cpu(folder: Path, wanted: Any, cuda: EmulatedCuda, kind: str) -> None:
    least = least_memory(folder / kind)
    embeddings = []
    for memory in (least, 3 * least):
        model = gs.load(folder / kind, device="cuda", memory=memory)
        embeddings.append(type(model.network.model.embed_tokens))
        require_same(results(model), wanted[kind][0])
        assert model.fingerprint == wanted[kind][1]
    assert embeddings[0] is FileEmbedding
    assert embeddings[-1] is not FileEmbedding


def interrupted(site: str, layer: int | None, value: Tensor) -> Tensor:
    if (site, layer) == ("mlp_out", 1):
        raise KeyboardInterrupt
    return value


@KINDS
@pytest.mark.parametrize("ahead", [1, 2])
@pytest.mark.parametrize("end", ["gradient", "interrupt", "left open"])
def test_a_pass_that_ends_early_leaves_its_buffers_free(
    folder: Path, cuda: EmulatedCuda, kind: str, end: str, ahead: int
) -> None:
    model = streamed(folder, kind, ahead=ahead)
    trace = gs.trace(prompt(13), model=model)
    for _ in range(2):
        if end == "gradient":
            trace.grad(METRIC, ("resid_pre", 2))
        elif end == "interrupt":
            with suppress(KeyboardInterrupt):
                model.run(prompt(13), tap=interrupted)
        else:
            layer = next(left := model.layers())
            layer(trace.residuals[0], trace.layout, trace.tap(Tap()).at(0, trace.layout))
            del left
        with torch.no_grad():  # at once: the host waits for nothing in between
            final = model.network(trace.ids, trace.layout)
        assert torch.equal(final, trace.residuals[-1])


def test_two_streams_of_a_user_take_turns(folder: Path, cuda: EmulatedCuda) -> None:
    model = streamed(folder, "int8")  # its layers are unpacked into the same weights in every pass
    trace, side = gs.trace(prompt(13), model=model), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    for stream in (side, torch.cuda.current_stream(), side):
        with torch.cuda.stream(stream), torch.no_grad():
            model.network(trace.ids, trace.layout)
    torch.cuda.current_stream().wait_stream(side)


def test_a_model_is_freed_while_its_layers_are_copied(folder: Path, cuda: EmulatedCuda) -> None:
    for kept in ((), (0, 1, 2)):
        model = streamed(folder, "source", kept)
        left = model.layers()
        next(left)
        del left, model
        gc.collect()
    assert not cuda.page_locked.ranges
    assert cuda.memories[0].allocated == 0


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="huge pages are asked for on Linux")
@pytest.mark.parametrize("granted", [True, False])
def test_page_locked_memory_is_asked_for_in_huge_pages(granted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Mapping(mmap.mmap):
        def madvise(self, option: int, *rest: int) -> None:
            asked.append(option)
            if not granted:
                raise OSError(22, "Invalid argument")

    monkeypatch.setattr("gemmascope.streaming.page_locked.mmap.mmap", Mapping)
    with EmulatedCuda():
        buffer = HostBuffer(100, torch.device("cuda", 0))
        assert buffer.locked
        buffer.data.fill_(3)
        assert buffer.data.eq(3).all()
        del buffer
    assert asked == [mmap.MADV_HUGEPAGE]


@pytest.mark.parametrize("held", [0, 1, 3])
def test_memory_that_cannot_be_page_locked_makes_it_slower_only(folder: Path, cuda: EmulatedCuda, held: int) -> None:
    want = gs.trace(prompt(13), model=gs.load(folder / "int8", device="cuda")).logits
    model = streamed(folder, "int8", held=())
    layer_source: Any = model.network.layer_source
    gc.collect()
    cuda.page_locked.most = held * layer_source.packed[0].n_bytes
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        layer_source.transfer = CudaTransfer(model.device, dict(enumerate(layer_source.packed)))
        for _ in range(2):
            assert torch.equal(gs.trace(prompt(13), model=model).logits, want)
    assert len(layer_source.transfer.held) == held
    assert sum("cannot be page-locked" in str(one.message) for one in told) == (held < 3)


def test_a_forked_child_unlocks_nothing(cuda: EmulatedCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer, parent = HostBuffer(100, torch.device("cuda", 0)), os.getpid()
    monkeypatch.setattr("os.getpid", lambda: parent + 1)  # as in a child, which has a copy of the buffer
    del buffer
    gc.collect()
    assert len(cuda.page_locked.ranges) == 1


def test_nothing_is_unlocked_at_exit(cuda: EmulatedCuda) -> None:
    buffer = HostBuffer(100, torch.device("cuda", 0))
    assert [one.atexit for one in weakref.finalize._registry if one.peek() and one.peek()[0] is buffer] == [False]  # type: ignore[attr-defined]
