"""How a layer's bytes get into a buffer where a pass computes. On the host they are read there from files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from gemmascope.streaming.packed import PackedLayer, bytes_of, page_buffer
from gemmascope.streaming.prefetch import Arrival

# Called when a pass ends, in whichever thread, with the buffer that it was computing with, if any: it may be filled again
# once what the pass has computed no longer reads it.
EndPass = Callable[["Tensor | None"], None]


class Transfer(Protocol):
    """How a layer's bytes get into a buffer on the device."""

    def allocate(self, n_bytes: int) -> Tensor:
        """A uint8 buffer of this size on the device."""

    def fill(self, packed: PackedLayer, index: int, buffer: Tensor) -> Arrival | None:
        """Begin to fill a buffer with a layer. Runs in the prefetch thread."""

    def wait(self, arrival: Arrival | None) -> None:
        """Make what the pass computes next wait until the buffer is filled."""

    def release(self, buffer: Tensor) -> None:
        """Allow a buffer to be filled again, once what the pass has computed so far no longer reads it."""

    def begin_pass(self) -> EndPass:
        """Make what a new pass computes wait until the pass before it is over. Returns what to call when it ends."""


class HostTransfer:
    """Reads files into the memory that the pass computes in.

    direct: bypass the page cache. Layers that do not fit in the cache come from the disk every time, and copying them out of
    the cache takes 0.4 to 1.0 of a core that the pass could use, against 0.06 (measured).
    """

    def __init__(self, direct: bool = False) -> None:
        self.direct = direct

    def allocate(self, n_bytes: int) -> Tensor:
        return page_buffer(n_bytes)

    def fill(self, packed: PackedLayer, index: int, buffer: Tensor) -> None:
        packed.read(bytes_of(buffer), direct=self.direct)

    def wait(self, arrival: Arrival | None) -> None:
        """Nothing to wait for: `fill` returns when the layer has been read."""

    def release(self, buffer: Tensor) -> None:
        """Nothing to record: on the host a computation is finished when it returns."""

    def begin_pass(self) -> EndPass:
        return lambda in_use: None if in_use is None else self.release(in_use)
