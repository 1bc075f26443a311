"""The C++ kernels of the CPU compute what plain torch does, row by row whatever stands beside it; and when they compute."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import checkpoint, prompt
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import gemmascope as gs
from gemmascope.errors import DeviceError
from gemmascope.kernels import switch
from gemmascope.kernels.cpu import compiler, functions
from gemmascope.model import maths
from gemmascope.model.model import Model
from gemmascope.model.tap import Tap
from gemmascope.streaming import int8
from gemmascope.streaming.int8_linear import Int8Linear
from gemmascope.streaming.layer_stream import LayerStream

try:
    compiler.find_compiler()
except compiler.CompilingError as reason:
    pytest.skip(f"no C++ kernels: {reason}", allow_module_level=True)

CPU = torch.device("cpu")
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
METRIC = gs.logit_diff(5, 9)
cases = settings(deadline=None, derandomize=True, max_examples=40)


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(autouse=True, scope="module")
def switched_on() -> Iterator[None]:
    """The kernels compute in these tests; afterwards the process asks again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEMMASCOPE_CPU_KERNELS", "1")
        switch._cpu_refusal.cache_clear()
        yield
    switch._cpu_refusal.cache_clear()


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def plain(name: str) -> Callable[..., Tensor]:
    """The function of plain torch behind the switch."""
    return getattr(maths, name).__wrapped__  # type: ignore[no-any-return]


def assert_rounds_alike(found: Tensor, wanted: Tensor, largest: float | None = None) -> None:
    """Within 1e-6 of plain torch's largest number; in bfloat16 the same bits but where a number lay between two."""
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    if largest is None:
        largest = float(wanted.float().abs().max()) if wanted.numel() else 0.0
    if found.dtype == torch.bfloat16:
        torch.testing.assert_close(found, wanted, rtol=2**-7, atol=1e-6 * largest)
        assert int(((found != wanted) & (wanted.abs() > 1e-6 * largest)).sum()) <= 2 + 0.03 * wanted.numel()
    else:
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6 * largest)


# -- pointwise functions --


@cases
@given(st.integers(1, 9), st.integers(1, 200), st.sampled_from([1e-3, 1.0, 300.0]), DTYPES, DTYPES, st.integers(0, 99))
def test_the_norm(rows: int, width: int, size: float, dtype: torch.dtype, gain: torch.dtype, seed: int) -> None:
    x, weight = random(rows, width, seed=seed, dtype=dtype) * size, random(width, seed=seed + 1, dtype=gain)
    assert_rounds_alike(functions.rms_norm(x, weight, 1e-6), plain("rms_norm")(x, weight, 1e-6))


def test_a_norm_whose_square_overflows_is_nan() -> None:
    x, weight = torch.full((1, 40), 1e20), torch.zeros(40)
    assert functions.rms_norm(x, weight, 1e-6).isnan().all()
    assert functions.rms_norm(x * torch.nan, weight, 1e-6).isnan().all()
    assert torch.equal(functions.rms_norm(x * 0, weight, 1e-6), x * 0)


@cases
@given(st.integers(1, 5), st.integers(1, 700), st.sampled_from([0.1, 1.0, 2.5, 30.0]), DTYPES, st.integers(0, 99))
def test_the_gate(rows: int, width: int, size: float, dtype: torch.dtype, seed: int) -> None:
    gate, up = (random(rows, width, seed=seed + i, dtype=dtype) * size for i in range(2))
    found, wanted = functions.gelu_gate(gate, up), plain("gelu_gate")(gate.clone(), up)
    # For a negative gate plain torch loses digits: 1 + tanh(y) nearly cancels.
    assert_rounds_alike(found, wanted, float((gate * up).float().abs().max()))
    if dtype == torch.float32:
        exact = plain("gelu_gate")(gate.double(), up.double())
        assert (
            float((found - exact).abs().max())
            <= float((wanted - exact).abs().max()) + 2e-7 * float(exact.abs().max()) + 1e-30
        )


@cases
@given(st.integers(1, 2000), st.sampled_from([0.01, 1.0, 40.0, 1e4]), st.floats(0.5, 60), DTYPES, st.integers(0, 99))
def test_the_soft_cap(n: int, size: float, cap: float, dtype: torch.dtype, seed: int) -> None:
    x = random(n, seed=seed, dtype=dtype) * size
    found = functions.soft_cap(x, cap)
    assert_rounds_alike(found, plain("soft_cap")(x, cap))
    assert torch.equal(functions.soft_cap(-x, cap), -found)
    assert functions.soft_cap(x, None) is x


