"""EmulatedCuda: puts the emulation into torch.cuda, and takes it out again."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from emulated_cuda import clocks, kernels, tensors
from emulated_cuda.clocks import device_of, host
from emulated_cuda.counts import Counts
from emulated_cuda.graphs import Graph, graph_context
from emulated_cuda.memory import DeviceMemory, PageLocked

_emulations: list[EmulatedCuda] = []


def emulated() -> EmulatedCuda:
    """The emulation that is on."""
    return _emulations[-1]


class _Mode(TorchDispatchMode):
    """Sends every operator of a thread to the emulation."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled in an emulation, and the wrapper takes time for each operator

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return tensors.dispatch(func, args, kwargs or {})


class EmulatedCuda:
    """A machine with CUDA devices, while it is entered. It may be entered again.

    Args:
        n_devices: How many.
        total: Bytes of each.
        context: Bytes that the CUDA context takes of each.
        capability: The compute capability of each.
        triton: Whether Triton kernels are launched: "computed" in the interpreter, "counted" with numbers that are made up,
            or None for plain torch.

    Attributes:
        races: What was accessed or freed while it may still have been in use, in words.
        counts: Kernels, synchronisations and pageable copies, by line.
        memories: The memory of each device.
        page_locked: The page-locked memory of the host.
    """

    def __init__(
        self,
        n_devices: int = 1,
        total: int = 80 * 10**9,
        context: int = 5 * 10**8,
        capability: tuple[int, int] = (9, 0),
        triton: str | None = None,
    ) -> None:
        self.n_devices, self.capability, self.triton = n_devices, capability, triton
        self.races: list[str] = []
        self.counts = Counts()
        self.page_locked = PageLocked(self.races)
        self.memories = [DeviceMemory(torch.device("cuda", i), total, context, self.races) for i in range(n_devices)]
        self.default_streams = [clocks.Stream(torch.device("cuda", i)) for i in range(n_devices)]
        self.capturing: Graph | None = None
        self.errors = threading.local()

    def lock(self, address: int, n_bytes: int) -> int:
        """cudaHostRegister. An error is returned, and reported once more to the thread's next kernel."""
        self.errors.last = self.page_locked.register(address, n_bytes)
        return self.errors.last  # type: ignore[no-any-return]

    def report_last_error(self) -> None:
        if error := getattr(self.errors, "last", 0):
            self.errors.last = 0
            raise RuntimeError(f"CUDA error: an operation before failed with status {error}")

    def capture(self, func: Any, args: Any, kwargs: Any, found: Any) -> None:
        if self.capturing is not None:
            self.capturing.add(func, args, kwargs, found)

    def __enter__(self) -> EmulatedCuda:
        _emulations.append(self)
        self._stack = ExitStack()
        kernel_patches = () if self.triton is None else kernels.patches(self.triton == "computed")
        for owner, name, value in (
            *_patches_of_torch(self), *_patches_of_threads(), *_patches_of_package(self), *kernel_patches
        ):  # fmt: skip
            self._stack.enter_context(_patched(owner, name, value))
        self._stack.enter_context(_compiled_functions_run_uncompiled())
        self._stack.enter_context(_Mode())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        _emulations.remove(self)


@contextmanager
def _patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    missing = name not in vars(owner)
    before = getattr(owner, name, None)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if missing:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


@contextmanager
def _compiled_functions_run_uncompiled() -> Iterator[None]:
    """torch.compile returns its function; those compiled before run as they were written."""
    compiled_before = "torch._dynamo" in sys.modules  # importing it takes seconds
    if compiled_before:
        torch.compiler.set_stance("force_eager")
    try:
        with _patched(torch, "compile", lambda model=None, **_: (lambda fn: fn) if model is None else model):
            yield
    finally:
        if compiled_before:
            torch.compiler.set_stance("default")


Patch = tuple[Any, str, Any]


