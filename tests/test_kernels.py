"""Triton kernels compute what plain torch does: in Triton's interpreter where there is no card, and compiled for two cards.

The interpreter runs a kernel's statements on the CPU. What it cannot show, races and speed, only a card can.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import checkpoint, checkpoint_3, prompt
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreted import mend_bfloat16
from torch import Tensor
from torch.nn import functional as F
from transformers import Gemma2ForCausalLM, Gemma3ForCausalLM

import gemmascope as gs
from gemmascope.errors import DeviceError
from gemmascope.kernels import switch
from gemmascope.model import maths
from gemmascope.model.model import Model
from gemmascope.model.tap import Tap
from gemmascope.streaming import int8, int8_linear, layer_stream
from gemmascope.streaming.layer_stream import HostTransfer, LayerStream

pytest.importorskip("triton", reason="the kernels need Triton")
from gemmascope.kernels import int8 as int8_kernels
from gemmascope.kernels import pointwise
from gemmascope.streaming.int8_linear import Int8Linear

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
METRIC = gs.logit_diff(5, 9)
cases = settings(deadline=None, derandomize=True, max_examples=15)


@pytest.fixture(scope="module", autouse=True)
def rounding() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if DEVICE.type == "cpu":
            mend_bfloat16(patch)
        yield


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(autouse=True)
def no_other_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain torch on the CPU is what Triton's kernels are compared with."""
    monkeypatch.setattr(switch, "_cpu_refusal", lambda: "of this test")
    monkeypatch.setattr(int8_linear, "int8_kernels", lambda device: int8_kernels)


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def assert_rounds_alike(found: Tensor, plain: Tensor) -> None:
    """Equal to some units in the last place and, in bfloat16, equal bits but where a number lay between two."""
    assert found.dtype == plain.dtype
    assert found.shape == plain.shape
    largest = float(plain.abs().max()) if plain.numel() else 0.0
    torch.testing.assert_close(found, plain, rtol=2**-7 if found.dtype == torch.bfloat16 else 2e-6, atol=2e-6 * largest)
    if found.dtype == torch.bfloat16:
        assert int((found != plain).sum()) <= 2 + 0.03 * plain.numel()


# -- pointwise functions --


@cases
@given(st.integers(1, 9), st.integers(1, 200), st.sampled_from([1e-3, 1.0, 300.0]), DTYPES, DTYPES, st.integers(0, 99))
def test_the_norm(rows: int, width: int, size: float, dtype: torch.dtype, gain: torch.dtype, seed: int) -> None:
    x, weight = random(rows, width, seed=seed, dtype=dtype) * size, random(width, seed=seed + 1, dtype=gain)
    assert_rounds_alike(pointwise.rms_norm(x, weight, 1e-6), maths.rms_norm(x, weight, 1e-6))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes with numpy, which tells of overflow
def test_a_norm_whose_square_overflows_is_nan() -> None:
    x, weight = torch.full((1, 8), 1e20, device=DEVICE), torch.zeros(8, device=DEVICE)
    assert pointwise.rms_norm(x, weight, 1e-6).isnan().all()
    assert maths.rms_norm(x, weight, 1e-6).isnan().all()
    assert pointwise.rms_norm(x * torch.nan, weight, 1e-6).isnan().all()
    assert torch.equal(pointwise.rms_norm(x * 0, weight, 1e-6), x * 0)


@cases
@given(st.integers(1, 5), st.integers(1, 700), st.sampled_from([0.1, 1.0, 2.5]), DTYPES, st.integers(0, 99))
def test_the_gate(rows: int, width: int, size: float, dtype: torch.dtype, seed: int) -> None:
    gate, up = (random(rows, width, seed=seed + i, dtype=dtype) * size for i in range(2))
    assert_rounds_alike(pointwise.gelu_gate(gate, up), maths.gelu_gate(gate.clone(), up))


@cases
@given(st.integers(1, 2000), st.sampled_from([0.01, 1.0, 40.0, 1e4]), st.floats(0.5, 60), DTYPES, st.integers(0, 99))
def test_the_soft_cap(n: int, size: float, cap: float, dtype: torch.dtype, seed: int) -> None:
    x = random(n, seed=seed, dtype=dtype) * size
    found = pointwise.soft_cap(x, cap)
    assert_rounds_alike(found, maths.soft_cap(x, cap))
    assert torch.equal(pointwise.soft_cap(-x, cap), -found)
    assert pointwise.soft_cap(x, None) is x