def test_the_soft_cap_is_exact_for_small_numbers_and_at_its_ends() -> None:
    small = torch.logspace(-30, 1, 500)
    torch.testing.assert_close(functions.soft_cap(small, 30.0), plain("soft_cap")(small, 30.0), rtol=1e-6, atol=0)
    ends = torch.tensor([torch.inf, -torch.inf, 1e30, torch.nan, 0.0])
    torch.testing.assert_close(functions.soft_cap(ends, 30.0), plain("soft_cap")(ends, 30.0), equal_nan=True)
    gate = functions.gelu_gate(torch.tensor([torch.inf, torch.nan, -1e4, 1e4]), torch.ones(4))
    assert torch.equal(gate.isnan(), torch.tensor([False, True, False, False]))
    torch.testing.assert_close(gate[[0, 2, 3]], torch.tensor([torch.inf, 0.0, 1e4]))


@cases
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([2, 12, 32]), DTYPES, st.integers(0, 99))
def test_the_rotation(rows: int, heads: int, d_head: int, dtype: torch.dtype, seed: int) -> None:
    x = random(rows, heads, d_head, seed=seed, dtype=dtype)
    cos, sin = maths.rope_table(torch.arange(rows) * 7 + seed, d_head, 10000.0)
    assert_rounds_alike(functions.rotate(x, cos, sin), plain("rotate")(x, cos, sin))
    one_position = cos[:1].expand(rows, -1), sin[:1].expand(rows, -1)
    assert_rounds_alike(functions.rotate(x, *one_position), plain("rotate")(x, *one_position))


def test_views_and_empty_tensors() -> None:
    x, weight = random(6, 4, 8, seed=0), random(6, seed=1)
    turned = x.transpose(0, 2)
    assert_rounds_alike(functions.rms_norm(turned, weight, 1e-6), plain("rms_norm")(turned, weight, 1e-6))
    assert_rounds_alike(functions.soft_cap(turned, 3.0), plain("soft_cap")(turned, 3.0))
    cos, sin = maths.rope_table(torch.arange(8), 6, 100.0)
    assert_rounds_alike(functions.rotate(turned, cos, sin), plain("rotate")(turned, cos, sin))
    empty = x[:0]
    assert functions.soft_cap(empty, 3.0).shape == functions.gelu_gate(empty, empty).shape == empty.shape
    assert functions.rms_norm(empty, random(8, seed=1), 1e-6).shape == empty.shape
    assert functions.rotate(empty, cos[:0, :1].expand(-1, 8), sin[:0, :1].expand(-1, 8)).shape == empty.shape


