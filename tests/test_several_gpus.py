"""A model on several GPUs, which are emulated (emulated_cuda/): every call gives one GPU's numbers bit for bit."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint, prompt
from emulated_cuda import EmulatedCuda
from every_call import CALLS, CLEAN, CORRUPT, DIFF, numbers
from torch import Tensor

import gemmascope as gs
from gemmascope.__main__ import main
from gemmascope.errors import BudgetError, DeviceError
from gemmascope.memory.placement import RESERVED_ROWS, Sizes, work_bytes
from gemmascope.model.model import Model

TWO = ["cuda:0", "cuda:1"]
HOME, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)
VECTOR = torch.linspace(-1, 1, 128)


def trace(model: Model, **options: Any) -> gs.Trace:
    return gs.trace(CLEAN, model=model, **options)


def with_own_tensor(model: Model) -> Tensor:
    """An edit by a function, and a tap, that hold a tensor where the model's results are."""
    vector = VECTOR.to(model.device)
    edited = trace(model, edits=[gs.edit("resid_post", lambda x: x + vector, layer=4)])
    tapped = model.run(CLEAN, lambda site, layer, x: x + vector if (site, layer) == ("resid_mid", 5) else x)
    return torch.cat((edited.logits, tapped))


def across_the_boundary(model: Model) -> list[Any]:
    """Layers of both GPUs at once: nano's layers 0 to 2 are on one, 3 to 5 on the other."""
    run = trace(model)
    edited = trace(model, edits=[gs.patch("resid_post", run["resid_post", 1], layer=4), gs.ablate("z", layer=0, head=1)])
    return [
        gs.path_sweep(CLEAN, CORRUPT, DIFF, layer=[1, 4], head=0, mlps="frozen", model=model, progress=False).values,
        gs.composition(model, "v", senders=[2], receivers=[3]).scores,
        gs.attention_summary(run).mean["entropy"],
        [gs.direct_logits(edited, " Mary", by=by).parts for by in ("token",)],
        [gs.lens(edited, site=site, answer=" Mary").entropy for site in ("attn_out", "stream")],
        gs.lens(run, site="head_out", head=2).entropy,
        run.edges("pattern", 4, head=1, q_pos=-1),
        run["resid_post", 1] + run["resid_post", 5] + run["resid_mid", 4],
        torch.stack(run.stream),
        edited.grad(DIFF, ("attn_out", 1)) + edited.grad(DIFF, ("attn_out", 5)),
    ]


def saved_and_opened(model: Model, folder: Path) -> list[Any]:
    trace(model, edits=[gs.patch("z", torch.zeros(32), layer=4, head=1)]).save(folder / "run.trace")
    opened = gs.open_trace(folder / "run.trace", model=model)
    return [opened["z", 4], opened.grad(DIFF, ("z", 1)), gs.direct_logits(opened, " Mary", by="head").parts]


# Of every call, those whose parts meet between layers. The others read what these return.
NAMES = (
    "sites", "edits", "sweep z", "sweep resid_pre", "grad", "head_scores", "generate several", "direction", "splice",
)  # fmt: skip
HERE: dict[str, Callable[[Model, Path], Any]] = {
    **{name: lambda model, folder, call=CALLS[name]: call(model) for name in NAMES},
    "functions": lambda model, folder: with_own_tensor(model),
    "across the boundary": lambda model, folder: across_the_boundary(model),
    "saved and opened": saved_and_opened,
}


@pytest.fixture(scope="module")
def nanos() -> tuple[EmulatedCuda, Model, Model]:
    emulation = EmulatedCuda(n_devices=2)
    with emulation:
        return emulation, gs.load("nano", device="cuda:0"), gs.load("nano", device=TWO)


@pytest.mark.parametrize("call", HERE)
def test_every_call_gives_the_numbers_of_one_gpu(
    call: str, nanos: tuple[EmulatedCuda, Model, Model], tmp_path: Path
) -> None:
    emulation, on_one, on_two = nanos
    with emulation:
        want, found = numbers(HERE[call](on_one, tmp_path)), numbers(HERE[call](on_two, tmp_path))
    assert want.size
    np.testing.assert_array_equal(found, want)
    assert emulation.races == []


