"""Fixtures shared by the tests. Shape annotations are checked only in the tests: jaxtyping reads them on import."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import install_import_hook

# Products this small are no faster on two threads, and much slower where other work shares the cores. Processes that a test
# starts read it as well.
os.environ.setdefault("OMP_NUM_THREADS", "1")

CHECKS_SHAPES = find_spec("beartype") is not None  # tests/gpu also runs on rented machines, without it
if "gemmascope" in sys.modules:
    raise RuntimeError("gemmascope was imported before the tests could switch the checks of its shapes on")
# Not in kernels: what wraps a Triton kernel hides the names that it is compiled with.
package = Path(__file__).resolve().parent.parent / "gemmascope"
rooms = sorted(
    {path.stem for path in package.iterdir() if path.suffix in ("", ".py")} - {"__init__", "__pycache__", "kernels"}
)
if CHECKS_SHAPES:
    install_import_hook([f"gemmascope.{room}" for room in rooms], "shapes.checked")

import psutil  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from browser import browser  # noqa: E402
from jupyter import Lab, jupyterlab  # noqa: E402

if TYPE_CHECKING:
    from gemmascope.model.gemma2 import Gemma2, Layer

torch.set_num_threads(1)
if not torch.cuda.is_available():  # Triton kernels then run on the CPU, statement by statement
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """The meaning of -n auto: a process for each core that this one may use, if there are 2 GB of memory for each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, psutil.virtual_memory().available // 2**31))


def pytest_report_header() -> str:
    return "" if CHECKS_SHAPES else "shapes are not checked: beartype is not installed"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that drive a browser."""
    for item in items:
        if "chromium" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A running Chromium for the tests of one file: no notebook can be run beside its event loop."""
    with browser() as running:
        yield running


@pytest.fixture(scope="module", params=[True, False], ids=["subshells", "main thread"])
def lab(request: pytest.FixtureRequest, chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A running JupyterLab, once under each setting of comms over subshells."""
    with jupyterlab(tmp_path_factory.mktemp("lab"), subshells=request.param) as running:
        yield running


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The progress bars that were made, each with its options, its total and how much of it is done."""
    import tqdm.auto

    bars_made: list[Any] = []

    class Bar(tqdm.auto.tqdm):  # type: ignore[type-arg,misc]
        def __init__(self, **options: Any) -> None:
            super().__init__(**{**options, "disable": True})
            self.options, self.total, self.done = options, options["total"], 0
            bars_made.append(self)

        def update(self, n: float | None = 1) -> None:
            self.done += n

    monkeypatch.setattr(tqdm.auto, "tqdm", Bar)
    return bars_made


@pytest.fixture
def layers_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the layers that are read, in that order. A layer may run only while a pass goes through it."""
    from gemmascope.model.gemma2 import Gemma2, Layer

    numbers: list[int] = []
    running: list[int] = []
    layers, layer, forward = Gemma2.layers, Gemma2.layer, Layer.forward

    def one_by_one(self: Gemma2, reverse: bool = False) -> Iterator[Layer]:
        with closing(layers(self, reverse)) as each:
            for layer_read in each:
                numbers.append(layer_read.index)
                running[:] = [layer_read.index]
                yield layer_read
                running.clear()

    def by_number(self: Gemma2, index: int) -> Layer:
        numbers.append(index)
        return layer(self, index)

    def guarded(self: Layer, *args: Any) -> Any:
        assert running == [self.index], f"layer {self.index} runs, and a pass goes through {running}"
        return forward(self, *args)

    for owner, name, counting in ((Gemma2, "layers", one_by_one), (Gemma2, "layer", by_number), (Layer, "forward", guarded)):
        monkeypatch.setattr(owner, name, counting)
    return numbers


def emulated_cuda(triton: str | None) -> Iterator[Any]:
    from emulated_cuda import EmulatedCuda

    with EmulatedCuda(triton=triton) as emulation:
        yield emulation
        gc.collect()
        assert emulation.races == []


@pytest.fixture
def cuda() -> Iterator[Any]:
    """An emulated CUDA device without Triton, and nothing raced on it in the end."""
    yield from emulated_cuda(None)


@pytest.fixture
def cuda_in_kernels(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The same with Triton kernels, "computed" or "counted" as the parameter says."""
    pytest.importorskip("triton", reason="the kernels need Triton")
    yield from emulated_cuda(request.param)
