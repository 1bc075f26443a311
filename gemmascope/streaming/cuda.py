"""The way of a layer's bytes to a CUDA device: from page-locked host memory, or from files by way of it.

Copies go on a stream of their own, and the order of things is kept by events: the pass never waits for the host, and
nothing is allocated on the way.
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
    """Bytes into slots on a CUDA device. hold: layers that wait in host memory; the others are read when asked for."""

    def __init__(self, device: torch.device, hold: Mapping[int, PackedLayer] | None = None) -> None:
        self.device, self.copies = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.held = {index: self._read(packed, locked(packed.n_bytes)) for index, packed in (hold or {}).items()}
        self.staging: list[Tensor] = []
        self.lock = threading.Lock()
        self.unused: dict[int, torch.cuda.Event] = {}
        self.copied: dict[int, torch.cuda.Event] = {}

    def slot(self, n_bytes: int) -> Tensor:
        slot = torch.empty(n_bytes, dtype=torch.uint8, device=self.device)
        self.released(slot)  # steps under way may still read what was in this memory before
        return slot

    def bring(self, packed: PackedLayer, index: int, slot: Tensor) -> torch.cuda.Event:
        with self.lock:  # a layer may be asked for by itself while a pass is under way
            return self._brought(packed, index, slot)

    def _brought(self, packed: PackedLayer, index: int, slot: Tensor) -> torch.cuda.Event:
        source = self.held[index] if index in self.held else self._staged(packed)
        with torch.cuda.stream(self.copies):
            if slot.data_ptr() in self.unused:
                self.copies.wait_event(self.unused[slot.data_ptr()])
            slot[: packed.n_bytes].copy_(source[: packed.n_bytes], non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self.copies)
        self.copied[source.data_ptr()] = done
        return done

    def arrive(self, arrival: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self.device).wait_event(arrival)

    def released(self, slot: Tensor) -> None:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        self.unused[slot.data_ptr()] = event

    def _staged(self, packed: PackedLayer) -> Tensor:
        """The layer's bytes in one of two page-locked buffers, once what was in it has been copied."""
        if len(self.staging) < 2:
            buffer = locked(packed.n_bytes)
        else:
            buffer = self.staging.pop(0)
            if len(buffer) < packed.n_bytes:
                buffer = locked(packed.n_bytes)
        self.staging.append(buffer)
        if buffer.data_ptr() in self.copied:  # waits in the thread that brings, not in the pass
            self.copied[buffer.data_ptr()].synchronize()
        return self._read(packed, buffer)

    def _read(self, packed: PackedLayer, buffer: Tensor) -> Tensor:
        packed.read(bytes_of(buffer)[: packed.n_bytes])
        return buffer


def locked(n_bytes: int) -> Tensor:
    """Page-locked host memory of exactly this size. torch's own would be rounded up to a power of two (pytorch #150517)."""
    memory = mmap.mmap(-1, n_bytes)
    buffer = torch.frombuffer(memory, dtype=torch.uint8)  # keeps the mapping
    status = torch.cuda.cudart().cudaHostRegister(buffer.data_ptr(), n_bytes, 0)  # type: ignore[no-untyped-call]
    if int(status) != 0:
        raise DeviceError(
            f"{n_bytes:,} bytes of host memory cannot be page-locked (CUDA error {int(status)}): raise the limit of locked "
            "memory (ulimit -l), or give a larger memory= so that more layers stay on the device"
        )
    weakref.finalize(buffer, _unlock, buffer.data_ptr(), memory)
    return buffer


def _unlock(address: int, memory: mmap.mmap) -> None:
    """Give page-locked memory back. memory: the mapping, held until then."""
    torch.cuda.cudart().cudaHostUnregister(address)  # type: ignore[no-untyped-call]