def test_the_soft_cap_is_exact_for_small_numbers_and_at_its_ends() -> None:
    small = torch.logspace(-30, 1, 500, device=DEVICE)
    torch.testing.assert_close(pointwise.soft_cap(small, 30.0), maths.soft_cap(small, 30.0), rtol=1e-6, atol=0)
    ends = torch.tensor([torch.inf, -torch.inf, 1e30, torch.nan, 0.0], device=DEVICE)
    torch.testing.assert_close(pointwise.soft_cap(ends, 30.0), maths.soft_cap(ends, 30.0), equal_nan=True)


@cases
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([2, 12, 32]), DTYPES, st.integers(0, 99))
def test_the_rotation(rows: int, heads: int, d_head: int, dtype: torch.dtype, seed: int) -> None:
    x = random(rows, heads, d_head, seed=seed, dtype=dtype)
    cos, sin = maths.rope_table(torch.arange(rows, device=DEVICE) * 7 + seed, d_head, 10000.0)
    assert_rounds_alike(pointwise.rotate(x, cos, sin), maths.rotate(x, cos, sin))
    one_position = cos[:1].expand(rows, -1), sin[:1].expand(rows, -1)
    assert_rounds_alike(pointwise.rotate(x, *one_position), maths.rotate(x, *one_position))


def test_views_and_empty_tensors() -> None:
    x, weight = random(6, 4, 8, seed=0), random(6, seed=1)
    turned = x.transpose(0, 2)
    assert_rounds_alike(pointwise.rms_norm(turned, weight, 1e-6), maths.rms_norm(turned, weight, 1e-6))
    assert_rounds_alike(pointwise.soft_cap(turned, 3.0), maths.soft_cap(turned, 3.0))
    gate = turned[0]
    assert_rounds_alike(pointwise.gelu_gate(gate, gate), maths.gelu_gate(gate.clone(), gate))
    cos, sin = maths.rope_table(torch.arange(8, device=DEVICE), 6, 100.0)
    assert_rounds_alike(pointwise.rotate(turned, cos, sin), maths.rotate(turned, cos, sin))
    empty = x[:0]
    assert pointwise.soft_cap(empty, 3.0).shape == pointwise.gelu_gate(empty, empty).shape == empty.shape
    assert pointwise.rms_norm(empty, random(8, seed=1), 1e-6).shape == empty.shape
    assert pointwise.rotate(empty, cos[:0, :8], sin[:0, :8]).shape == empty.shape


# -- int8 matrices --


def quantised(n_out: int, n_in: int, seed: int) -> tuple[Tensor, Tensor]:
    numbers = torch.empty(n_out, n_in, dtype=torch.int8)
    scale = torch.empty(n_out, int8.n_groups(n_in), dtype=torch.float16)
    int8.quantise(random(n_out, n_in, seed=seed).cpu() / n_in**0.5, numbers, scale, "w")
    return numbers.to(DEVICE), scale.to(DEVICE)


