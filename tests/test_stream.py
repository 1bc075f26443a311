"""Layers that stream: bit for bit what resident ones give, whatever stays and however far ahead, and nothing left behind."""

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
from gemmascope.model.model import Model
from gemmascope.streaming.file_embedding import FileEmbedding
from gemmascope.streaming.layer_stream import HostTransfer, LayerStream

KINDS, METRIC = "lglgl", gs.logit_diff(5, 9)


class Poisoning(HostTransfer):
    """Ruins what was in a buffer as soon as it may be filled again."""

    def release(self, buffer: Tensor) -> None:
        buffer.fill_(255)  # NaN in float32, bfloat16 and float16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("streamed")
    checkpoint(KINDS).save_pretrained(path / "source", max_shard_size="40KB")
    gs.quantize(path / "source", path / "int8")
    return path


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Budgets of a small model's size: a pass needs room for few rows."""
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
    """The model with these layers kept, so many loading ahead, and buffers that are poisoned when they are free."""
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
    one, other = resident(folder, kind, dtype), streamed(folder, kind, kept, ahead, dtype, direct)
    a, b = (gs.trace(prompt(13), model=model) for model in (one, other))
    assert torch.equal(a.logits, b.logits)
    for site in ("pattern", "mlp_act", "resid_post"):
        assert torch.equal(a[site, 3], b[site, 3])
    options: dict[str, Any] = {"site": "z", "by": ("layer", "head"), "progress": False}
    swept = [gs.sweep(prompt(9), prompt(9, seed=1), METRIC, **options, model=m).values for m in (one, other)]
    assert (swept[0] == swept[1]).all()
    assert one.fingerprint == other.fingerprint


@pytest.mark.parametrize("kind", ["source", "int8"])
def test_gradients_go_through_streamed_layers(folder: Path, kind: str) -> None:
    one, other = resident(folder, kind), streamed(folder, kind, (1,), 1)
    sites = [("resid_pre", 0), ("z", 2), ("pattern", 3), "embed"]
    grads = [gs.trace(prompt(9), model=model).grad(METRIC, sites) for model in (one, other)]
    assert all(torch.equal(grads[0][site], grads[1][site]) for site in sites)
    options: dict[str, Any] = {"site": "mlp_out", "by": ("layer", "pos")}
    found = [gs.attribute(prompt(9), prompt(9, seed=1), METRIC, **options, model=m).values for m in (one, other)]
    assert (found[0] == found[1]).all()


@pytest.mark.parametrize("kind", ["source", "int8"])
def test_a_layer_that_was_handed_out_stays_what_it_is(folder: Path, kind: str) -> None:
    one, other = resident(folder, kind), streamed(folder, kind, (1,), 1)
    layers = [other.layer(i) for i in range(5)]
    gs.trace(prompt(9), model=other)
    for i, layer in enumerate(layers):
        for name, parameter in layer.named_parameters():
            assert torch.equal(parameter, one.layer(i).get_parameter(name))
    assert other.layer(2) is layers[2]
    assert other.layer(-1) is layers[4]


def test_a_layer_of_a_pass_is_empty_once_the_pass_has_gone_on(folder: Path) -> None:
    first, *_ = streamed(folder, "int8", (), 1).layers()
    assert first.mlp.up_proj.weight.is_meta  # a use of it is an error, not another layer's numbers


@pytest.mark.usefixtures("little")
@pytest.mark.parametrize("kind", ["source", "int8"])
def test_every_budget_gives_the_same_numbers(folder: Path, kind: str) -> None:
    whole = gs.trace(prompt(13), model=resident(folder, kind))
    with pytest.raises(BudgetError, match=r"needs [\d,]+ bytes at least") as told:
        gs.load(folder / kind, memory=100)
    least = int(str(told.value).split("needs ")[1].split(" bytes")[0].replace(",", ""))
    kept, embedded = [], []
    for memory in (least, 2 * least, 3 * least, 20 * least):
        model = gs.load(folder / kind, memory=memory)
        layer_source: Any = model.network.layer_source
        kept.append(len(layer_source.kept))
        embedded.append(not isinstance(model.network.model.embed_tokens, FileEmbedding))
        assert torch.equal(gs.trace(prompt(13), model=model)["resid_post", -1], whole["resid_post", -1])
        assert torch.allclose(gs.trace(prompt(13), model=model).logits, whole.logits, atol=1e-5)
        assert model.fingerprint == whole.model.fingerprint
        assert model.n_params == whole.model.n_params
    assert kept == sorted(kept)
    assert (kept[0], kept[-1]) == (0, 5)
    assert (embedded[0], embedded[-1]) == (False, True)
    with pytest.raises(BudgetError):
        gs.load(folder / kind, memory=least - 1)