def test_results_are_on_the_first_gpu_and_layers_on_both(nanos: tuple[EmulatedCuda, Model, Model]) -> None:
    emulation, _, model = nanos
    assert (model.device, model.layer_devices) == (HOME, (HOME,) * 3 + (SECOND,) * 3)
    assert [layer.device for layer in model.layers()] == list(model.layer_devices)
    assert "device=['cuda:0', 'cuda:1']" in repr(model)
    assert "cuda:0 layers 0 to 2, cuda:1 layers 3 to 5" in repr(model)
    with emulation:
        run = trace(model)
        values = [run[site.name, 4] if site.in_layer else run[site.name] for site in gs.SITES.values()]
        assert {value.device for value in (*values, *run.stream, run.grad(DIFF, ("z", 4)))} == {HOME}


def test_rows_cross_a_boundary_once_and_nobody_waits(nanos: tuple[EmulatedCuda, Model, Model]) -> None:
    emulation, on_one, on_two = nanos
    ids = [2, 5, 9, 11, 3]
    with emulation:
        syncs = []
        for model in (on_one, on_two):
            gs.trace(ids, model=model)
            emulation.counts.reset()
            model.run(ids)
            syncs.append(emulation.counts.n_syncs)
        assert emulation.counts.between_devices.total() == 3, str(emulation.counts)  # rows, positions; and rows back
        assert syncs[0] == syncs[1]
        emulation.counts.reset()
        gs.sweep(ids, [2, 5, 8, 11, 3], gs.logit_diff(7, 9), site="resid_pre", model=on_two, progress=False)
        assert 0 < emulation.counts.between_devices.total() <= 60, str(emulation.counts)


