"""CUDA graphs: a step whose kernels were launched once is launched again as a whole, without the host's work for each.

A graph reads and writes the same memory whenever it is replayed. So a step's tokens and positions stand in a buffer that is
filled before, and which slots of the KV cache it uses is computed from them on the device. A graph is captured once for each
number of runs and each stretch of slots, and replayed until either changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gemmascope.errors import warn
from gemmascope.generation.untapped import UntappedLayer
from gemmascope.kernels.attention_tiles import SPLIT
from gemmascope.kernels.switch import runs_triton
from gemmascope.model.gemma2 import Gemma2
from gemmascope.model.kv_cache import STEP, KVCache, PassCache
from gemmascope.model.layout import Block, Layout
from gemmascope.model.maths import index_tensor

# A capture takes as long as some steps: it pays if at least so many more may follow in its stretch.
WORTH = 4


@dataclass(frozen=True)
class StepResult:
    """What a step computed.

    stream: at the entry of each layer and after the last, [layer + 1, run, d_model]. logits: [run, vocab]. sums: of the last
    of the stream and of the largest logits, as in Decoder.sums.
    """

    stream: Tensor
    logits: Tensor
    sums: Tensor


class StepGraphs:
    """The graphs of a generation. layers: all of the network's, untapped, on one CUDA device. caches: those of each."""

    def __init__(
        self, network: Gemma2, layers: Mapping[int, UntappedLayer], caches: Sequence[KVCache], n_total: int
    ) -> None:
        self.network, self.caches, self.n_total = network, caches, n_total
        self.layers = [layers[index] for index in range(len(caches))]
        # Positions that one graph serves: those whose attention has one shape.
        self.stretch = SPLIT if runs_triton(network.device) else STEP
        self.refused = False
        self._stop = 0  # the position after the last that the present graph serves; 0 without a graph
        self._graph: torch.cuda.CUDAGraph | None = None

    def forget(self) -> None:
        """Drop the graph: the caches have other memory now, or other runs."""
        self._graph, self._stop = None, 0

    def step(self, tokens: Sequence[int], positions: Sequence[int]) -> StepResult | None:
        """A step of runs that are at these positions; None if it must be made without a graph."""
        with torch.cuda.device(self.network.device):  # whose stream it is launched on
            return self._step(tokens, positions)

    def _step(self, tokens: Sequence[int], positions: Sequence[int]) -> StepResult | None:
        last = max(positions)
        if last >= self._stop:
            self.forget()
            stop = min((last // self.stretch + 1) * self.stretch, self.n_total)
            if self.refused or stop - last < WORTH or not self._captured(tokens, positions, stop):
                return None
        assert self._graph is not None
        self._inputs.copy_(_inputs(tokens, positions, self.network.device))
        self._graph.replay()
        # The next replay writes there again.
        return StepResult(self._result.stream.clone(), self._result.logits, self._result.sums)

    def _captured(self, tokens: Sequence[int], positions: Sequence[int], stop: int) -> bool:
        """Capture the step. False, with a warning, if the device refuses, so that steps go on without graphs."""
        try:
            self._inputs = _inputs(tokens, positions, self.network.device).clone()
            graph, outside = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            # Once before: libraries set themselves up. The capture makes the same step again, and only the replay computes.
            side.wait_stream(outside)
            with torch.cuda.stream(side):
                self._compute(stop)
            outside.wait_stream(side)
            with torch.cuda.graph(graph, stream=side):
                self._result = self._compute(stop)
        except RuntimeError as reason:  # as torch.OutOfMemoryError is
            self.refused = True
            warn(
                f"the steps of this generation run without CUDA graphs, which is slower: one could not be captured "
                f"({type(reason).__name__}: {str(reason)[:200]})"
            )
            return False
        self._graph, self._stop = graph, stop
        return True

    def _compute(self, stop: int) -> StepResult:
        """The step whose tokens and positions are in the buffer, at positions before stop."""
        ids, positions = self._inputs
        n_slots = {cache.n_slots: cache for cache in self.caches}
        slots: PassCache = {("slots", n): cache.slots_on_device(positions, stop) for n, cache in n_slots.items()}
        # Of positions the host knows only where the stretch ends; nothing else is read of the blocks.
        layout = Layout((Block(0, len(ids), 1, start=stop - 1),), positions, pass_cache=slots)
        with torch.no_grad():
            stream = [self.network.embed(ids, layout)]
            for layer, cache in zip(self.layers, self.caches, strict=True):
                stream.append(layer(stream[-1], layout, cache))
            logits = self.network.unembed(stream[-1])
            sums = torch.stack((stream[-1].sum().float(), logits.amax(-1).sum()))
            return StepResult(torch.stack(stream), logits, sums)


def _inputs(tokens: Sequence[int], positions: Sequence[int], device: torch.device) -> Tensor:
    """[2, run]: each run's token, and its position."""
    return index_tensor(np.array([tokens, positions], dtype=np.int64), device)
