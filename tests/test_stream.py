"""Streamed layers give the bits of resident ones for any kept layers and any prefetch, and leave nothing behind."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import checkpoint, prompt
from safetensors.torch import load_file, save_file
from torch import Tensor

import gemmascope as gs
import gemmascope.memory.limits as memory_module
import gemmascope.memory.placement as budget_module
import gemmascope.streaming.file_embedding as embedding_module
from gemmascope.errors import BudgetError, CheckpointError, DeviceError, SweepError
from gemmascope.memory.placement import Sizes, place_layers
from gemmascope.model.layout import Layout
from gemmascope.model.model import Model
from gemmascope.model.tap import SILENT
from gemmascope.streaming.file_embedding import FileEmbedding
from gemmascope.streaming.layer_stream import LayerStream
from gemmascope.streaming.transfer import HostTransfer

KINDS, METRIC = "lglgl", gs.logit_diff(5, 9)


class Poisoning(HostTransfer):
    """Overwrites a buffer as soon as it may be filled again."""

    def release(self, buffer: Tensor) -> None:
        buffer.fill_(255)  # NaN in float32, bfloat16 and float16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("streamed")
    checkpoint(KINDS).save_pretrained(path / "source", max_shard_size="40KB")
    gs.quantize(path / "source", path / "int8")
    return path


@pytest.fixture
def small_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Budgets on the scale of a small model: a pass needs memory for few rows only."""
    monkeypatch.setattr(budget_module, "MICROBATCH_ROWS", 8)
    monkeypatch.setattr(budget_module, "RESERVED_ROWS", 64)
    monkeypatch.setattr(memory_module, "MICROBATCH_ROWS", 8)
    monkeypatch.setattr(embedding_module, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(budget_module, "CHUNK_BYTES", 1000)


def resident(folder: Path, kind: str, dtype: str = "float32") -> Model:
    return gs.load(folder / kind, dtype=dtype)


def streamed(
    folder: Path, kind: str, kept: tuple[int, ...], ahead: int, dtype: str = "float32", direct: bool = False
) -> Model:
    """The model with these layers kept, this many layers prefetched, and buffers overwritten when they are free."""
    model = gs.load(folder / kind, dtype=dtype, memory="1GiB")
    layer_source: Any = model.network.layer_source
    number = getattr(torch, dtype)
    model.network.layer_source = LayerStream(
        model.config, layer_source.packed, number, torch.device("cpu"), kept, ahead, transfer=Poisoning(direct)
    )
    return model


# Layers kept, layers loading ahead, and whether reads bypass the page cache.
TIERS = [((), 1, False), ((), 3, True), ((2,), 1, False), ((0, 4), 2, True), ((0, 1, 2, 3, 4), 1, False)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["source", "int8"])
@pytest.mark.parametrize(("kept", "ahead", "direct"), TIERS)
def test_streamed_equals_resident_bit_for_bit(
    folder: Path, kind: str, kept: tuple[int, ...], ahead: int, direct: bool, dtype: str
) -> None:
    resident_model, streamed_model = resident(folder, kind, dtype), streamed(folder, kind, kept, ahead, dtype, direct)
    a, b = (gs.trace(prompt(13), model=model) for model in (resident_model, streamed_model))
    assert torch.equal(a.logits, b.logits)
    for site in ("pattern", "mlp_act", "resid_post"):
        assert torch.equal(a[site, 3], b[site, 3])
    options: dict[str, Any] = {"site": "z", "by": ("layer", "head"), "progress": False}
    swept = [
        gs.sweep(prompt(9), prompt(9, seed=1), METRIC, **options, model=m).values for m in (resident_model, streamed_model)
    ]
    assert (swept[0] == swept[1]).all()
    assert resident_model.fingerprint == streamed_model.fingerprint


@pytest.mark.parametrize("kind", ["source", "int8"])
def test_gradients_go_through_streamed_layers(folder: Path, kind: str) -> None:
    resident_model, streamed_model = resident(folder, kind), streamed(folder, kind, (1,), 1)
    sites = [("resid_pre", 0), ("z", 2), ("pattern", 3), "embed"]
    grads = [gs.trace(prompt(9), model=model).grad(METRIC, sites) for model in (resident_model, streamed_model)]
    assert all(torch.equal(grads[0][site], grads[1][site]) for site in sites)
    options: dict[str, Any] = {"site": "mlp_out", "by": ("layer", "pos")}
    effects = [
        gs.attribute(prompt(9), prompt(9, seed=1), METRIC, **options, model=m).values
        for m in (resident_model, streamed_model)
    ]
    assert (effects[0] == effects[1]).all()


@pytest.mark.parametrize("kind", ["source", "int8"])
def test_a_layer_returned_to_the_caller_keeps_its_weights(folder: Path, kind: str) -> None:
    resident_model, streamed_model = resident(folder, kind), streamed(folder, kind, (1,), 1)
    layers = [streamed_model.layer(i) for i in range(5)]
    gs.trace(prompt(9), model=streamed_model)
    for i, layer in enumerate(layers):
        for name, parameter in layer.named_parameters():
            assert torch.equal(parameter, resident_model.layer(i).get_parameter(name))
    assert streamed_model.layer(2) is layers[2]
    assert streamed_model.layer(-1) is layers[4]


def test_a_layer_of_a_pass_has_no_weights_once_the_next_one_is_read(folder: Path) -> None:
    first, *_ = streamed(folder, "int8", (), 1).layers()
    assert first.mlp.up_proj.weight.is_meta
    layout = Layout.of_lengths([3])
    with pytest.raises(RuntimeError, match="meta"):  # not another layer's numbers, nor none
        first(torch.ones(3, 32), layout, SILENT.at(0, layout))


@pytest.mark.usefixtures("small_budgets")
@pytest.mark.parametrize("kind", ["source", "int8"])
def test_every_budget_gives_the_same_numbers(folder: Path, kind: str) -> None:
    expected = gs.trace(prompt(13), model=resident(folder, kind))
    with pytest.raises(BudgetError, match=r"needs [\d,]+ bytes at least") as caught:
        gs.load(folder / kind, memory=100)
    least = int(str(caught.value).split("needs ")[1].split(" bytes")[0].replace(",", ""))
    kept, embedded = [], []
    for memory in (least, 2 * least, 3 * least, 20 * least):
        model = gs.load(folder / kind, memory=memory)
        layer_source: Any = model.network.layer_source
        kept.append(len(layer_source.kept))
        embedded.append(not isinstance(model.network.model.embed_tokens, FileEmbedding))
        assert torch.equal(gs.trace(prompt(13), model=model)["resid_post", -1], expected["resid_post", -1])
        assert torch.allclose(gs.trace(prompt(13), model=model).logits, expected.logits, atol=1e-5)
        assert model.fingerprint == expected.model.fingerprint
        assert model.n_params == expected.model.n_params
    assert kept == sorted(kept)
    assert (kept[0], kept[-1]) == (0, 5)
    assert (embedded[0], embedded[-1]) == (False, True)
    with pytest.raises(BudgetError):
        gs.load(folder / kind, memory=least - 1)


@pytest.mark.usefixtures("small_budgets")
def test_gradients_and_sweeps_go_through_an_embedding_in_its_file(folder: Path) -> None:
    with pytest.raises(BudgetError) as caught:
        gs.load(folder / "int8", memory=1)
    least = int(str(caught.value).split("needs ")[1].split(" bytes")[0].replace(",", ""))
    resident_model, streamed_model = resident(folder, "int8"), gs.load(folder / "int8", memory=least)
    assert isinstance(streamed_model.network.model.embed_tokens, FileEmbedding)
    grads = [gs.trace(prompt(9), model=model).grad(METRIC, "embed") for model in (resident_model, streamed_model)]
    assert torch.allclose(*grads, atol=1e-5)
    options: dict[str, Any] = {"site": "resid_pre", "by": ("layer", "pos"), "progress": False}
    values = [
        gs.sweep(prompt(9), prompt(9, seed=1), METRIC, **options, model=m).values for m in (resident_model, streamed_model)
    ]
    assert abs(values[0] - values[1]).max() <= 1e-4


def test_more_memory_never_keeps_fewer_layers_and_is_never_exceeded() -> None:
    config = gs.GemmaConfig.from_dict(checkpoint("lg" * 8).config.to_dict())
    for kind in ("int8", "stored"):
        sizes = Sizes.of(config, kind, torch.bfloat16)
        before = -1
        for memory in range(4_000_000, 9_000_000, 60_000):
            try:
                placement = place_layers(config, sizes, torch.bfloat16, memory)
            except BudgetError:
                assert before == -1
                continue
            assert placement.weights + placement.workspace <= memory
            assert len(placement.kept) >= before
            before = len(placement.kept)
        assert before > 0


# -- threads, locks and buffers afterwards --


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("gemmascope-stream")]


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_the_middle_leaves_no_thread_and_no_lock(folder: Path, kind: type[BaseException]) -> None:
    model = streamed(folder, "int8", (1,), 1)
    expected = gs.trace(prompt(9), model=resident(folder, "int8"))
    running: list[str] = []

    def failing(site: str, layer: int | None, value: Tensor) -> Tensor:
        running.extend(threads())
        if layer == 2:
            raise kind("enough")
        return value

    with pytest.raises(kind, match="enough") as caught:
        model.run(prompt(9), tap=failing)
    assert running  # there was a thread
    assert threads() == []
    assert torch.equal(gs.trace(prompt(9), model=model).logits, expected.logits)
    assert caught.value is not None