# -- packed and streamed layers --


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of 7 layers, as it is and in int8."""
    folder = tmp_path_factory.mktemp("seven")
    checkpoint("lglglgl").save_pretrained(folder / "plain")
    gs.quantize(folder / "plain", folder / "int8")
    return {"plain": folder / "plain", "int8": folder / "int8"}


def computed(model: Model) -> Any:
    run = gs.trace(prompt(6), model=model)
    parts = [
        run.logits, run["pattern", 3], run["z", 6], run.grad(gs.logit_diff(5, 9), ("resid_pre", 0)),
        gs.generate(prompt(5), model=model, max_new_tokens=3).logprobs,
    ]  # fmt: skip
    return numbers(parts)


def least(folder: Path) -> int:
    """The least budget, which the refusal of a smaller one names."""
    with pytest.raises(BudgetError, match=r"needs [0-9,]+ bytes") as refused:
        gs.load(folder, device="cuda:0", memory=1)
    return int(str(refused.value).partition("needs ")[2].partition(" bytes")[0].replace(",", ""))


@pytest.fixture
def three() -> Iterator[EmulatedCuda]:
    """Three GPUs. Models are freed while they are there."""
    with EmulatedCuda(n_devices=3) as emulation:
        yield emulation
        gc.collect()


@pytest.mark.parametrize("kind", ["plain", "int8"])
@pytest.mark.parametrize("memory", [None, "tight"])
def test_packed_and_streamed_layers(kind: str, memory: str | None, folders: dict[str, Path], three: EmulatedCuda) -> None:
    want = computed(gs.load(folders[kind], device="cuda:0"))
    budget = None if memory is None else least(folders[kind])
    model = gs.load(folders[kind], device=["cuda:2", "cuda:1"], memory=budget)
    source: Any = model.network.layer_source
    if memory is not None:
        assert all(stream.buffers for stream in source.streams)
        for stream, device in zip(source.streams, (2, 1), strict=True):
            assert {buffer.device.index for buffer in stream.buffers} == {device}
    assert (model.device.index, set(model.layer_devices)) == (2, {torch.device("cuda", 2), SECOND})
    np.testing.assert_array_equal(computed(model), want)
    assert three.races == []


# -- which devices, and what a plan says --


@pytest.mark.parametrize(
    ("device", "error", "message"),
    [
        (["cuda:0", "cuda:0"], DeviceError, "names 'cuda:0' twice"),
        (["cuda", torch.device("cuda", 0)], DeviceError, "names 'cuda:0' twice"),
        (["cuda:0", "cuda:2"], DeviceError, "there are 2 GPUs, cuda:0 to cuda:1"),
        (["cuda:0", "cpu"], DeviceError, "'cpu' is no GPU"),
        (["cpu", "cpu"], DeviceError, "'cpu' is no GPU"),
        ([], DeviceError, "names no device"),
        (["cuda:0", 1.5], DeviceError, r"device=1\.5 is no device"),
        ({"cuda:0": 1}, DeviceError, "is no device"),
    ],
)
def test_devices_that_cannot_be_meant_are_refused(device: Any, error: type[Exception], message: str) -> None:
    with EmulatedCuda(n_devices=2):
        for call in (gs.load, gs.plan):
            with pytest.raises(error, match=message):
                call("nano", device=device)


def test_more_devices_than_layers_are_refused(folders: dict[str, Path]) -> None:
    with EmulatedCuda(n_devices=8), pytest.raises(BudgetError, match="8 devices for 7 layers"):
        gs.load(folders["plain"], device=[f"cuda:{n}" for n in range(8)])


def test_a_model_in_memory_stays_on_its_device() -> None:
    with EmulatedCuda(n_devices=2), pytest.raises(DeviceError, match="stays on its one device"):
        gs.load(checkpoint("l"), device=TWO)


def test_auto_takes_as_few_gpus_as_hold_the_model() -> None:
    config, context = gs.plan("nano", device="cpu").config, 5 * 10**8
    sizes, work = Sizes.of(config, "stored", torch.float32), work_bytes(config, torch.float32, RESERVED_ROWS)
    whole = sizes.weights(6, 0, embedded=True) + work
    for room, n_used in ((whole, 1), (whole - 1, 2), (whole - 4 * sizes.layer, 3)):
        with EmulatedCuda(n_devices=3, total=room + context):
            planned = gs.plan("nano")
            model = gs.load("nano")
        assert len(set(model.layer_devices)) == n_used
        assert len(planned.devices) == (n_used if n_used > 1 else 0)
        on = {one.device: list(one.layers) for one in planned.devices}
        assert all(model.layer_devices[layer] == device for device, layers in on.items() for layer in layers)


def test_gpus_that_are_too_small_are_named_with_their_bytes() -> None:
    named = r"cuda:0 has 8,000,000 free, cuda:1 has 8,000,000 free. The first needs [0-9,]+ bytes"
    with EmulatedCuda(n_devices=2, total=5 * 10**8 + 8_000_000):
        with pytest.raises(BudgetError, match=named):
            gs.load("nano")
        planned = gs.plan("nano", device=TWO)
        assert planned.fits_here is False
        assert "It does not fit" in repr(planned)
    with EmulatedCuda(n_devices=2), pytest.raises(BudgetError, match="cuda:1: memory of 1,000 bytes is too little"):
        gs.load("nano", device=["cuda:1", "cuda:0"], memory=1000)


def test_a_plan_says_what_each_gpu_holds(capsys: pytest.CaptureFixture[str]) -> None:
    with EmulatedCuda(n_devices=2):
        one, two = (gs.plan("27b", weights="int8", context=1024, device=device) for device in ("cuda:0", TWO))
        assert main(["plan", "27b", "--weights", "int8", "--device", "cuda:0,cuda:1"]) == 0
    assert "cuda:1" in capsys.readouterr().out
    lines = repr(two).splitlines()
    assert any(line.split()[0] == "cuda:0" and "embedding, layers 0 to 22" in line for line in lines if line)
    assert any(line.split()[0] == "cuda:1" and "layers 23 to 45" in line for line in lines if line)
    assert max(map(len, lines)) <= 125
    assert "layers 23 to 45" in two._repr_html_()
    size = {p.name: {part.name: part.n_bytes for part in p.parts} for p in (one, two)}["27b"]
    for name in ("embedding", "layers that stay", "keys and values", "trace", "logits"):  # what lies once, lies once
        assert size[name] == sum(part.n_bytes for part in one.parts if part.name == name)
    for task, n_bytes in two.peaks.items():
        assert n_bytes == sum(card.peaks[task] for card in two.devices)
    assert two.cards() == one.cards()
    assert [row["layers"] for row in two.to_dict()["devices"]] == [list(range(23)), list(range(23, 46))]
    assert two.fits_here


def test_cuda_takes_its_own_part() -> None:
    with EmulatedCuda():
        on_gpu, on_cpu = (gs.plan("2b", context=16, device=device) for device in ("cuda:0", "cpu"))
    names = [part.name for part in on_gpu.parts]
    assert {"cuBLAS workspace", "CUDA context"} == set(names) - {part.name for part in on_cpu.parts}
    assert on_gpu.peaks["trace"] - on_cpu.peaks["trace"] == 2**25  # the context is outside the sums
    # An H100 took 5,268,357,120 bytes for a trace of 16 positions of 2B.
    assert abs(on_gpu.peaks["trace"] - 5_268_357_120) < 1_000_000
