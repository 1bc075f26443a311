"""Layer streams: the layers of a model that do not all stay on the device.

A layer is kept on the device as packed bytes, held in page-locked host memory, or read from files. One that is not kept is
loaded into a buffer by a thread that works one layer ahead of the pass; the pass does not see the difference. Where the
bytes are not in the dtype to compute in (int8), they are unpacked into scratch weights for one layer, unless kernels compute
from int8 on the device. Then the CPU unpacks a matrix when a pass has many rows for it, once a layer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from weakref import WeakValueDictionary, ref

import torch
from torch import Tensor, nn

from gemmascope.checkpoints.from_transformers import empty_layers
from gemmascope.config import GemmaConfig
from gemmascope.errors import DeviceError
from gemmascope.kernels.switch import runs_kernels
from gemmascope.model.gemma2 import Layer
from gemmascope.model.shutdown import stop_at_exit
from gemmascope.model.weight_digests import digest_of_layer
from gemmascope.streaming.int8_linear import int8_parameters, keep_int8, share_scratch
from gemmascope.streaming.packed import READERS, PackedLayer, require_stamp
from gemmascope.streaming.pass_lock import PassLock, QueuedPass
from gemmascope.streaming.prefetch import Arrival, LayerRequest, Prefetcher
from gemmascope.streaming.transfer import EndPass, HostTransfer, Transfer

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class LayerStream:
    """The layers of a model, some kept on the device, the others loaded during a pass.

    One pass runs at a time: a second thread waits, and a second pass of the same thread ends one that was left open.

    Args:
        config: The model's shape.
        layers: The packed bytes of every layer.
        dtype: The dtype to compute in.
        device: The device to compute on.
        kept: The numbers of the layers that stay on the device.
        ahead: How many layers may be loading while one is computed.
        transfer: How bytes get to the device; None reads files into host memory.
        indices: The numbers of the layers that a pass goes through here; None: all.
    """

    def __init__(
        self,
        config: GemmaConfig,
        layers: Sequence[PackedLayer],
        dtype: torch.dtype,
        device: torch.device,
        kept: Iterable[int] = (),
        ahead: int = 1,
        transfer: Transfer | None = None,
        indices: range | None = None,
    ) -> None:
        self.config, self.packed, self.dtype, self.device = config, layers, dtype, device
        self.transfer: Transfer = transfer or HostTransfer()
        self.plain_templates = self.templates = empty_layers(config, dtype)
        self.plain_names = {name: meta.shape for name, meta in self.templates[0].named_parameters()}
        self.views = self._choose_views()
        self.in_place = self.views is not None
        # On the CPU, rows that are too many for a product with int8 numbers share weights that are unpacked once a layer.
        self.shares_scratch = self.templates is not self.plain_templates and device.type == "cpu"
        self.meta_parameters = [dict(template.named_parameters()) for template in self.templates]
        self._single_layers: WeakValueDictionary[int, Layer] = WeakValueDictionary()
        self._unpacked_layers: WeakValueDictionary[int, Layer] = WeakValueDictionary()
        self._lock = PassLock()
        self._digests: dict[int, str] = {}
        self.kept = self._read(sorted(kept))
        self.indices = range(len(layers)) if indices is None else indices
        n_streamed = len(self.indices) - len(self.kept)
        largest = max((packed.n_bytes for packed in layers), default=0)
        self.buffers = [self.transfer.allocate(largest) for _ in range(min(n_streamed, ahead + 1))]
        self.scratch = self._empty_weights() if self.shares_scratch or not self.in_place else {}

    def _choose_views(self) -> Callable[[PackedLayer, Tensor], Mapping[str, Tensor]] | None:
        """How parameters are read from a buffer in place; None if a layer's bytes must be unpacked to compute with them.

        Where int8 can be computed with, the templates become ones whose linear maps do.
        """
        if all(packed.computes_in(self.dtype) for packed in self.packed):
            return lambda packed, buffer: {slice_.name: slice_.view(buffer) for slice_ in packed.slices}
        if not (runs_kernels(self.device) and all(packed.is_int8 for packed in self.packed)):
            return None
        self.templates = [keep_int8(_shallow_copy(template)) for template in self.templates]
        dtype = self.dtype  # not self: its memory would wait for the garbage collector
        return lambda packed, buffer: int8_parameters(packed.slices, buffer, dtype)

    def layers(self, reverse: bool) -> Generator[Layer]:
        """The layers in order. Each may be used until the next is requested or the generator is closed."""
        return self._pass(self.indices[:: -1 if reverse else 1])

    def single(self, index: int) -> Generator[Layer]:
        """One layer, in the buffers of a pass: nothing more is taken from the device than a pass takes.

        Within a pass of this thread, whose buffers are taken, it gets its own.
        """
        own = self._single_layers.get(index)
        if own is None and self._lock.held_here():
            own = self._own_layer(index)
        return self._pass([index]) if own is None else (layer for layer in [own])

    def _pass(self, order: Sequence[int]) -> Generator[Layer]:
        itself: list[ref[Generator[Layer]]] = []
        generator = self._layers(order, itself)
        itself.append(ref(generator))  # it runs only when its first layer is requested
        return generator

    def _layers(self, order: Sequence[int], itself: list[ref[Generator[Layer]]]) -> Generator[Layer]:
        current = _Pass(self, itself[0], [index for index in order if index not in self.kept])
        try:
            self._lock.acquire(current)
            current.begin()
            for index in order:
                stop_at_exit()
                buffer = self.kept[index] if index in self.kept else current.take(index)
                weights = self._weights_in(index, buffer)
                if not self.in_place:  # the bytes have been unpacked: the next layer's may take their place
                    current.release(buffer)
                yield current.lend(index, weights)
                current.require_not_ended()
                current.take_back()
                if self.in_place:
                    current.release(buffer)
        finally:
            self._lock.release(current)
            current.prefetcher.join()

    def layer(self, index: int) -> Layer:
        """One layer with its own weights, which no later pass changes. On the CPU they are unpacked for reading."""
        if not self.shares_scratch:
            return self._own_layer(index)
        layer = self._unpacked_layers.get(index)
        if layer is None:
            weights = self._empty_weights()
            with torch.no_grad():
                self.packed[index].unpack(self._own_buffer(index), weights)
                layer = _with_parameters(_shallow_copy(self.plain_templates[index]), weights)
            self._unpacked_layers[index] = layer
        return layer

    def _own_layer(self, index: int) -> Layer:
        """One layer as a pass computes with it, in memory of its own."""
        layer = self._single_layers.get(index)
        if layer is None:
            with torch.no_grad():
                layer = _with_parameters(_shallow_copy(self.templates[index]), self._own_weights(index))
            self._single_layers[index] = layer
        return layer

    def digest(self, index: int) -> str:
        """A digest of a layer's numbers: the store's checksum, or the digest that a layer in memory has."""
        packed = self.packed[index]
        for each in packed.ranges:
            require_stamp(each.path, each.stamp)
        if packed.sha256 is not None:
            return packed.sha256
        if index not in self._digests:
            self._digests[index] = digest_of_layer(self.layer(index))
        return self._digests[index]

    def mark(self, index: int) -> str:
        """What a run records of a layer to notice changes: its files and their stamps."""
        return self.packed[index].mark

    def fill(self, index: int, buffer: Tensor) -> Arrival | None:
        """Begin to fill a buffer with a layer."""
        return self.transfer.fill(self.packed[index], index, buffer)

    def _weights_in(self, index: int, buffer: Tensor) -> Mapping[str, Tensor]:
        """The weights of the layer in a buffer: views of it, or the scratch weights that it was unpacked into."""
        packed = self.packed[index]
        if self.views is not None:
            return {name: _parameter(value) for name, value in self.views(packed, buffer).items()}
        packed.unpack(buffer, self.scratch)
        return self.scratch

    def _own_weights(self, index: int) -> Mapping[str, Tensor]:
        buffer = self._own_buffer(index)
        if self.in_place:
            return self._weights_in(index, buffer)
        weights = self._empty_weights()
        self.packed[index].unpack(buffer, weights)
        return weights

    def _own_buffer(self, index: int) -> Tensor:
        """A layer's bytes, which no pass overwrites."""
        return self.kept[index] if index in self.kept else self._read([index])[index]

    def _read(self, indices: Sequence[int]) -> dict[int, Tensor]:
        """The bytes of layers in new buffers. Several are read, and their checksums verified, at once."""
        buffers = {index: self.transfer.allocate(self.packed[index].n_bytes) for index in indices}
        with ThreadPoolExecutor(READERS) as readers:
            for arrival in readers.map(self.fill, buffers, buffers.values()):
                self.transfer.wait(arrival)
        return buffers

    def _empty_weights(self) -> dict[str, Tensor]:
        """Uninitialised weights for a layer in the dtype to compute in."""
        return {
            name: _parameter(torch.empty(shape, dtype=self.dtype, device=self.device))
            for name, shape in self.plain_names.items()
        }


