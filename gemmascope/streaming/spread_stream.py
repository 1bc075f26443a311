"""The layers of a model on several GPUs: one stream for each, which a pass goes through in turn."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing

from gemmascope.model.gemma2 import Layer
from gemmascope.streaming.layer_stream import LayerStream
from gemmascope.streaming.packed import PackedLayer


class SpreadStream:
    """A LayerSource made of streams, each with its own device, buffers and layers, which follow those of the one before."""

    def __init__(self, streams: Sequence[LayerStream]) -> None:
        self.streams = tuple(streams)

    @property
    def packed(self) -> Sequence[PackedLayer]:
        """The packed bytes of every layer."""
        return self.streams[0].packed

    def layers(self, reverse: bool) -> Generator[Layer]:
        """The layers in order. Each may be used until the next is requested or the generator is closed."""
        for stream in reversed(self.streams) if reverse else self.streams:
            with closing(stream.layers(reverse)) as layers:
                yield from layers

    def single(self, index: int) -> Generator[Layer]:
        """One layer, in the buffers of its device."""
        return self._of(index).single(index)

    def layer(self, index: int) -> Layer:
        """One layer with its own weights, on its device."""
        return self._of(index).layer(index)

    def digest(self, index: int) -> str:
        """A digest of a layer's numbers."""
        return self._of(index).digest(index)

    def mark(self, index: int) -> str:
        """What a run records of a layer to notice changes."""
        return self._of(index).mark(index)

    def _of(self, index: int) -> LayerStream:
        return next(stream for stream in self.streams if index in stream.indices)
