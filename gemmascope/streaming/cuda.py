"""Layers to a CUDA device: from page-locked host memory, or from files through it.

Copies run on their own CUDA stream and are ordered by events: the pass never waits for the host, and no memory is allocated
while it runs.
"""

from __future__ import annotations

import mmap
import threading
import weakref
from collections.abc import Mapping

import torch
from torch import Tensor

from gemmascope.errors import DeviceError
from gemmascope.streaming.packed import PackedLayer, bytes_of


class CudaTransfer:
    """Fills buffers on a CUDA device. held: layers to hold in host memory; the others are read from files each time."""

    def __init__(self, device: torch.device, held: Mapping[int, PackedLayer] | None = None) -> None:
        self.device, self.copies = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.held = {index: self._read(packed, locked(packed.n_bytes)) for index, packed in (held or {}).items()}
        self.staging: list[Tensor] = []
        self.lock = threading.Lock()
        self.freed: dict[int, torch.cuda.Event] = {}
        self.copied: dict[int, torch.cuda.Event] = {}

    def allocate(self, n_bytes: int) -> Tensor:
        buffer = torch.empty(n_bytes, dtype=torch.uint8, device=self.device)
        self.release(buffer)  # kernels under way may still read what was in this memory before
        return buffer

    def fill(self, packed: PackedLayer, index: int, buffer: Tensor) -> torch.cuda.Event:
        with self.lock:  # a single layer may be read while a pass runs
            source = self.held[index] if index in self.held else self._staged(packed)
            with torch.cuda.stream(self.copies):
                if buffer.data_ptr() in self.freed:
                    self.copies.wait_event(self.freed[buffer.data_ptr()])
                buffer[: packed.n_bytes].copy_(source[: packed.n_bytes], non_blocking=True)
                done = torch.cuda.Event()  # type: ignore[no-untyped-call]
                done.record(self.copies)
            self.copied[source.data_ptr()] = done
            return done

    def wait(self, arrival: torch.cuda.Event | None) -> None:
        if arrival is not None:
            torch.cuda.current_stream(self.device).wait_event(arrival)

    def release(self, buffer: Tensor) -> None:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        self.freed[buffer.data_ptr()] = event

    def _staged(self, packed: PackedLayer) -> Tensor:
        """The layer's bytes in one of two page-locked buffers, once that buffer's previous content has been copied."""
        if len(self.staging) < 2:
            staging = locked(packed.n_bytes)
        else:
            staging = self.staging.pop(0)
            if len(staging) < packed.n_bytes:
                staging = locked(packed.n_bytes)
        self.staging.append(staging)
        if staging.data_ptr() in self.copied:  # waits in the prefetch thread, not in the pass
            self.copied[staging.data_ptr()].synchronize()
        return self._read(packed, staging)

    def _read(self, packed: PackedLayer, staging: Tensor) -> Tensor:
        packed.read(bytes_of(staging)[: packed.n_bytes])
        return staging


def locked(n_bytes: int) -> Tensor:
    """Page-locked host memory of exactly this size. torch would round it up to a power of two (pytorch #150517)."""
    memory = mmap.mmap(-1, n_bytes)
    buffer = torch.frombuffer(memory, dtype=torch.uint8)  # keeps the mapping alive
    status = torch.cuda.cudart().cudaHostRegister(buffer.data_ptr(), n_bytes, 0)  # type: ignore[no-untyped-call]
    if int(status) != 0:
        raise DeviceError(
            f"{n_bytes:,} bytes of host memory cannot be page-locked (CUDA error {int(status)}): raise the limit of locked "
            "memory (ulimit -l), or give a larger memory= so that more layers stay on the device"
        )
    weakref.finalize(buffer, _unlock, buffer.data_ptr(), memory)
    return buffer


def _unlock(address: int, memory: mmap.mmap) -> None:
    """Unlock page-locked memory. memory: the mapping, kept alive until then."""
    torch.cuda.cudart().cudaHostUnregister(address)  # type: ignore[no-untyped-call]