class _Pass(QueuedPass):
    """The layers that one pass is loading, their buffers, and the layer that it is computing with."""

    def __init__(self, stream: LayerStream, generator: ref[Generator[Layer]], order: Sequence[int]) -> None:
        super().__init__(generator)
        self.stream, self.remaining, self.free = stream, deque(order), deque(stream.buffers)
        self.loading: deque[LayerRequest] = deque()
        self.prefetcher = Prefetcher(stream.fill, lambda: self.gone)
        self.lent: Layer | None = None
        self.in_use: Tensor | None = None
        self.mark_end: EndPass | None = None

    def begin(self) -> None:
        self.mark_end = self.stream.transfer.begin_pass()
        if self.remaining:
            self.prefetcher.thread.start()
            self._request()

    def take(self, index: int) -> Tensor:
        """The buffer with this layer's bytes, once it is filled."""
        request = self.loading.popleft()
        assert request.index == index
        self.stream.transfer.wait(self.prefetcher.result(request))
        self.in_use = request.buffer
        return request.buffer

    def release(self, buffer: Tensor) -> None:
        """Let a buffer be filled again. A kept layer's bytes are left alone."""
        if buffer is self.in_use:
            self.in_use = None
            self.stream.transfer.release(buffer)
            self.free.append(buffer)
            self._request()

    def lend(self, index: int, weights: Mapping[str, Tensor]) -> Layer:
        """A layer with these weights. It belongs to this pass, so that no other pass can fill or empty it."""
        self.lent = _with_parameters(_shallow_copy(self.stream.templates[index]), weights)
        if self.stream.shares_scratch:
            share_scratch(self.lent, self.stream.scratch)
        return self.lent

    def take_back(self) -> None:
        """Empty the layer that was lent: using it later is an error rather than another layer's numbers."""
        if self.lent is not None:
            _with_parameters(self.lent, self.stream.meta_parameters[self.lent.index])

    def require_not_ended(self) -> None:
        """Raises DeviceError if another pass has ended this one."""
        if self.ended:
            raise DeviceError("another pass over these layers began before this one ended: end one at a time")

    def end(self) -> None:
        if not self.ended and self.mark_end is not None:
            self.mark_end(self.in_use)
        self.prefetcher.stop()
        super().end()

    def settle(self) -> None:
        self.prefetcher.wait()
        self.take_back()

    def _request(self) -> None:
        while self.free and self.remaining:
            self.loading.append(self.prefetcher.request(self.remaining.popleft(), self.free.popleft()))


def _parameter(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)


def _with_parameters(layer: Layer, weights: Mapping[str, Tensor]) -> Layer:
    """The layer, with these as its parameters."""
    for name, value in weights.items():
        path, _, leaf = name.rpartition(".")
        layer.get_submodule(path)._parameters[leaf] = value  # type: ignore[assignment]
    return layer


def _shallow_copy(module: ModuleT) -> ModuleT:
    """A module with the same parameters, which can be replaced without changing the original."""
    copied = module.__class__.__new__(module.__class__)
    copied.__dict__.update(module.__dict__)
    copied.__dict__["_parameters"] = dict(module._parameters)
    copied.__dict__["_modules"] = {name: child and _shallow_copy(child) for name, child in module._modules.items()}
    return copied