def test_a_pass_that_was_left_open_is_closed_by_the_next(folder: Path) -> None:
    model = streamed(folder, "int8", (), 1)
    open_pass: Iterator[Any] = model.layers()
    next(open_pass)
    expected = gs.trace(prompt(9), model=resident(folder, "int8"))
    assert torch.equal(gs.trace(prompt(9), model=model).logits, expected.logits)
    with pytest.raises(DeviceError, match="another pass"):
        next(open_pass)
    assert threads() == []


def test_threads_take_turns(folder: Path) -> None:
    model = streamed(folder, "int8", (), 1)
    expected = gs.trace(prompt(9), model=resident(folder, "int8")).logits
    results: list[Tensor] = []
    workers = [threading.Thread(target=lambda: results.append(gs.trace(prompt(9), model=model).logits)) for _ in range(4)]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join(60)
    assert len(results) == 4
    assert all(torch.equal(logits, expected) for logits in results)


def test_fifty_passes_take_no_more_memory_than_one(folder: Path) -> None:
    model = streamed(folder, "int8", (1,), 2)
    layer_source: Any = model.network.layer_source
    before = [buffer.data_ptr() for buffer in layer_source.buffers]
    for _ in range(50):
        gs.trace(prompt(9), model=model)
    assert [buffer.data_ptr() for buffer in layer_source.buffers] == before
    assert threads() == []
    assert all(parameter.is_meta for shell in layer_source.templates for parameter in shell.parameters())


