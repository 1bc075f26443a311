"""Faults of the GPU path, each on an emulated device: what a thread, the session or a user's function may do to it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import checkpoint, prompt
from emulated_cuda import EmulatedCuda
from torch import Tensor

import gemmascope as gs
from gemmascope.errors import BudgetError
from gemmascope.memory.placement import free_bytes
from gemmascope.model.model import Model
from gemmascope.nano.training.ties import Texts, best_tie
from gemmascope.streaming.cuda import CudaTransfer
from gemmascope.streaming.layer_stream import LayerStream

METRIC = gs.logit_diff(5, 9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faults")
    checkpoint("lgl").save_pretrained(path / "source")
    gs.quantize(path / "source", path / "int8")
    return path


def streaming(model: Model) -> Model:
    """The model with no layer kept on its device."""
    source: Any = model.network.layer_source
    transfer = CudaTransfer(source.device, dict(enumerate(source.packed)))
    model.network.layer_source = LayerStream(model.config, source.packed, torch.float32, source.device, transfer=transfer)
    return model


@pytest.fixture
def cuda() -> Iterator[EmulatedCuda]:
    with EmulatedCuda(n_devices=2) as emulation:
        yield emulation
        gc.collect()


@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_cuda_without_an_index_is_resolved_when_a_model_is_loaded(folder: Path, cuda: EmulatedCuda, device: str) -> None:
    want = gs.trace(prompt(9), model=gs.load(folder / "int8", device="cpu")).logits
    with torch.cuda.device(1):
        model = streaming(gs.load(folder / "int8", device=device, memory="1GiB"))
    assert model.device == torch.device("cuda", 1)
    found: list[Tensor] = []

    def elsewhere() -> None:  # a thread begins on cuda:0
        found.append(gs.trace(prompt(9), model=model).logits)
        found.append(gs.generate(prompt(9), model=model, max_new_tokens=1).trace().logits[:9])

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    for logits in found:
        torch.testing.assert_close(logits.cpu(), want, rtol=1e-5, atol=1e-5)
    assert not cuda.memories[0].peak


def test_a_function_of_the_user_may_return_a_tensor_on_the_cpu(folder: Path, cuda: EmulatedCuda) -> None:
    def halved(value: Tensor) -> Tensor:
        return torch.from_numpy(value.detach().cpu().numpy() * 0.5)

    def tap(site: str, layer: int | None, value: Tensor) -> Tensor:
        return value.cpu()

    on_cpu, on_cuda = (gs.load(folder / "source", device=device) for device in ("cpu", "cuda"))
    for site in ("resid_post", "pattern", "z"):
        place = {"q_pos": 5} if site == "pattern" else {"pos": [3, 5]}
        edits = [gs.edit(site, halved, layer=1, **place)]
        a, b = (gs.trace(prompt(9), model=model, edits=edits) for model in (on_cpu, on_cuda))
        torch.testing.assert_close(b.logits.cpu(), a.logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(b[site, 1].cpu(), a[site, 1], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(b.grad(METRIC, ("z", 2)).cpu(), a.grad(METRIC, ("z", 2)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(on_cuda.run(prompt(9), tap=tap).cpu(), on_cpu.run(prompt(9)), rtol=1e-5, atol=1e-5)
    edits = [gs.edit("resid_post", halved, layer=1)]
    a, b = (gs.generate(prompt(5), model=model, max_new_tokens=2, edits=edits) for model in (on_cpu, on_cuda))
    assert b.ids.tolist() == a.ids.tolist()


def test_memory_that_torch_keeps_counts_as_free(cuda: EmulatedCuda) -> None:
    device = torch.device("cuda", 0)
    before = free_bytes(device)
    tensor = torch.empty(10**6, dtype=torch.uint8, device=device)
    assert before - free_bytes(device) == cuda.memories[0].allocated
    del tensor
    assert torch.cuda.mem_get_info(device)[0] < before
    assert free_bytes(device) == before


@pytest.mark.parametrize("kind", ["source", "int8"])
def test_a_model_that_does_not_fit_says_so(folder: Path, kind: str) -> None:
    with EmulatedCuda(total=150_000, context=50_000), pytest.raises(BudgetError, match="ran out of memory") as told:
        gs.load(folder / kind, device="cuda")
    assert "memory=" in str(told.value)
    assert "cuda:0" in str(told.value)


def test_a_card_without_bfloat16_gets_the_advice_to_take_float32(folder: Path) -> None:
    with EmulatedCuda(capability=(7, 5)):
        with pytest.warns(gs.GemmascopeWarning, match="dtype='float32'"):
            gs.load(folder / "source", device="cuda", dtype="bfloat16")
        gs.load(folder / "source", device="cuda")
    with EmulatedCuda(capability=(8, 0)):
        gs.load(folder / "source", device="cuda", dtype="bfloat16")


def test_a_site_of_a_streamed_layer_takes_no_more_than_a_pass(folder: Path, cuda: EmulatedCuda) -> None:
    model = streaming(gs.load(folder / "int8", device="cuda:0", memory="1GiB"))
    trace, memory = gs.trace(prompt(9), model=model), cuda.memories[0]
    before = memory.peak = memory.allocated
    gs.trace(prompt(9), model=model)
    of_pass = memory.peak - before
    for site in ("z", "pattern", "mlp_act"):
        before = memory.peak = memory.allocated
        value = trace[site, 1]
        assert memory.peak - before <= of_pass + 20_000  # the values that are kept
        assert torch.equal(value.cpu(), gs.trace(prompt(9), model=gs.load(folder / "int8", device="cpu"))[site, 1])


def test_a_lens_of_all_layers_holds_no_more_logits_on_the_device_than_its_limit(
    cuda: EmulatedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = gs.load("nano", device="cuda:0")
    trace, memory = gs.trace("Mary went to the store. " * 9, model=model), cuda.memories[0]
    one_layer = 4 * len(trace) * model.config.vocab_size
    monkeypatch.setattr("gemmascope.run.logits.LOGIT_BYTES", 3 * one_layer)  # the products, and the two that the cap makes
    before = memory.peak = memory.allocated
    trace.lens(pos=None)
    stream = 4 * model.n_layers * len(trace) * model.config.d_model
    assert memory.peak - before - stream < 4 * one_layer


def test_concepts_are_tied_to_features_of_a_dictionary_on_a_device(cuda: EmulatedCuda) -> None:
    found = []
    for device in ("cpu", "cuda"):
        model = gs.load("nano", device=device)
        measured = Texts.of(gs.load_sae("nano", model=model), model, "emulated", n=8)
        found.append(
            (best_tie(measured, 987), measured.tie(987, "a person's name", 0.5), measured.of_feature(987)[0].tolist())
        )
    assert found[0][:2] == found[1][:2]
    assert found[0][2] == pytest.approx(found[1][2], rel=1e-5)