def _patches_of_torch(emulation: EmulatedCuda) -> Iterator[Patch]:
    yield torch.Tensor, "to", tensors.to
    yield torch.Tensor, "cpu", lambda self, **_: tensors.to(self, "cpu")
    yield (
        torch.Tensor,
        "cuda",
        lambda self, device=None, non_blocking=False, **_: tensors.to(self, device_of(device), non_blocking=non_blocking),
    )
    yield torch.Tensor, "is_pinned", tensors.is_pinned
    yield torch.Tensor, "pin_memory", tensors.pin_memory
    yield torch, "tensor", _made_on_the_cpu_first(torch.tensor)
    yield torch, "as_tensor", _as_tensor(torch.as_tensor)
    yield torch, "Generator", _generator(torch.Generator)
    memories, first = emulation.memories, emulation.memories[0]

    def memory(device: Any = None) -> DeviceMemory:
        return memories[device_of(device).index]

    def reset_peak(device: Any = None) -> None:
        memory(device).peak = memory(device).allocated

    def empty_cache() -> None:
        for one in memories:
            one.reserved = one.allocated

    def synchronize(device: Any = None) -> None:
        emulation.counts.sync("synchronize")
        host().wait_for(clocks.default_stream(device).clock)

    properties = SimpleNamespace(
        total_memory=first.total, name="Emulated", major=emulation.capability[0], minor=emulation.capability[1],
        multi_processor_count=132,
    )  # fmt: skip
    runtime = SimpleNamespace(
        cudaHostRegister=lambda address, n_bytes, flags: emulation.lock(address, n_bytes),
        cudaHostUnregister=emulation.page_locked.unregister,
    )
    of_cuda: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: emulation.n_devices,
        "current_device": clocks.current_device,
        "set_device": lambda device: clocks.exchange_device(device_of(device).index) and None,
        "_exchange_device": clocks.exchange_device,
        "_maybe_exchange_device": clocks.exchange_device,
        "Stream": clocks.Stream,
        "Event": clocks.Event,
        "current_stream": clocks.current_stream,
        "default_stream": clocks.default_stream,
        "stream": clocks.stream_context,
        "synchronize": synchronize,
        "cudart": lambda: runtime,
        "mem_get_info": lambda device=None: (memory(device).free, memory(device).total),
        "memory_allocated": lambda device=None: memory(device).allocated,
        "max_memory_allocated": lambda device=None: memory(device).peak,
        "memory_reserved": lambda device=None: memory(device).reserved,
        "reset_peak_memory_stats": reset_peak,
        "empty_cache": empty_cache,
        "get_device_properties": lambda device=None: properties,
        "get_device_name": lambda device=None: "Emulated",
        "get_device_capability": lambda device=None: emulation.capability,
        "is_bf16_supported": lambda *_, **__: emulation.capability >= (8, 0),
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "CUDAGraph": Graph,
        "graph": graph_context,
        "is_current_stream_capturing": lambda: emulation.capturing is not None,
    }
    for name, value in of_cuda.items():
        yield torch.cuda, name, value


def _made_on_the_cpu_first(make: Callable[..., Any]) -> Callable[..., Any]:
    """torch.tensor, which makes a tensor on the CPU and then moves it."""

    def tensor(data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False, **rest: Any) -> Any:
        if device is None or torch.device(device).type != "cuda":
            return make(plain_data(data), dtype=dtype, device=device, requires_grad=requires_grad, **rest)
        made = tensors.to(make(plain_data(data), dtype=dtype, **rest), device)
        return made.requires_grad_(requires_grad)

    return tensor


def plain_data(data: Any) -> Any:
    """What a tensor is made of, with tensors of a device read from it."""
    return tensors.to(data, "cpu") if isinstance(data, tensors.CudaTensor) else data


def _as_tensor(make: Callable[..., Any]) -> Callable[..., Any]:
    def as_tensor(data: Any, dtype: Any = None, device: Any = None) -> Any:
        if isinstance(data, torch.Tensor):
            return tensors.to(data, *[one for one in (device, dtype) if one is not None]) if device or dtype else data
        if device is None or torch.device(device).type != "cuda":
            return make(data, dtype=dtype, device=device)
        return tensors.to(make(data, dtype=dtype), device)

    return as_tensor


def _generator(make: Any) -> Any:
    class Generator(make):  # type: ignore[misc]
        """torch.Generator, of the CPU or of an emulated device."""

        def __new__(cls, device: Any = "cpu") -> Any:
            made = super().__new__(cls, device="cpu")
            made.on_cuda = torch.device(device).type == "cuda"
            return made

        def __init__(self, device: Any = "cpu") -> None:
            """All is done."""

    return Generator


def _patches_of_threads() -> Iterator[Patch]:
    """New threads work in the emulation too, and what is done before they begin is over for them; also when joined."""
    start, join = threading.Thread.start, threading.Thread.join

    def started(self: threading.Thread) -> None:
        known, run = dict(host().clock), self.run

        def in_emulation() -> None:
            host().wait_for(known)
            with _Mode():
                try:
                    run()
                finally:
                    self.known = dict(host().clock)  # type: ignore[attr-defined]

        self.run = in_emulation  # type: ignore[method-assign]
        start(self)

    def joined(self: threading.Thread, timeout: float | None = None) -> None:
        join(self, timeout)
        host().wait_for(getattr(self, "known", {}))

    yield threading.Thread, "start", started
    yield threading.Thread, "join", joined


def _patches_of_package(emulation: EmulatedCuda) -> Iterator[Patch]:
    """Files are read into memory without torch: the host writes there."""
    from gemmascope.streaming import packed

    read_into = packed.read_into

    def noted(path: Any, offset: int, target: memoryview, *rest: Any, **options: Any) -> Any:
        emulation.page_locked.access(None, np.frombuffer(target, np.uint8).ctypes.data, len(target), write=True)
        return read_into(path, offset, target, *rest, **options)

    yield packed, "read_into", noted
