"""Page-locked host memory, from which a GPU copies without the CPU's help."""

from __future__ import annotations

import mmap
import os
import weakref
from contextlib import suppress

import torch
from torch import Tensor

# cudaHostRegisterPortable: page-locked for every GPU of the machine.
PORTABLE = 1


class HostBuffer:
    """A buffer in host memory, and the last copy from it to a device.

    It is freed only once that copy has ended. Its size is exact: torch's own page-locked memory is rounded up to a power of
    two (pytorch #150517).

    Attributes:
        data: The buffer, uint8.
        locked: Whether it is page-locked. If the system refuses, copies from it still give the right bytes, more slowly.
    """

    def __init__(self, n_bytes: int, device: torch.device) -> None:
        memory = _anonymous_memory(n_bytes)
        self.data: Tensor = torch.frombuffer(memory, dtype=torch.uint8)  # keeps the mapping alive
        self._copies: list[torch.cuda.Event] = []
        self.locked = _lock(self.data, device)
        if self.locked:
            free = weakref.finalize(self, _free, self.data, self._copies, os.getpid())
            free.atexit = False  # CUDA may be gone by then, and the system frees everything

    def __len__(self) -> int:
        return len(self.data)

    def copying(self, copied: torch.cuda.Event) -> None:
        """Say that a copy from this buffer is under way. copied: recorded after it."""
        self._copies[:] = [copied]

    def wait(self) -> None:
        """Wait for the last copy from this buffer: it may be written again."""
        for copied in self._copies:
            copied.synchronize()


def _anonymous_memory(n_bytes: int) -> mmap.mmap:
    """Memory of the process, in huge pages where Linux has them for it: fewer pages to lock, and to look up in a copy.

    It is shared with forked children: a write after a fork would move private pages. Such memory is in huge pages if
    /sys/kernel/mm/transparent_hugepage/shmem_enabled is advise, within_size or always.
    """
    memory = mmap.mmap(-1, n_bytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _lock(buffer: Tensor, device: torch.device) -> bool:
    """Page-lock a buffer. False if the system refuses, since it has not enough memory that can be locked."""
    with torch.cuda.device(device):  # otherwise a context is made on the first GPU as well
        status = torch.cuda.cudart().cudaHostRegister(buffer.data_ptr(), len(buffer), PORTABLE)  # type: ignore[no-untyped-call]
        if int(status) != 0:
            with suppress(RuntimeError):  # CUDA reports the error once more, to the next kernel
                torch.zeros(1, device=device)
        return int(status) == 0


def _free(buffer: Tensor, copies: list[torch.cuda.Event], process: int) -> None:
    """Unlock page-locked memory, once the last copy from it has ended. A forked child has no CUDA and locked nothing."""
    if os.getpid() != process:
        return
    for copied in copies:
        copied.synchronize()
    torch.cuda.cudart().cudaHostUnregister(buffer.data_ptr())  # type: ignore[no-untyped-call]