def test_a_sweep_reads_every_layer_once_a_chunk(folder: Path) -> None:
    model = streamed(folder, "int8", (), 1)
    layer_source: Any = model.network.layer_source
    read: list[int] = []
    fill = layer_source.transfer.fill
    layer_source.transfer.fill = lambda packed, index, buffer: (read.append(index), fill(packed, index, buffer))[1]
    gs.sweep(prompt(9), prompt(9, seed=1), METRIC, site="z", by=("layer", "head"), model=model, progress=False)
    assert read == [0, 1, 2, 3, 4]


def test_a_file_that_changes_under_the_model_is_refused(tmp_path: Path) -> None:
    checkpoint("lgl").save_pretrained(tmp_path / "source")
    model = streamed(tmp_path, "source", (), 1)
    gs.trace(prompt(9), model=model)
    path = tmp_path / "source" / "model.safetensors"
    save_file({name: value + 1 for name, value in load_file(path).items()}, path)
    with pytest.raises(CheckpointError, match="changed while it was in use"):
        gs.trace(prompt(9), model=model)
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        gs.trace(prompt(9), model=model)
    assert threads() == []


def test_a_sweep_is_limited_to_the_memory_that_the_budget_leaves(folder: Path) -> None:
    model = gs.load(folder / "int8", memory="1GiB")
    model.network.work_bytes = 10
    with pytest.raises(SweepError, match="memory of 10 bytes"):
        gs.sweep(prompt(9), prompt(9, seed=1), METRIC, site="z", model=model, by=("layer", "head"))


@pytest.mark.parametrize("swept", [True, False])
def test_running_out_of_memory_says_what_was_planned(folder: Path, swept: bool) -> None:
    model = gs.load(folder / "int8", memory="1GiB")
    planned = model.network.work_bytes

    values: list[weakref.ref[Tensor]] = []

    def full(value: Tensor) -> Tensor:
        values.append(weakref.ref(value))
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    edits = [gs.edit("mlp_out", full, layer=2)]
    options: dict[str, Any] = {"site": "z", "by": ("layer", "head"), "edits": edits, "model": model}
    with pytest.raises(BudgetError, match=f"{planned:,} bytes were planned.*tried to allocate") as caught:
        gs.sweep(prompt(9), prompt(9, seed=1), METRIC, **options) if swept else gs.trace(prompt(9), model=model, edits=edits)
    assert caught.value is not None
    assert [ref() for ref in values] == [None]  # although the error and its traceback are still referenced here
    assert threads() == []
    gs.trace(prompt(9), model=model)


def test_ending_an_old_pass_does_not_disturb_a_new_one(folder: Path) -> None:
    model = streamed(folder, "int8", (), 1)
    old_pass = model.layers()
    next(old_pass)
    new_pass = model.layers()
    layer = next(new_pass)
    del old_pass
    assert not layer.mlp.up_proj.weight.is_meta
    new_pass.close()
    assert threads() == []


def test_a_pass_of_a_thread_that_has_ended_is_closed(folder: Path) -> None:
    model = streamed(folder, "int8", (), 1)
    open_passes: list[Any] = []

    def leave() -> None:
        open_passes.append(model.layers())
        next(open_passes[0])

    thread = threading.Thread(target=leave)
    thread.start()
    thread.join()
    expected = gs.trace(prompt(9), model=resident(folder, "int8"))
    assert torch.equal(gs.trace(prompt(9), model=model).logits, expected.logits)


def test_a_pass_that_cannot_start_leaves_no_lock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = streamed(folder, "int8", (), 1)

    def no_thread(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr("threading.Thread.start", no_thread)
        with pytest.raises(RuntimeError, match="new thread"):
            gs.trace(prompt(9), model=model)
    gs.trace(prompt(9), model=model)


def test_reads_bypass_the_page_cache_with_direct(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags: list[int] = []
    opened = os.open
    monkeypatch.setattr("os.open", lambda path, flag, *rest: (flags.append(flag), opened(path, flag, *rest))[1])
    for direct in (True, False):
        flags.clear()
        gs.trace(prompt(9), model=streamed(folder, "int8", (0, 1, 2), 1, direct=direct))
        assert any(flag & os.O_DIRECT for flag in flags) == direct
