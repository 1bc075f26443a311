"""Memory of an emulated device and page-locked memory of the host: bytes alive, their peak, and who accesses them."""

from __future__ import annotations

import threading
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from emulated_cuda.clocks import Accesses, Stream, current_stream, host

# CUDA's allocator gives out blocks of this size.
BLOCK = 512


def span_of(inner: Tensor) -> tuple[int, int]:
    """The bytes of its storage that a tensor covers."""
    start = inner.storage_offset() * inner.element_size()
    if inner.numel() == 0:
        return start, start
    last = sum((size - 1) * stride for size, stride in zip(inner.shape, inner.stride(), strict=True))
    return start, start + (last + 1) * inner.element_size()


class Allocation:
    """A storage on the device. It is freed when the last tensor that holds it is gone."""

    def __init__(self, memory: DeviceMemory, n_bytes: int) -> None:
        self.memory, self.stream = memory, current_stream(memory.device)
        self.captured = torch.cuda.is_current_stream_capturing()  # then the memory is the graph's, and nobody else gets it
        self.n_bytes = -(-max(1, n_bytes) // BLOCK) * BLOCK
        self.accesses = Accesses()
        self.also_used_by: set[str] = set()  # streams that record_stream named
        memory.take(self.n_bytes)

    def access(self, stream: Stream, inner: Tensor, *, write: bool) -> None:
        for other in self.accesses.add(stream, *span_of(inner), write=write):
            self.memory.races.append(f"{'write' if write else 'read'} at {_place()} while: {other}")

    def __del__(self) -> None:
        # The allocator gives the memory to whoever asks next on the stream that it was allocated on.
        if not self.captured:
            for access in self.accesses.unknown_to(self.stream, besides=frozenset(self.also_used_by)):
                self.memory.races.append(f"memory freed while: {access}")
        self.memory.give_back(self.n_bytes)


def _place() -> str:
    from emulated_cuda.counts import line_of_package

    return line_of_package()


class DeviceMemory:
    """The bytes of one device. Freed bytes stay in torch's cache until it is emptied, as in torch."""

    def __init__(self, device: torch.device, total: int, context: int, races: list[str]) -> None:
        self.device, self.total, self.context, self.races = device, total, context, races
        self.allocated = self.peak = self.reserved = 0
        self.by_storage: WeakValueDictionary[int, Allocation] = WeakValueDictionary()
        self.lock = threading.RLock()

    def of(self, inner: Tensor) -> Allocation:
        """The allocation of a tensor's storage, a new one if there is none yet."""
        storage = inner.untyped_storage()
        with self.lock:
            found = self.by_storage.get(storage._cdata)
            if found is None:
                found = self.by_storage[storage._cdata] = Allocation(self, storage.nbytes())
            return found

    def take(self, n_bytes: int) -> None:
        with self.lock:
            if self.allocated + n_bytes > self.total - self.context:
                raise torch.OutOfMemoryError(
                    f"CUDA out of memory. Tried to allocate {n_bytes / 2**20:.2f} MiB. GPU {self.device.index} has a total "
                    f"capacity of {self.total / 2**30:.2f} GiB"
                )
            self.allocated += n_bytes
            self.peak = max(self.peak, self.allocated)
            self.reserved = max(self.reserved, self.allocated)

    def give_back(self, n_bytes: int) -> None:
        with self.lock:
            self.allocated -= n_bytes

    @property
    def free(self) -> int:
        """What cudaMemGetInfo says is free: torch's cache counts as taken."""
        return self.total - self.context - self.reserved


class PageLocked:
    """The page-locked memory of the host, by address."""

    def __init__(self, races: list[str]) -> None:
        self.races = races
        self.ranges: dict[int, tuple[int, Accesses]] = {}
        self.most: int | None = None  # bytes that can be locked; None for any number

    def register(self, address: int, n_bytes: int) -> int:
        """cudaHostRegister. Returns CUDA's status: 0, or 2 (out of memory)."""
        if self.most is not None and sum(n for n, _ in self.ranges.values()) + n_bytes > self.most:
            return 2
        self.ranges[address] = (n_bytes, Accesses())
        return 0

    def unregister(self, address: int) -> int:
        if address not in self.ranges:  # of an emulation before
            return 1
        _, accesses = self.ranges.pop(address)
        for access in accesses.unknown_to(host()):
            self.races.append(f"page-locked memory freed while: {access}")
        return 0

    def release(self, address: int) -> None:
        """Free memory of torch's own page-locked allocator, which keeps it until the copies from it have ended."""
        self.ranges.pop(address, None)

    def of(self, address: int) -> tuple[int, Accesses] | None:
        """The first address of the range that holds an address, and the accesses to it; None if it is pageable."""
        for first, (n_bytes, accesses) in list(self.ranges.items()):
            if first <= address < first + n_bytes:
                return first, accesses
        return None

    def access(self, line: Stream | None, address: int, n_bytes: int, *, write: bool) -> None:
        """line: the stream that copies; None for the present thread of the host."""
        if (found := self.of(address)) is None or not n_bytes:
            return
        first, accesses = found
        start = address - first
        for other in accesses.add(line or host(), start, start + n_bytes, write=write):
            self.races.append(f"{'write' if write else 'read'} of page-locked memory at {_place()} while: {other}")
