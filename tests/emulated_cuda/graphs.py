"""torch.cuda.CUDAGraph: operators that were captured are computed again into the memory that they wrote to.

Who accesses which memory is not recorded for a replay.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from emulated_cuda import clocks


class Graph:
    """torch.cuda.CUDAGraph."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.steps: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def add(self, func: Any, args: Any, kwargs: Any, found: Any) -> None:
        found = list(found) if isinstance(found, (list, tuple)) else [found]
        self.steps.append((func, args, kwargs, [one for one in found if isinstance(one, Tensor)]))

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
        clocks.current_stream().launch()
        with torch.no_grad():
            for func, args, kwargs, into in self.steps:
                found = func(*args, **kwargs)
                found = list(found) if isinstance(found, (list, tuple)) else [found]
                for target, value in zip(into, [one for one in found if isinstance(one, Tensor)], strict=True):
                    if target is not value:
                        target.copy_(value)


@contextmanager
def graph_context(graph: Graph, pool: Any = None, stream: Any = None, **_: Any) -> Iterator[None]:
    """torch.cuda.graph."""
    stream, outside = stream or clocks.Stream(), clocks.current_stream()
    stream.wait_stream(outside)  # as torch does before and after
    with clocks.stream_context(stream):
        graph.capture_begin()
        try:
            yield
        finally:
            graph.capture_end()
    outside.wait_stream(stream)
