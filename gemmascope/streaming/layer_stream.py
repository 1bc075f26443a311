"""Streams: layers that are not all at hand as they are computed with.

A layer is kept on the device as packed bytes, waits in page-locked host memory, or lies in files. One that is not kept
arrives in a slot, brought by a thread that works one layer ahead while the pass computes; a pass cannot tell the tiers
apart. Where the bytes are not what is computed with (int8), they are unpacked into scratch weights, one layer's worth.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any, Protocol
from weakref import WeakValueDictionary, ref

import torch
from torch import Tensor, nn

from gemmascope.checkpoints.from_transformers import empty_layers
from gemmascope.config import GemmaConfig
from gemmascope.errors import DeviceError
from gemmascope.model.gemma2 import Layer
from gemmascope.model.shutdown import stop_at_exit
from gemmascope.model.weight_digests import digest_of_layer
from gemmascope.streaming.packed import PackedLayer, bytes_of, require_stamp, room
from gemmascope.streaming.pass_lock import Holder, PassLock
from gemmascope.streaming.prefetch import Arrival, Bringer, Job


class Transfer(Protocol):
    """How bytes come into a slot of a device."""

    def slot(self, n_bytes: int) -> Tensor:
        """A slot of this size, uint8, on the device."""

    def bring(self, packed: PackedLayer, index: int, slot: Tensor) -> Arrival:
        """Begin to fill a slot; runs in the stream's thread."""

    def arrive(self, arrival: Arrival) -> None:
        """Make the pass's next steps wait until the slot is filled."""

    def released(self, slot: Tensor) -> None:
        """Told when the pass's steps so far are the last to read a slot."""


class HostTransfer:
    """Files to the memory that the pass computes in.

    direct: past the page cache. What does not fit in it comes from the disk every time, and copying it out of the cache
    takes a core that the pass could use: measured, 0.4 to 1.0 of one, beside 0.06.
    """

    def __init__(self, direct: bool = False) -> None:
        self.direct = direct

    def slot(self, n_bytes: int) -> Tensor:
        return room(n_bytes)

    def bring(self, packed: PackedLayer, index: int, slot: Tensor) -> None:
        packed.read(bytes_of(slot), direct=self.direct)

    def arrive(self, arrival: Arrival) -> None:
        """Nothing is to be waited for: what brings a layer here has read all of it."""

    def released(self, slot: Tensor) -> None:
        """Nothing is to be noted: the steps of a pass are over when they return."""


class Stream:
    """The layers of a model, some kept, the others brought as a pass goes.

    layers: every layer's bytes. kept: the numbers of those that stay on the device. ahead: how many layers may be on
    their way while one is computed. One pass goes at a time: a second thread waits, and a second pass of the same thread
    ends one that was left open.
    """

    def __init__(
        self,
        config: GemmaConfig,
        layers: Sequence[PackedLayer],
        dtype: torch.dtype,
        device: torch.device,
        kept: Iterable[int] = (),
        ahead: int = 1,
        lane: Transfer | None = None,
    ) -> None:
        self.config, self.packed, self.dtype, self.device = config, layers, dtype, device
        self.lane: Transfer = lane or HostTransfer()
        self.shells = empty_layers(config, dtype)
        self.empty = [dict(shell.named_parameters()) for shell in self.shells]
        self.ready = all(packed.ready(dtype) for packed in layers)
        self._handed: WeakValueDictionary[int, Layer] = WeakValueDictionary()
        self._lock = PassLock()
        self._digests: dict[int, str] = {}
        self.kept = {index: self._read_kept(index) for index in sorted(kept)}
        n_streamed = len(layers) - len(self.kept)
        largest = max((packed.n_bytes for packed in layers), default=0)
        self.slots = [self.lane.slot(largest) for _ in range(min(n_streamed, ahead + 1))]
        self.scratch = {} if self.ready else self._weights()

    def layers(self, reverse: bool) -> Generator[Layer]:
        """The layers one after the other. Each is good until the next is asked for, or the generator is closed."""
        order = range(len(self.packed))[:: -1 if reverse else 1]
        itself: list[ref[Generator[Layer]]] = []
        found = self._layers(order, itself)
        itself.append(ref(found))  # begins when it is asked for its first layer
        return found

    def _layers(self, order: Sequence[int], itself: list[ref[Generator[Layer]]]) -> Generator[Layer]:
        going = _Pass(self, itself[0], [index for index in order if index not in self.kept])
        try:
            self._lock.acquire(going)
            going.begin()
            for index in order:
                stop_at_exit()
                slot = self.kept[index] if index in self.kept else going.take(index)
                weights = self._unpacked(index, slot)
                if not self.ready:  # the bytes are no longer needed: the next layer's may take their place
                    going.release(slot)
                yield going.lend(index, weights)
                going.require_going()
                going.take_back()
                if self.ready:
                    going.release(slot)
        finally:
            self._lock.release(going)
            going.bringer.join()

    def layer(self, index: int) -> Layer:
        """One layer, with weights of its own: they stay what they are whatever passes follow."""
        found = self._handed.get(index)
        if found is None:
            with torch.no_grad():
                found = _filled(_copied(self.shells[index]), self._own_weights(index))
            self._handed[index] = found
        return found

    def digest(self, index: int) -> str:
        """A digest of a layer's numbers: the store's own checksum, or of the numbers as a layer in memory has them."""
        packed = self.packed[index]
        for span in packed.spans:
            require_stamp(span.path, span.stamp)
        if packed.sha256 is not None:
            return packed.sha256
        if index not in self._digests:
            self._digests[index] = digest_of_layer(self.layer(index))
        return self._digests[index]

    def mark(self, index: int) -> str:
        """What a run notes of a layer: its files, which are looked at whenever it is read."""
        return self.packed[index].mark

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