def dequantised(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    weight = torch.empty(numbers.shape, dtype=dtype, device=DEVICE)
    int8.dequantise(numbers, scale, weight)
    return weight


@cases
@given(st.integers(1, 80), st.integers(1, 400), DTYPES, st.integers(0, 99))
def test_dequantised_weights_are_the_bits_of_plain_torch(n_out: int, n_in: int, dtype: torch.dtype, seed: int) -> None:
    numbers, scale = quantised(n_out, n_in, seed)
    found = torch.full(numbers.shape, torch.nan, dtype=dtype, device=DEVICE)
    int8_kernels.dequantise(numbers, scale, found, int8.GROUP)
    assert torch.equal(found, dequantised(numbers, scale, dtype))


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


# 2,048 inputs are split in four parts, whose sums are added.
@cases
@given(st.integers(1, 64), st.integers(1, 80), st.sampled_from([1, 100, 128, 300, 2048]), DTYPES, st.integers(0, 99))
def test_a_product_is_no_further_from_the_exact_one_than_todays(
    n_rows: int, n_out: int, n_in: int, dtype: torch.dtype, seed: int
) -> None:
    numbers, scale = quantised(n_out, n_in, seed)
    x = random(n_rows, n_in, seed=seed + 1, dtype=dtype)
    exact = F.linear(x.double(), dequantised(numbers, scale, torch.float64))
    found, plain = int8_kernels.product(x, numbers, scale, int8.GROUP), F.linear(x, dequantised(numbers, scale, dtype))
    assert found.dtype == dtype
    # Sums that nearly cancel are as small as a rounding; plain torch rounds each bfloat16 weight as well.
    allowed = 5e-3 if dtype == torch.bfloat16 else 2e-6
    assert error(found, exact) <= max(error(plain, exact), allowed)
    torch.testing.assert_close(found, plain, rtol=0, atol=2 * allowed * float(exact.abs().max()) + 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_is_blind_to_its_neighbours_and_a_product_gives_the_same_bits_again(dtype: torch.dtype) -> None:
    numbers, scale = quantised(40, 1100, 0)
    assert int8_kernels.n_parts(2, scale.shape[1]) > 1
    x = random(9, 1100, seed=1, dtype=dtype)
    whole = int8_kernels.product(x, numbers, scale, int8.GROUP)
    assert torch.equal(int8_kernels.product(x, numbers, scale, int8.GROUP), whole)
    assert torch.equal(int8_kernels.product(x[3:7], numbers, scale, int8.GROUP), whole[3:7])


@pytest.mark.parametrize(("n_tiles", "n_groups"), [(1152, 36), (144, 288), (64, 36), (1, 1), (1, 3), (1, 500)])
def test_parts_are_as_many_as_keep_a_card_busy(n_tiles: int, n_groups: int) -> None:
    parts = int8_kernels.n_parts(n_tiles, n_groups)
    assert 1 <= parts <= max(1, n_groups // int8_kernels.LEAST_GROUPS)
    assert parts == 1 or (parts - 1) * n_tiles < int8_kernels.PROGRAMS


def linear(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Int8Linear:
    module = Int8Linear(torch.nn.Linear(numbers.shape[1], len(numbers), bias=False, device="meta", dtype=dtype))
    module.numbers, module.scale = (torch.nn.Parameter(x, requires_grad=False) for x in (numbers, scale))
    return module


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("many", [False, True], ids=["few rows", "many rows"])
def test_a_linear_map_and_its_gradient(many: bool, dtype: torch.dtype) -> None:
    numbers, scale = quantised(24, 200, 0)
    module, weight = linear(numbers, scale, dtype), dequantised(numbers, scale, dtype)
    assert torch.equal(module.weight, weight)
    x = random(int8_kernels.FEW_ROWS[dtype] + many, 200, seed=1, dtype=dtype)
    if many:
        assert torch.equal(module(x), F.linear(x, weight))
    with torch.enable_grad():
        x.requires_grad_()
        y = module(x)
        (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert torch.equal(y, module(x.detach()))
    assert torch.equal(grad, torch.ones_like(y) @ weight)
    assert module(x[:0]).shape == (0, 24)


def test_rows_of_another_dtype_or_an_emptied_map_are_refused() -> None:
    module = linear(*quantised(24, 200, 0), torch.float32)
    with pytest.raises(DeviceError, match=r"rows are torch.bfloat16, the layer computes in torch.float32"):
        module(random(3, 200, seed=1, dtype=torch.bfloat16))
    module.numbers = torch.nn.Parameter(module.numbers.to("meta"), requires_grad=False)
    with pytest.raises(DeviceError, match="once the next layer is requested"):
        module(random(3, 200, seed=1))
    assert module.weight.is_meta


# -- a whole model --


class Poisoning(HostTransfer):
    """Ruins what was in a buffer as soon as it may be filled again."""

    def release(self, buffer: Tensor) -> None:
        buffer.fill_(127)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return int8_folder(tmp_path_factory.mktemp("kernels"), checkpoint("lgl"))


def int8_folder(path: Path, source: Gemma2ForCausalLM | Gemma3ForCausalLM) -> Path:
    source.save_pretrained(path / "source")
    gs.quantize(path / "source", path / "int8")
    return path / "int8"


def load(folder: Path, dtype: str, kept: tuple[int, ...] = (0, 1, 2)) -> Model:
    """The int8 model with these layers kept, and buffers that are poisoned when they are free."""
    model = gs.load(folder, dtype=dtype, device=DEVICE)
    source: Any = model.network.layer_source
    if DEVICE.type == "cpu":
        model.network.layer_source = LayerStream(
            model.config, source.packed, getattr(torch, dtype), DEVICE, kept, transfer=Poisoning()
        )
    return model


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels compute on this machine as on a card."""
    monkeypatch.setattr(switch, "fuses", lambda x: not torch.is_grad_enabled())
    monkeypatch.setattr(layer_stream, "runs_kernels", lambda device: True)
    monkeypatch.setattr(switch, "_pointwise", lambda kind, name: getattr(pointwise, name))


class Names(Tap):
    """The sites that a pass goes through, in order."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int | None, torch.Size]] = []

    def rows(self, site: str, layer: int | None, value: Tensor, layout: Any) -> Tensor:
        self.seen.append((site, layer, value.shape))
        return value


@pytest.mark.parametrize(("n", "dtype", "family"), [(20, "float32", 2), (5, "bfloat16", 2), (9, "float32", 3)])
def test_a_model_computes_the_same_with_kernels(
    folder: Path, dtype: str, n: int, family: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if family == 3:
        folder = int8_folder(request.getfixturevalue("tmp_path"), checkpoint_3("lgl"))
    plain, names = load(folder, dtype), Names()
    logits = plain.run(prompt(n), names)
    request.getfixturevalue("kernels")
    model, again = load(folder, dtype), Names()
    calls = counted(monkeypatch)
    found = model.run(prompt(n), again)
    assert calls == {"rms_norm", "gelu_gate", "soft_cap", "rotate"}
    assert again.seen == names.seen
    scale = float(logits.abs().max())
    assert float((found - logits).abs().max()) <= (2e-5 if dtype == "float32" else 0.1) * scale
    assert not torch.equal(found, logits)
    assert model.fingerprint == plain.fingerprint


def counted(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of the pointwise kernels that run from now on."""
    names: set[str] = set()
    choose = switch._pointwise

    def choosing(kind: str, name: str) -> Any:
        names.add(name)
        return choose(kind, name)

    monkeypatch.setattr(switch, "_pointwise", choosing)
    return names


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("n", "dtype"), [(18, "float32"), (6, "bfloat16")])
def test_streamed_equals_resident_and_a_layer_that_runs_again_equals_its_run(folder: Path, dtype: str, n: int) -> None:
    one, other = load(folder, dtype), load(folder, dtype, kept=())
    a, b = (gs.trace(prompt(n), model=model) for model in (one, other))
    assert torch.equal(a.logits, b.logits)
    recorded: dict[str, Tensor] = {}

    def record(site: str, layer: int | None, value: Tensor) -> Tensor:
        if layer == 2 and site in ("q_rot", "mlp_act", "mlp_out"):
            recorded[site] = value.clone()
        return value

    one.run(prompt(n), record)
    for site in ("mlp_act", "mlp_out"):
        assert torch.equal(a[site, 2], b[site, 2])
    assert torch.equal(a["q_rot", 2], recorded["q_rot"])
    with closing(other.network.single(2)) as layers:
        assert torch.equal(a["resid_post", 2], next(layers)(a["resid_pre", 2], a.layout, Tap().at(2, a.layout)))


@pytest.mark.usefixtures("kernels")
def test_a_streamed_sweep_equals_a_resident_one(folder: Path) -> None:
    options: dict[str, Any] = {"site": "resid_pre", "by": ("layer", "pos"), "progress": False}
    models = load(folder, "float32"), load(folder, "float32", kept=(1,))
    one, other = (gs.sweep(prompt(3), prompt(3, seed=1), METRIC, **options, model=m).values for m in models)
    assert (one == other).all()


def test_gradients_agree(folder: Path, request: pytest.FixtureRequest) -> None:
    sites = [("resid_pre", 0), ("z", 1), "embed"]
    plain = gs.trace(prompt(4), model=load(folder, "float32")).grad(METRIC, sites)
    request.getfixturevalue("kernels")
    one, other = (gs.trace(prompt(4), model=load(folder, "float32", kept)).grad(METRIC, sites) for kept in ((0, 1, 2), (1,)))
    for site in sites:
        assert torch.equal(one[site], other[site])
        torch.testing.assert_close(one[site], plain[site], rtol=1e-3, atol=2e-5 * float(plain[site].abs().max()))


@pytest.mark.usefixtures("kernels")
def test_a_layer_of_a_pass_is_empty_once_the_pass_has_gone_on(folder: Path) -> None:
    model = load(folder, "float32", kept=())
    first, *_ = model.layers()
    layout = gs.trace(prompt(3), model=model).layout
    with pytest.raises(DeviceError, match="once the next layer is requested"):
        first(random(3, 32, seed=0), layout, Tap().at(0, layout))
    for i, layer in enumerate([model.layer(i) for i in range(3)]):
        source: Any = model.network.layer_source
        whole = dict(source.packed[i].by_name)
        assert layer.mlp.up_proj.weight.shape == whole["mlp.up_proj.weight"].shape


@pytest.mark.usefixtures("kernels")
def test_a_model_is_freed_with_its_last_reference(folder: Path) -> None:
    model = load(folder, "float32", kept=(1,))
    source: Any = model.network.layer_source
    alive = weakref.ref(source.kept[1])
    gc.disable()
    try:
        del model, source
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.usefixtures("kernels")
def test_threads_do_not_meet(folder: Path) -> None:
    if DEVICE.type == "cpu":
        pytest.skip("Triton's interpreter has one state for all threads")
    model = load(folder, "float32")
    whole = [model.run(prompt(4 + i)) for i in range(4)]
    found: list[Tensor] = [torch.empty(0)] * 4

    def run(i: int) -> None:
        found[i] = model.run(prompt(4 + i))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(torch.equal(*pair) for pair in zip(found, whole, strict=True))


# -- the switch --


def test_elsewhere_plain_torch_computes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    model = gs.load(folder, device="cpu")
    source: Any = model.network.layer_source
    assert source.scratch
    model.run(prompt(5))
    assert not calls
    assert not switch.runs_triton(torch.device("cpu"))
    assert "Triton" not in repr(model)


def test_a_cuda_device_says_which_way_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal, device = switch.triton_refusal.__wrapped__, torch.device("cuda", 0)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert refusal(device) == "this torch has no CUDA"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert "7.5" in refusal(device)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(switch, "find_spec", lambda _: None)
    assert refusal(device) == "Triton is not installed"
    monkeypatch.setattr(switch, "find_spec", lambda _: object())
    monkeypatch.setattr(switch, "_trial_error", lambda _: None)
    assert refusal(device) is None
    monkeypatch.setenv("GEMMASCOPE_TRITON", "0")
    assert refusal(device) == "GEMMASCOPE_TRITON is 0"
    for found, said in ((None, " with Triton kernels"), ("of this", " without Triton kernels (of this)")):
        monkeypatch.setattr(switch, "triton_refusal", lambda _, found=found: found)
        assert switch.describe(device) == said
        assert switch.runs_triton(device) == (found is None)


def test_kernels_that_do_not_run_or_are_wrong_are_told_and_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switch, "_pointwise", lambda kind, name: getattr(pointwise, name))
    assert switch._trial_error(DEVICE) is None
    monkeypatch.setattr(switch, "_pointwise", lambda kind, name: lambda x, cap: x)
    with pytest.warns(gs.GemmascopeWarning, match="its kernels give wrong numbers: .* computes with plain torch"):
        assert switch._trial_error(DEVICE) == "its kernels give wrong numbers"

    def failing(kind: str, name: str) -> Any:
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(switch, "_pointwise", failing)
    with pytest.warns(gs.GemmascopeWarning, match="no C compiler"):
        assert "no C compiler" in str(switch._trial_error(DEVICE))


def test_a_gradient_is_never_lost_in_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnCuda:
        is_cuda, device = True, torch.device("cuda", 0)

    monkeypatch.setattr(switch, "triton_refusal", lambda _: None)
    x: Any = OnCuda()
    assert switch.fuses(x)
    with torch.enable_grad():
        assert not switch.fuses(x)


# -- compiled --


def test_the_kernels_compile_for_cards(tmp_path: Path) -> None:
    script = Path(__file__).with_name("compile_kernels.py")
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 24
