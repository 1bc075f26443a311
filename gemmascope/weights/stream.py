"""Streams: layers that are not all at hand as they are computed with.

A layer is kept on the device as packed bytes, waits in page-locked host memory, or lies in files. One that is not kept
arrives in a slot, brought by a thread that works one layer ahead while the pass computes; a pass cannot tell the tiers
apart. Where the bytes are not what is computed with (int8), they are unpacked into scratch weights, one layer's worth.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from gemmascope.config import GemmaConfig
from gemmascope.errors import DeviceError
from gemmascope.model.gemma2 import Layer
from gemmascope.weights.adopt import empty_layers
from gemmascope.weights.packed import Packed, bytes_of, room

Arrival = Any


class Lane(Protocol):
    """How bytes come into a slot of a device."""

    def slot(self, n_bytes: int) -> Tensor:
        """A slot of this size, uint8, on the device."""

    def bring(self, packed: Packed, index: int, slot: Tensor) -> Arrival:
        """Begin to fill a slot; runs in the stream's thread."""

    def arrive(self, arrival: Arrival) -> None:
        """Make the pass's next steps wait until the slot is filled."""

    def released(self, slot: Tensor) -> None:
        """Told when the pass's steps so far are the last to read a slot."""


class HostLane:
    """Files to the memory that the pass computes in.

    direct: past the page cache. What does not fit in it comes from the disk every time, and copying it out of the cache
    takes a core that the pass could use: measured, 0.4 to 1.0 of one, beside 0.06.
    """

    def __init__(self, direct: bool = False) -> None:
        self.direct = direct

    def slot(self, n_bytes: int) -> Tensor:
        return room(n_bytes)

    def bring(self, packed: Packed, index: int, slot: Tensor) -> None:
        packed.read(bytes_of(slot), direct=self.direct)

    def arrive(self, arrival: Arrival) -> None:
        """Nothing is to be waited for: what brings a layer here has read all of it."""

    def released(self, slot: Tensor) -> None:
        """Nothing is to be noted: the steps of a pass are over when they return."""


