"""torch.cuda.CUDAGraph: operators that were captured are computed again into the memory that they wrote to.

Refused while capturing: synchronisations, and copies from and to the host. Refused in a replay: memory that has been freed
since the capture, of which a real graph would read whatever is there. Accesses of a replay are recorded like others.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from emulated_cuda import clocks
from emulated_cuda.memory import Allocation
from emulated_cuda.tensors import tensors_in


class Graph:
    """torch.cuda.CUDAGraph."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.steps: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.used: dict[int, tuple[weakref.ref[Allocation], Tensor]] = {}  # memory from outside, by its storage

    def add(self, func: Any, args: Any, kwargs: Any, found: Any) -> None:
        into = [one for one in _listed(found) if isinstance(one, Tensor)]
        self.steps.append((func, args, kwargs, into))
        for one in (*tensors_in((*args, *kwargs.values())), *into):
            self.note(one)

    def note(self, inner: Tensor) -> None:
        """A tensor of the device is used: its memory must live as long as the graph does."""
        from emulated_cuda.device import emulated

        storage = inner.untyped_storage()._cdata
        for memory in emulated().memories:
            allocation = memory.by_storage.get(storage)
            if allocation is not None and not allocation.captured:
                self.used[storage] = weakref.ref(allocation), inner

    def capture_begin(self, *_: Any, **__: Any) -> None:
        from emulated_cuda.device import emulated

        emulated().capturing = self

    def capture_end(self) -> None:
        from emulated_cuda.device import emulated

        emulated().capturing = None

    def pool(self) -> tuple[int, int]:
        return (0, id(self))

    def reset(self) -> None:
        self.steps.clear()

    def replay(self) -> None:
        from emulated_cuda.device import emulated

        emulated().counts.kernel("graph")
        stream = clocks.current_stream()
        stream.launch()
        written = {one.untyped_storage()._cdata for *_, into in self.steps for one in into}
        for storage, (alive, inner) in self.used.items():
            if (allocation := alive()) is None:
                raise RuntimeError("a graph that is replayed uses memory that was freed after its capture")
            allocation.access(stream, inner, write=storage in written)
        with torch.no_grad():
            for func, args, kwargs, into in self.steps:
                found = [one for one in _listed(func(*args, **kwargs)) if isinstance(one, Tensor)]
                for target, value in zip(into, found, strict=True):
                    if target is not value:
                        target.copy_(value)


def _listed(found: Any) -> list[Any]:
    return list(found) if isinstance(found, (list, tuple)) else [found]


@contextmanager
def graph_context(graph: Graph, pool: Any = None, stream: Any = None, **_: Any) -> Iterator[None]:
    """torch.cuda.graph, which waits for the device before it begins."""
    torch.cuda.synchronize()
    stream, outside = stream or clocks.Stream(), clocks.current_stream()
    stream.wait_stream(outside)  # as torch does before and after
    with clocks.stream_context(stream):
        graph.capture_begin()
        try:
            yield
        finally:
            graph.capture_end()
    outside.wait_stream(stream)
