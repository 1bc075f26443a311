"""Decoding: runs that grow by one position a pass, and read earlier keys and values from a KV cache.

Edits apply at absolute positions, in the prompts' pass and in those of one new position. The residual stream is recorded, as
in a trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from math import isfinite
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gemmascope.edits.edit import BoundEdit
from gemmascope.generation.graphs import StepGraphs, StepResult
from gemmascope.generation.untapped import UntappedLayer
from gemmascope.memory.limits import explain_oom
from gemmascope.model.gemma2 import Layer
from gemmascope.model.kv_cache import KVCache
from gemmascope.model.layout import Block, Layout, PrefixKV
from gemmascope.model.maths import index_tensor
from gemmascope.model.model import Model
from gemmascope.model.tap import Chain, Tap
from gemmascope.run.finite import require_finite, require_logits
from gemmascope.run.taps import EditTap
from gemmascope.sites import EDGE_SITES
from gemmascope.values import moved


class Decoder:
    """Runs with their KV caches.

    prompts: the token ids of each run. edits: those of each, bound to the most positions that it may reach. n_total: the
    most positions that any of them may reach. samples: how many runs in a row continue the same prompt with the same edits;
    they share its pass.
    """

    def __init__(
        self,
        model: Model,
        prompts: Sequence[Tensor],
        edits: Sequence[Sequence[BoundEdit]],
        n_total: int,
        samples: int = 1,
    ) -> None:
        self.model, self.prompts, self.edits, self.samples = model, prompts, edits, samples
        self.lengths = [len(ids) for ids in prompts]
        self.active = list(range(len(prompts)))  # the run of each row of a step
        self._passes: list[tuple[dict[int, slice], list[Tensor]]] = []
        # An edited score or pattern is computed over all keys, so such a layer keeps every position.
        self._full_layers = {e.address.layer for of_run in edits for e in of_run if e.address.site.name in EDGE_SITES}
        self._caches = [self._empty_cache(layer, n_total) for layer in range(model.n_layers)]
        self._untapped: dict[int, UntappedLayer] = {}
        self._graphs: StepGraphs | None = None
        self._n_total = n_total

    def prefill(self) -> Tensor:
        """Run the prompts in one pass; returns the soft-capped logits after each, [run, vocab]."""
        self.model.network.check()
        first = self.active[:: self.samples]  # of the runs of each prompt
        order = sorted(first, key=lambda run: self.lengths[run])
        layout = Layout.of_lengths([self.lengths[run] for run in order], self.model.device)
        filling = _PrefillTap(self._caches, order, self.samples)
        x = self._pass(torch.cat([self.prompts[run] for run in order]), order, [layout] * self.model.n_layers, filling)
        spans, stream = self._passes[0]
        self._passes[0] = {run + i: span for run, span in spans.items() for i in range(self.samples)}, stream
        last_row = {run: span.stop - 1 for run, span in zip(order, layout.spans, strict=True)}
        rows = index_tensor(np.array([last_row[run] for run in first]), self.model.device)
        logits = self._logits(x[rows], first)
        self._untapped = self._untapped_layers()
        if self.model.device.type == "cuda" and len(self._untapped) == self.model.n_layers and not any(self.edits):
            self._graphs = StepGraphs(self.model.network, self._untapped, self._caches, self._n_total)
        return logits if self.samples == 1 else self._shared(logits, first)

    def _shared(self, logits: Tensor, first: Sequence[int]) -> Tensor:
        """The logits of each prompt for all its samples, which also take over what the prompt's edits wrote."""
        for run in first:
            for sample in range(run + 1, run + self.samples):
                for edit, copied in zip(self.edits[run], self.edits[sample], strict=True):
                    if edit.written is not None and copied.written is not None:
                        copied.written.copy_from(edit.written)
        return logits.repeat_interleave(self.samples, 0)

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Add one position to every active run; returns the soft-capped logits after it, [run, vocab]."""
        if self._graphs:
            with explain_oom(self.model):
                found = self._graphs.step(tokens, [self.lengths[run] for run in self.active])
            if found is not None:
                return self._of_graph(found)
        layout = self._next_rows(self.active)
        layouts = [
            layout if layer in self._untapped else self._with_cache(layout, layer) for layer in range(self.model.n_layers)
        ]
        appending = _AppendTap(self._caches) if self._full_layers else None
        x = self._pass(index_tensor(np.array(tokens), self.model.device), self.active, layouts, appending)
        for run in self.active:
            self.lengths[run] += 1
        return self._logits(x, self.active)

    def _of_graph(self, found: StepResult) -> Tensor:
        """Record what a graph computed, as a pass is recorded."""
        rows = {run: slice(at, at + 1) for at, run in enumerate(self.active)}
        self._passes.append((rows, list(found.stream)))
        self._sums = list(found.sums)
        self._newest = _Newest(found.stream[-1], found.logits, tuple(self.active))
        for run in self.active:
            self.lengths[run] += 1
        return found.logits

    def keep_runs(self, places: Sequence[int]) -> None:
        """Keep only some of the active runs, by their places among them."""
        if len(places) < len(self.active):
            self.active = [self.active[place] for place in places]
            chosen = index_tensor(np.array(places), self.model.device)
            for cache in self._caches:
                cache.keep_runs(chosen)
            if self._graphs:
                self._graphs.forget()

    def stream(self, run: int) -> list[Tensor]:
        """The stream of a run's positions that passed through the layers: n_layers + 1 tensors [pos, d_model]."""
        parts = [[x[spans[run]] for x in stream] for spans, stream in self._passes if run in spans]
        return [torch.cat(entry) for entry in zip(*parts, strict=True)]

    def _pass(self, ids: Tensor, runs: Sequence[int], layouts: Sequence[Layout], cache_tap: Tap | None) -> Tensor:
        """Carry rows through the layers, and record the stream at the entry of each. layouts: one for each layer."""
        # Without edits the tap is left out: its calls cost time where a pass has one row.
        editing = [EditTap([self.edits[run] for run in runs])] if any(self.edits[run] for run in runs) else []
        tap = Chain(*editing, *([cache_tap] if cache_tap else []))
        with torch.no_grad(), explain_oom(self.model), closing(self.model.network.layers()) as layers:
            stream = [self.model.network.embed(ids, layouts[0], tap)]
            for layer in layers:
                layout = layouts[layer.index]
                if untapped := self._untapped.get(layer.index):
                    stream.append(untapped(stream[-1], layout, self._caches[layer.index]))
                else:
                    stream.append(layer(stream[-1], layout, tap.at(layer.index, layout)))
            self._passes.append((dict(zip(runs, layouts[0].spans, strict=True)), stream))
            last = moved(stream[-1], self.model.device)
            self._sums = [last.sum().float(), *([last.float().square().sum()] if editing else [])]
        return last

    def _untapped_layers(self) -> dict[int, UntappedLayer]:
        """The layers whose steps no edit reads or changes, where all are in the memory of one device."""
        network = self.model.network
        if network.layer_source is not None or network.layer_devices:
            return {}
        edited = {edit.address.layer for of_run in self.edits for edit in of_run}
        layers = [layer for layer in network.model.layers if isinstance(layer, Layer) and layer.index not in edited]
        return {layer.index: untapped for layer in layers if (untapped := UntappedLayer.of(layer)) is not None}

    def _next_rows(self, runs: Sequence[int], back: int = 0) -> Layout:
        """The layout of one row for each of these runs: its next position, or one that many positions before."""
        blocks = [Block(at, 1, 1, at, start=self.lengths[run] - back) for at, run in enumerate(runs)]
        return Layout.of_blocks(blocks, self.model.device)

    def _with_cache(self, layout: Layout, layer: int) -> Layout:
        """The layout of a step with the keys and values that its rows read in a layer."""
        cache, dtype = self._caches[layer], self.model.dtype
        if layer not in self._full_layers:
            return layout.with_kv_cache(cache)
        earlier = [cache.of_run(at, self.lengths[run]) for at, run in enumerate(self.active)]
        return layout.with_prefixes([PrefixKV(k.to(dtype), v.to(dtype)) for k, v in earlier])

    def _empty_cache(self, layer: int, n_total: int) -> KVCache:
        config = self.model.config
        like = self.model.network.model.norm.weight.new_empty(0, device=self.model.network.device_of(layer))
        window = None if layer in self._full_layers else config.window_of(layer)
        n_slots = n_total if window is None else min(window, n_total)
        return KVCache(len(self.prompts), config.n_kv_heads // self.model.network.n_processes, n_slots, config.d_head, like)

    def _logits(self, rows: Tensor, runs: Sequence[int]) -> Tensor:
        """The soft-capped logits after the newest row of each of these runs, with the edits after the layers."""
        layout = self._next_rows(runs, back=1)
        tap = EditTap([[e for e in self.edits[run] if e.address.layer is None] for run in runs])
        with torch.no_grad():
            logits = self.model.network.unembed(rows, tap.at(None, layout))
            self._sums.append(logits.amax(-1).sum())
        self._newest = _Newest(rows, logits, tuple(runs))
        return logits

    def sums(self) -> Float[Tensor, " sum"]:
        """Sums over the newest pass, finite only if its numbers are. They stay on the device until the caller reads them."""
        return torch.stack(self._sums)

    def require_valid(self, sums: Float[Tensor, " sum"]) -> None:
        """EditError or CheckpointError for a newest pass that holds NaN or infinity. sums: those of sums(), on the host."""
        if all(map(isfinite, sums.tolist())):
            return
        newest = self._newest
        for run in newest.runs:
            require_finite(self.model, self.prompts[run], self.stream(run), self.edits[run])
        for run, logits, row in zip(newest.runs, newest.logits, newest.rows, strict=True):
            require_logits(self.model, self.prompts[run], logits, row, self.lengths[run] - 1, self.edits[run])


class _Newest(NamedTuple):
    """The rows of the stream that the newest logits were read from, those, and their runs."""

    rows: Tensor
    logits: Tensor
    runs: tuple[int, ...]


class _PrefillTap(Tap):
    """Fills the caches with the keys and values of whole prompts.

    runs: the number of each run of the pass. samples: how many runs from that one on share its prompt.
    """

    own_heads = True

    def __init__(self, caches: Sequence[KVCache], runs: Sequence[int], samples: int) -> None:
        self.caches, self.runs, self.samples = caches, runs, samples

    def rows(self, site: str, layer: int | None, value: Tensor, layout: Layout) -> Tensor:
        if site == "v":
            self.v = value
        elif site == "k_rot":  # the pass visits k_rot after v
            assert layer is not None
            for run, span in zip(self.runs, layout.spans, strict=True):
                for sample in range(self.samples):
                    self.caches[layer].fill(run + sample, value[span], self.v[span])
        return value


class _AppendTap(Tap):
    """Appends one position of every run to the caches of those layers whose attention does not do so itself."""

    own_heads = True

    def __init__(self, caches: Sequence[KVCache]) -> None:
        self.caches = caches

    def rows(self, site: str, layer: int | None, value: Tensor, layout: Layout) -> Tensor:
        if site == "v":
            self.v = value
        elif site == "k_rot" and layout.kv_cache is None:
            assert layer is not None
            self.caches[layer].append(value, self.v, layout.starts, layout.pass_cache)
        return value