class Stream:
    """The layers of a model, some kept, the others brought as a pass goes.

    layers: every layer's bytes. kept: the numbers of those that stay on the device. ahead: how many layers may be on
    their way while one is computed. One pass goes at a time: a second thread waits, a second pass of the same thread
    ends the first.
    """

    def __init__(
        self,
        config: GemmaConfig,
        layers: Sequence[Packed],
        dtype: torch.dtype,
        device: torch.device,
        kept: Iterable[int] = (),
        ahead: int = 1,
        lane: Lane | None = None,
    ) -> None:
        self.config, self.packed, self.dtype, self.device = config, layers, dtype, device
        self.lane: Lane = lane or HostLane()
        self.shells = empty_layers(config, dtype)
        self.empty = [dict(shell.named_parameters()) for shell in self.shells]
        self.ready = all(packed.ready(dtype) for packed in layers)
        self._handed: WeakValueDictionary[int, Layer] = WeakValueDictionary()
        self._lock, self._owner = threading.Lock(), 0
        self._pass: _Pass | None = None
        self.kept = {index: self._read_kept(index) for index in sorted(kept)}
        n_streamed = len(layers) - len(self.kept)
        largest = max((packed.n_bytes for packed in layers), default=0)
        self.slots = [self.lane.slot(largest) for _ in range(min(n_streamed, ahead + 1))]
        self.scratch = {} if self.ready else self._weights()

    def layers(self, reverse: bool) -> Generator[Layer]:
        """The layers one after the other. Each is good until the next is asked for, or the generator is closed."""
        order = range(len(self.packed))[:: -1 if reverse else 1]
        going = self._begin(order)
        try:
            for index in order:
                slot = self.kept[index] if index in self.kept else going.take(index)
                weights = self._unpacked(index, slot)
                if not self.ready:  # the bytes are no longer needed: the next layer's may take their place
                    going.release(slot)
                yield _filled(self.shells[index], weights)
                _filled(self.shells[index], self.empty[index])
                if self._pass is not going:
                    raise DeviceError("another pass over these layers began before this one ended: end one at a time")
                if self.ready:
                    going.release(slot)
        finally:
            self._end(going)

    def layer(self, index: int) -> Layer:
        """One layer, with weights of its own: they stay what they are whatever passes follow."""
        found = self._handed.get(index)
        if found is None:
            with torch.no_grad():
                found = _filled(empty_layers(self.config, self.dtype, [index])[0], self._own_weights(index))
            self._handed[index] = found
        return found

    def sample(self, index: int, name: str, at: Tensor) -> Tensor:
        """Some numbers of a layer's parameter, by their places in it laid out flat. float32."""
        return self.packed[index].sample(name, at, self.dtype)

    def bring(self, index: int, slot: Tensor) -> Arrival:
        """Fill a slot with a layer's bytes."""
        return self.lane.bring(self.packed[index], index, slot)

    def released(self, slot: Tensor) -> None:
        """Told when a slot's bytes are no longer read."""
        self.lane.released(slot)

    def _unpacked(self, index: int, slot: Tensor) -> Mapping[str, Tensor]:
        packed = self.packed[index]
        if self.ready:
            return {piece.name: _parameter(piece.view(slot)) for piece in packed.pieces}
        packed.unpack(slot, self.scratch)
        return self.scratch

    def _own_weights(self, index: int) -> Mapping[str, Tensor]:
        slot = self.kept.get(index)
        if slot is None:
            slot = self._read_kept(index)
        if self.ready:
            return self._unpacked(index, slot)
        weights = self._weights()
        self.packed[index].unpack(slot, weights)
        return weights

    def _read_kept(self, index: int) -> Tensor:
        slot = self.lane.slot(self.packed[index].n_bytes)
        self.lane.arrive(self.bring(index, slot))
        return slot

    def _weights(self) -> dict[str, Tensor]:
        """Room for the weights of a layer, as they are computed with."""
        return {
            name: _parameter(torch.empty(meta.shape, dtype=self.dtype, device=self.device))
            for name, meta in self.empty[0].items()
        }

    def _begin(self, order: Sequence[int]) -> _Pass:
        """A new pass, when no other thread has one under way. One of this thread, or of one that is gone, is ended."""
        while not self._lock.acquire(blocking=False):
            if self._owner == threading.get_ident() or self._owner not in {t.ident for t in threading.enumerate()}:
                break
            if self._lock.acquire(timeout=0.1):
                break
        if self._pass is not None:  # left open, such as by an error whose traceback is still held
            self._pass.close()
            self._empty()
        self._owner = threading.get_ident()
        try:
            self._pass = _Pass(self, [index for index in order if index not in self.kept])
        except BaseException:
            self._pass, self._owner = None, 0
            self._lock.release()
            raise
        return self._pass

    def _end(self, going: _Pass) -> None:
        going.close()
        if self._pass is going:
            self._empty()
            self._pass, self._owner = None, 0
            self._lock.release()

    def _empty(self) -> None:
        for shell, nothing in zip(self.shells, self.empty, strict=True):
            _filled(shell, nothing)


class _Pass:
    """The layers on their way in one pass: which slot each comes in, and the thread that brings them."""

    def __init__(self, stream: Stream, order: Sequence[int]) -> None:
        self.stream, self.to_come, self.free = stream, deque(order), deque(stream.slots)
        self.coming: deque[tuple[int, Tensor, Future[Arrival]]] = deque()
        self.thread = ThreadPoolExecutor(1, "gemmascope-stream") if order else None
        self._ask()

    def take(self, index: int) -> Tensor:
        """The slot with this layer's bytes, once they are there."""
        coming, slot, future = self.coming.popleft()
        assert coming == index
        self.stream.lane.arrive(future.result())
        return slot

    def release(self, slot: Tensor) -> None:
        """Let a slot be filled anew. A kept layer's bytes are none."""
        if any(slot is one for one in self.stream.slots):
            self.stream.released(slot)
            self.free.append(slot)
            self._ask()

    def close(self) -> None:
        """End the thread, when what it is at is done."""
        self.to_come.clear()
        if self.thread is not None:
            self.thread.shutdown(wait=True, cancel_futures=True)

    def _ask(self) -> None:
        while self.thread is not None and self.free and self.to_come:
            index, slot = self.to_come.popleft(), self.free.popleft()
            self.coming.append((index, slot, self.thread.submit(self.stream.bring, index, slot)))


def _parameter(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)


def _filled(layer: Layer, weights: Mapping[str, Tensor]) -> Layer:
    """The layer, with these as its parameters."""
    for name, value in weights.items():
        path, _, leaf = name.rpartition(".")
        layer.get_submodule(path)._parameters[leaf] = value  # type: ignore[assignment]
    return layer