@pytest.mark.usefixtures("little")
def test_gradients_and_sweeps_go_through_an_embedding_in_its_file(folder: Path) -> None:
    with pytest.raises(BudgetError) as told:
        gs.load(folder / "int8", memory=1)
    least = int(str(told.value).split("needs ")[1].split(" bytes")[0].replace(",", ""))
    one, other = resident(folder, "int8"), gs.load(folder / "int8", memory=least)
    assert isinstance(other.network.model.embed_tokens, FileEmbedding)
    grads = [gs.trace(prompt(9), model=model).grad(METRIC, "embed") for model in (one, other)]
    assert torch.allclose(*grads, atol=1e-5)
    options: dict[str, Any] = {"site": "resid_pre", "by": ("layer", "pos"), "progress": False}
    found = [gs.sweep(prompt(9), prompt(9, seed=1), METRIC, **options, model=m).values for m in (one, other)]
    assert abs(found[0] - found[1]).max() <= 1e-4


def test_more_memory_keeps_no_fewer_layers_and_stays_within_it() -> None:
    config = gs.GemmaConfig.from_dict(checkpoint("lg" * 8).config.to_dict())
    for kind in ("int8", "stored"):
        sizes = Sizes.of(config, kind, torch.bfloat16)
        before = -1
        for memory in range(4_000_000, 9_000_000, 60_000):
            try:
                share = place_layers(config, sizes, torch.bfloat16, memory)
            except BudgetError:
                assert before == -1
                continue
            assert share.weights + share.workspace <= memory
            assert len(share.kept) >= before
            before = len(share.kept)
        assert before > 0


# -- what is left behind --


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("gemmascope-stream")]


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_the_middle_leaves_no_thread_and_no_lock(folder: Path, kind: type[BaseException]) -> None:
    model = streamed(folder, "int8", (1,), 1)
    whole = gs.trace(prompt(9), model=resident(folder, "int8"))
    seen: list[str] = []

    def failing(site: str, layer: int | None, value: Tensor) -> Tensor:
        seen.extend(threads())
        if layer == 2:
            raise kind("enough")
        return value

    with pytest.raises(kind, match="enough") as held:
        model.run(prompt(9), tap=failing)
    assert seen  # there was a thread
    assert threads() == []
    assert torch.equal(gs.trace(prompt(9), model=model).logits, whole.logits)
    assert held.value is not None


def test_a_pass_that_was_left_open_is_ended_by_the_next(folder: Path) -> None:
    model = streamed(folder, "int8", (), 1)
    left: Iterator[Any] = model.layers()
    next(left)
    whole = gs.trace(prompt(9), model=resident(folder, "int8"))
    assert torch.equal(gs.trace(prompt(9), model=model).logits, whole.logits)
    with pytest.raises(DeviceError, match="another pass"):
        next(left)
    assert threads() == []


def test_threads_take_turns(folder: Path) -> None:
    model = streamed(folder, "int8", (), 1)
    whole = gs.trace(prompt(9), model=resident(folder, "int8")).logits
    found: list[Tensor] = []
    working = [threading.Thread(target=lambda: found.append(gs.trace(prompt(9), model=model).logits)) for _ in range(4)]
    for thread in working:
        thread.start()
    for thread in working:
        thread.join(60)
    assert len(found) == 4
    assert all(torch.equal(logits, whole) for logits in found)


def test_fifty_passes_hold_no_more_than_one(folder: Path) -> None:
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


def test_a_sweep_uses_the_room_that_the_budget_leaves(folder: Path) -> None:
    model = gs.load(folder / "int8", memory="1GiB")
    model.network.work_bytes = 10
    with pytest.raises(SweepError, match="memory of 10 bytes"):
        gs.sweep(prompt(9), prompt(9, seed=1), METRIC, site="z", model=model, by=("layer", "head"))


@pytest.mark.parametrize("swept", [True, False])
def test_running_out_of_memory_says_what_was_planned(folder: Path, swept: bool) -> None:
    model = gs.load(folder / "int8", memory="1GiB")
    planned = model.network.work_bytes

    held: list[weakref.ref[Tensor]] = []

    def full(value: Tensor) -> Tensor:
        held.append(weakref.ref(value))
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    edits = [gs.edit("mlp_out", full, layer=2)]
    options: dict[str, Any] = {"site": "z", "by": ("layer", "head"), "edits": edits, "model": model}
    with pytest.raises(BudgetError, match=f"{planned:,} bytes were planned.*tried to allocate") as told:
        gs.sweep(prompt(9), prompt(9, seed=1), METRIC, **options) if swept else gs.trace(prompt(9), model=model, edits=edits)
    assert told.value is not None
    assert [ref() for ref in held] == [None]  # though the error, and with it the traceback, is held here
    assert threads() == []
    gs.trace(prompt(9), model=model)


def test_the_end_of_an_old_pass_leaves_a_new_one_alone(folder: Path) -> None:
    model = streamed(folder, "int8", (), 1)
    old = model.layers()
    next(old)
    new = model.layers()
    layer = next(new)
    del old
    assert not layer.mlp.up_proj.weight.is_meta
    new.close()
    assert threads() == []


def test_a_pass_of_a_thread_that_is_gone_is_ended(folder: Path) -> None:
    model = streamed(folder, "int8", (), 1)
    left: list[Any] = []

    def leave() -> None:
        left.append(model.layers())
        next(left[0])

    thread = threading.Thread(target=leave)
    thread.start()
    thread.join()
    whole = gs.trace(prompt(9), model=resident(folder, "int8"))
    assert torch.equal(gs.trace(prompt(9), model=model).logits, whole.logits)


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
