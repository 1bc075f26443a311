"""Layers to a CUDA device: from page-locked host memory, or from files through it.

Copies run on their own CUDA stream and are ordered by events: the pass never waits for the host, and no memory is allocated
while it runs.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from gemmascope.errors import warn
from gemmascope.streaming.packed import READERS, PackedLayer, bytes_of
from gemmascope.streaming.page_locked import HostBuffer
from gemmascope.streaming.transfer import EndPass

# Buffers through which layers come from files: one is read into while the other is copied to the device.
STAGING = 2


class CudaTransfer:
    """Fills buffers on a CUDA device. held: layers to hold in host memory; the others are read from files each time."""

    def __init__(self, device: torch.device, held: Mapping[int, PackedLayer] | None = None) -> None:
        self.device, self.copies = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.lock = threading.Lock()
        self.staging: deque[HostBuffer] = deque()
        self.n_staging = 0  # those that are in use included
        self.released: dict[int, torch.cuda.Event] = {}
        self.last_pass: torch.cuda.Event | None = None
        self.warned = False
        self.held = self._hold(held or {})

    def allocate(self, n_bytes: int) -> Tensor:
        buffer = torch.empty(n_bytes, dtype=torch.uint8, device=self.device)
        buffer.record_stream(self.copies)  # it may be freed while it is filled
        self.release(buffer)  # kernels under way may still read what was in this memory before
        return buffer

    def fill(self, packed: PackedLayer, index: int, buffer: Tensor) -> torch.cuda.Event:
        held = self.held.get(index)
        source = held or self._staged(packed)
        with self.lock, torch.cuda.stream(self.copies):  # a single layer may be read while a pass runs
            if (released := self.released.get(buffer.data_ptr())) is not None:
                self.copies.wait_event(released)
            buffer[: packed.n_bytes].copy_(source.data[: packed.n_bytes], non_blocking=True)
            copied = self._event(self.copies)
            source.copying(copied)
            if held is None:
                self.staging.append(source)
        return copied

    def wait(self, arrival: torch.cuda.Event | None) -> None:
        if arrival is not None:
            torch.cuda.current_stream(self.device).wait_event(arrival)

    def release(self, buffer: Tensor) -> None:
        self.released[buffer.data_ptr()] = self._event(torch.cuda.current_stream(self.device))

    def begin_pass(self) -> EndPass:
        stream = torch.cuda.current_stream(self.device)
        if self.last_pass is not None:  # it may have run on another stream
            stream.wait_event(self.last_pass)
        with self.lock:
            while len(self.staging) > STAGING:  # left from loading, in several threads
                self.staging.pop()
                self.n_staging -= 1

        def end(in_use: Tensor | None) -> None:
            self.last_pass = self._event(stream)
            if in_use is not None:
                self.released[in_use.data_ptr()] = self.last_pass

        return end

    def _event(self, stream: torch.cuda.Stream) -> torch.cuda.Event:
        """An event after everything that is in a stream now."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(stream)
        return event

    def _hold(self, layers: Mapping[int, PackedLayer]) -> dict[int, HostBuffer]:
        """Read layers into page-locked memory: those of them that the system lets us lock."""

        def read(packed: PackedLayer) -> HostBuffer | None:
            buffer = HostBuffer(packed.n_bytes, self.device)
            if buffer.locked:
                packed.read(bytes_of(buffer.data))
            return buffer if buffer.locked else None

        with ThreadPoolExecutor(READERS) as readers:
            buffers = dict(zip(layers, readers.map(read, layers.values()), strict=True))
        held = {index: buffer for index, buffer in buffers.items() if buffer is not None}
        if len(held) < len(layers):
            self._warn(f"only {len(held)} of {len(layers)} layers are held in it; the others come from their files")
        return held

    def _staged(self, packed: PackedLayer) -> HostBuffer:
        """The layer's bytes in a staging buffer, once that buffer's previous content has been copied."""
        with self.lock:
            staging = self.staging.popleft() if self.staging and self.n_staging >= STAGING else None
            self.n_staging += staging is None
        if staging is None or len(staging) < packed.n_bytes:
            staging = HostBuffer(packed.n_bytes, self.device)
            if not staging.locked:
                self._warn("layers come through ordinary memory, which the pass waits for")
        staging.wait()  # in the prefetch thread, not in the pass
        packed.read(bytes_of(staging.data)[: packed.n_bytes])
        return staging

    def _warn(self, consequence: str) -> None:
        if not self.warned:
            self.warned = True
            warn(
                f"host memory cannot be page-locked for {self.device}: {consequence}. Free host memory, raise the limit of "
                "locked memory (ulimit -l), or give a larger memory= so that more layers stay on the device"
            )