def calls(width: int, rows: int, dtype: torch.dtype) -> dict[str, Callable[[slice], Tensor]]:
    """Each function of some of the rows. The tensors of a slice start at other addresses than those of the whole."""
    x, gate, up = (random(rows, width, seed=i, dtype=dtype) * 2 for i in range(3))
    heads, (cos, sin) = x.view(rows, 2, -1), maths.rope_table(torch.arange(rows), width // 2, 100.0)
    numbers, scale = quantised(37, width, 4)
    return {
        "norm": lambda part: functions.rms_norm(x[part], random(width, seed=5, dtype=dtype), 1e-6),
        "gate": lambda part: functions.gelu_gate(gate[part], up[part]),
        "cap": lambda part: functions.soft_cap(x[part], 3.0),
        "rotation": lambda part: functions.rotate(heads[part], cos[part], sin[part]),
        "product": lambda part: functions.product(x[part], numbers, scale, int8.GROUP),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [4, 36, 300, 4200])
def test_a_row_is_blind_to_its_neighbours_and_threads(width: int, dtype: torch.dtype) -> None:
    threads = torch.get_num_threads()
    for name, compute in calls(width, 9, dtype).items():
        whole = compute(slice(None))
        for part in [*(slice(i, i + 1) for i in range(9)), slice(1, 4), slice(3, 8)]:
            assert torch.equal(compute(part), whole[part]), (name, part)
        try:
            torch.set_num_threads(3)
            assert torch.equal(compute(slice(None)), whole), name
        finally:
            torch.set_num_threads(threads)


# -- int8 matrices --


def quantised(n_out: int, n_in: int, seed: int) -> tuple[Tensor, Tensor]:
    numbers = torch.empty(n_out, n_in, dtype=torch.int8)
    scale = torch.empty(n_out, int8.n_groups(n_in), dtype=torch.float16)
    int8.quantise(random(n_out, n_in, seed=seed) / n_in**0.5, numbers, scale, "w")
    return numbers, scale


def dequantised(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    weight = torch.empty(numbers.shape, dtype=dtype)
    int8.dequantise(numbers, scale, weight)
    return weight


@cases
@given(st.integers(1, 80), st.integers(1, 400), st.sampled_from([1.0, 1e-7]), DTYPES, st.integers(0, 99))
def test_dequantised_weights_are_the_bits_of_plain_torch(
    n_out: int, n_in: int, size: float, dtype: torch.dtype, seed: int
) -> None:
    numbers, scale = quantised(n_out, n_in, seed)
    scale = (scale.float() * size).half()  # at 1e-7 below the smallest normal float16
    found = torch.full(numbers.shape, torch.nan, dtype=dtype)
    functions.dequantise(numbers, scale, found, int8.GROUP)
    assert torch.equal(found, dequantised(numbers, scale, dtype))


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@cases
@given(st.integers(1, 9), st.integers(1, 80), st.sampled_from([1, 16, 100, 128, 300, 2048]), DTYPES, st.integers(0, 99))
def test_a_product_is_no_further_from_the_exact_one_than_plain_torch(
    n_rows: int, n_out: int, n_in: int, dtype: torch.dtype, seed: int
) -> None:
    numbers, scale = quantised(n_out, n_in, seed)
    x = random(n_rows, n_in, seed=seed + 1, dtype=dtype)
    exact = F.linear(x.double(), dequantised(numbers, scale, torch.float64))
    found, wanted = functions.product(x, numbers, scale, int8.GROUP), F.linear(x, dequantised(numbers, scale, dtype))
    assert found.dtype == dtype
    # Sums that nearly cancel are as small as a rounding; plain torch rounds each bfloat16 weight as well.
    allowed = 5e-3 if dtype == torch.bfloat16 else 2e-6
    assert error(found, exact) <= max(error(wanted, exact), allowed)
    torch.testing.assert_close(found, wanted, rtol=0, atol=2 * allowed * float(exact.abs().max()) + 1e-6)


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
    x = random(functions.FEW_ROWS[dtype] + many, 200, seed=1, dtype=dtype)
    few = functions.product(x, numbers, scale, int8.GROUP)
    assert torch.equal(module(x), F.linear(x, weight) if many else few)
    with torch.enable_grad():
        x.requires_grad_()
        y = module(x)
        (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert torch.equal(y, module(x.detach()))
    assert torch.equal(grad, torch.ones_like(y) @ weight)
    assert module(x[:0]).shape == (0, 24)


def test_tensors_that_a_kernel_cannot_read_are_refused() -> None:
    numbers, scale = quantised(24, 200, 0)
    module, x = linear(numbers, scale, torch.float32), random(3, 200, seed=1)
    with pytest.raises(DeviceError, match=r"rows are torch.bfloat16, the layer computes in torch.float32"):
        module(x.bfloat16())
    module.numbers = torch.nn.Parameter(numbers.to("meta"), requires_grad=False)
    with pytest.raises(DeviceError, match="once the next layer is requested"):
        module(x)
    with pytest.raises(DeviceError, match="once the next layer is requested"):
        functions.rms_norm(x, torch.ones(200, device="meta"), 1e-6)
    for refused in (
        lambda: functions.rms_norm(x, torch.ones(199), 1e-6),
        lambda: functions.gelu_gate(x, x[:1]),
        lambda: functions.rotate(x[:, None], x[:1], x[:1]),
        lambda: functions.product(x[:, :199], numbers, scale, int8.GROUP),
        lambda: functions.product(x, numbers, scale[:1], int8.GROUP),
        lambda: functions.dequantise(numbers, scale, torch.empty(24, 199), int8.GROUP),
    ):
        with pytest.raises(ValueError, match="a kernel was given a tensor of shape"):
            refused()


# -- a whole model --


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kernels")
    checkpoint("lgl").save_pretrained(path / "source")
    gs.quantize(path / "source", path / "int8")
    return path / "int8"


def load(folder: Path, dtype: str, kept: tuple[int, ...] = (0, 1, 2)) -> Model:
    model = gs.load(folder, dtype=dtype, device="cpu")
    source: Any = model.network.layer_source
    model.network.layer_source = LayerStream(model.config, source.packed, getattr(torch, dtype), CPU, kept)
    return model


@pytest.mark.parametrize(("n", "dtype"), [(20, "float32"), (5, "bfloat16")])
def test_a_model_computes_the_same_with_kernels(folder: Path, dtype: str, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(folder, dtype)
    source: Any = model.network.layer_source
    assert source.in_place
    assert f"{dtype}, cpu with C++ kernels, device=" in repr(model)
    found = model.run(prompt(n))
    monkeypatch.setattr(switch, "_cpu_refusal", lambda: "of this test")
    without = load(folder, dtype)
    assert f"{dtype}, cpu without C++ kernels (of this test), device=" in repr(without)
    wanted = without.run(prompt(n))
    assert float((found - wanted).abs().max()) <= (1e-5 if dtype == "float32" else 0.1) * float(wanted.abs().max())
    assert not torch.equal(found, wanted)
    assert model.fingerprint == without.fingerprint


@pytest.mark.parametrize(("n", "dtype"), [(18, "float32"), (6, "bfloat16")])
def test_streamed_equals_resident_and_a_layer_that_runs_again_equals_its_run(folder: Path, dtype: str, n: int) -> None:
    one, other = load(folder, dtype), load(folder, dtype, kept=())
    a, b = (gs.trace(prompt(n), model=model) for model in (one, other))
    assert torch.equal(a.logits, b.logits)
    for site in ("q_rot", "mlp_act", "mlp_out"):
        assert torch.equal(a[site, 2], b[site, 2])
    with closing(other.network.single(2)) as layers:
        assert torch.equal(a["resid_post", 2], next(layers)(a["resid_pre", 2], a.layout, Tap().at(2, a.layout)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layers_share_the_memory_that_they_are_unpacked_into(folder: Path, dtype: str) -> None:
    model, n = load(folder, dtype, kept=(1,)), functions.FEW_ROWS[getattr(torch, dtype)] + 3
    source: Any = model.network.layer_source
    memory = {name: weight.data_ptr() for name, weight in source.scratch.items()}
    wanted = {i: dict(model.layer(i).named_parameters()) for i in range(3)}
    with closing(model.layers()) as layers:
        for layer in layers:
            linear = layer.mlp.down_proj
            assert linear.weight.data_ptr() == memory["mlp.down_proj.weight"]
            weight = wanted[layer.index]["mlp.down_proj.weight"]
            assert torch.equal(linear.weight, weight)
            x = random(n, weight.shape[1], seed=0, dtype=getattr(torch, dtype))
            assert torch.equal(linear(x), F.linear(x, weight))
            again = next(model.network.single(layer.index))  # within the pass: it has memory of its own
            assert again.mlp.down_proj.weight.data_ptr() != memory["mlp.down_proj.weight"]
            assert torch.equal(again.mlp.down_proj(x[:2]), linear(x[:2]))
    assert linear.weight.is_meta


def test_gradients_are_those_of_plain_torch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sites = [("resid_pre", 0), ("z", 1), "embed"]
    one, other = (gs.trace(prompt(4), model=load(folder, "float32", kept)).grad(METRIC, sites) for kept in ((0, 1, 2), (1,)))
    monkeypatch.setattr(switch, "_cpu_refusal", lambda: "of this test")
    wanted = gs.trace(prompt(4), model=load(folder, "float32")).grad(METRIC, sites)
    for site in sites:
        assert torch.equal(one[site], other[site])
        torch.testing.assert_close(one[site], wanted[site], rtol=1e-3, atol=2e-5 * float(wanted[site].abs().max()))


def test_other_dtypes_and_gradients_are_left_to_plain_torch() -> None:
    x = random(2, 8, seed=0)
    assert switch.fuses_on_cpu(x)
    assert not switch.fuses_on_cpu(x.double())
    assert not switch.fuses_on_cpu(x.to("meta"))
    assert maths.soft_cap(x.double(), 2.0).dtype == torch.float64
    with torch.enable_grad():
        assert not switch.fuses_on_cpu(x)
        assert maths.soft_cap(x.requires_grad_(), 2.0).requires_grad


# -- compiling, and the switch --


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GEMMASCOPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


def command(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def quick(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that copies the library of this process. Its calls are the lines of the file."""
    log = tmp_path / "compiled"
    library = functions.library()._name if Path(functions.library()._name).exists() else compile_once(tmp_path)
    script = f'case "$*" in *-dM*) echo "#define V 1";; *) echo x >> {log}; for out; do :; done; cp {library} "$out";; esac'
    monkeypatch.setenv("CXX", command(tmp_path / "compiler", script))
    return log


def compile_once(folder: Path) -> str:
    """A library of our own: this process compiled in a folder that is gone."""
    sources = [str(Path(compiler.__file__).with_name(name)) for name in compiler.SOURCES]
    subprocess.run(
        [*compiler.find_compiler(), *compiler.FLAGS, "-shared", *sources, "-o", str(folder / "own.so")], check=True
    )
    return str(folder / "own.so")


def test_a_machine_compiles_once(quick: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    library = cache / f"{compiler._identity(compiler.find_compiler())}.so"
    cache.mkdir(parents=True)
    library.write_bytes(b"cut short")
    for messages in (1, 0):
        compiler.load_library()
        assert capsys.readouterr().err.count("compiles its kernels") == messages
    assert quick.read_text() == "x\n"
    assert [library] == list(cache.iterdir())


def test_what_changes_the_code_changes_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    macros = command(tmp_path / "a", 'echo "#define __AVX512F__ 1"'), command(tmp_path / "b", 'echo "#define __AVX2__ 1"')
    a, b = (compiler._identity([path]) for path in macros)
    assert a != b
    monkeypatch.setattr(compiler, "FLAGS", (*compiler.FLAGS, "-g"))
    assert compiler._identity([macros[0]]) != a


def test_processes_may_compile_at_once(quick: Path, cache: Path) -> None:
    script = "from gemmascope.kernels.cpu import compiler; compiler.load_library().product_float32"
    running = [subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE) for _ in range(2)]
    for process in running:
        process.communicate(timeout=120)
        assert process.returncode == 0
    assert [path.suffix for path in cache.iterdir()] == [".so"]


def test_a_cache_that_cannot_be_written_is_no_obstacle(quick: Path, cache: Path) -> None:
    cache.parent.write_text("a file, in which there can be no folder")
    for calls in (1, 2):
        assert compiler.load_library().soft_cap_float32
        assert len(quick.read_text().splitlines()) == calls


def test_the_cpu_says_which_way_it_computes(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = switch._cpu_refusal.__wrapped__
    monkeypatch.delenv("GEMMASCOPE_CPU_KERNELS")
    assert refusal() == "GEMMASCOPE_CPU_KERNELS is not 1"
    assert switch.describe(CPU) == ""
    monkeypatch.setenv("GEMMASCOPE_CPU_KERNELS", "1")
    monkeypatch.setenv("CXX", command(tmp_path / "broken", "echo 'no space left' >&2; exit 1"))
    with pytest.warns(gs.GemmascopeWarning, match="a C.. compiler, but .*fails: no space left: the CPU computes with plain"):
        assert "no space left" in str(refusal())
    monkeypatch.setenv("CXX", command(tmp_path / "text", 'for out; do :; done; echo no library > "$out"'))
    with pytest.warns(gs.GemmascopeWarning, match="cannot be loaded"):
        assert "cannot be loaded" in str(refusal())
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert refusal() == "there is no C++ compiler"
    monkeypatch.setattr(compiler.sys, "platform", "win32")
    assert refusal() == "they are compiled on Linux only"
    for found, said in ((None, " with C++ kernels"), ("of this", " without C++ kernels (of this)")):
        monkeypatch.setattr(switch, "_cpu_refusal", lambda found=found: found)
        assert switch.describe(CPU) == said
        assert switch.runs_kernels(CPU) == (found is None)


def test_wrong_numbers_are_told_and_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "soft_cap", lambda x, cap: x)
    switch._pointwise.cache_clear()
    try:
        with pytest.warns(gs.GemmascopeWarning, match="its kernels give wrong numbers: the CPU computes with plain torch"):
            assert switch._cpu_refusal.__wrapped__() == "its kernels give wrong numbers"
    finally:
        switch._pointwise.cache_clear()