class _Pass(Holder):
    """The layers on their way in one pass: which slot each comes in, and the one that is being computed with."""

    def __init__(self, stream: Stream, generator: ref[Generator[Layer]], order: Sequence[int]) -> None:
        super().__init__(generator)
        self.stream, self.to_come, self.free = stream, deque(order), deque(stream.slots)
        self.coming: deque[Job] = deque()
        self.bringer = Bringer(stream.bring, lambda: self.gone)
        self.lent: Layer | None = None
        self.read: Tensor | None = None

    def begin(self) -> None:
        if self.to_come:
            self.bringer.thread.start()
            self._ask()

    def take(self, index: int) -> Tensor:
        """The slot with this layer's bytes, once they are there."""
        job = self.coming.popleft()
        assert job.index == index
        self.stream.lane.arrive(self.bringer.result(job))
        self.read = job.slot
        return job.slot

    def release(self, slot: Tensor) -> None:
        """Let a slot be filled anew. A kept layer's bytes are none."""
        if slot is self.read:
            self.read = None
            self.stream.released(slot)
            self.free.append(slot)
            self._ask()

    def lend(self, index: int, weights: Mapping[str, Tensor]) -> Layer:
        """A layer with these weights. It is this pass's own, so that no other pass can fill or empty it."""
        self.lent = _filled(_copied(self.stream.shells[index]), weights)
        return self.lent

    def take_back(self) -> None:
        """Empty the layer that was lent: a use of it is from here on an error, and not another layer's numbers."""
        if self.lent is not None:
            _filled(self.lent, self.stream.empty[self.lent.index])

    def require_going(self) -> None:
        """DeviceError if another pass has ended this one."""
        if self.ended:
            raise DeviceError("another pass over these layers began before this one ended: end one at a time")

    def end(self) -> None:
        if not self.ended and self.read is not None:  # steps under way may still read what it holds
            self.stream.released(self.read)
        self.bringer.stop()
        super().end()

    def settle(self) -> None:
        self.bringer.wait()
        self.take_back()

    def _ask(self) -> None:
        while self.free and self.to_come:
            self.coming.append(self.bringer.ask(self.to_come.popleft(), self.free.popleft()))


def _parameter(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)


def _filled(layer: Layer, weights: Mapping[str, Tensor]) -> Layer:
    """The layer, with these as its parameters."""
    for name, value in weights.items():
        path, _, leaf = name.rpartition(".")
        layer.get_submodule(path)._parameters[leaf] = value  # type: ignore[assignment]
    return layer


def _copied(module: nn.Module) -> Any:
    """A module over the same values, into which others can be put without the first one seeing them."""
    made = module.__class__.__new__(module.__class__)
    made.__dict__.update(module.__dict__)
    made.__dict__["_parameters"] = dict(module._parameters)
    made.__dict__["_modules"] = {name: child and _copied(child) for name, child in module._modules.items()}
    return made
